"""COCO: one JSON file for each split, with images, annotations and categories.

Objects are polygons (their union, without holes), or run lengths, where a hole is a hole. Smaller objects lie on top. A
crowd (`iscrowd`) is ignored, except in files of CVAT and Datumaro, which mark every object with run lengths so.
"""

from __future__ import annotations

from typing import Any

from ..bitmaps import from_coco_string, from_runs
from ..draw import tight
from ..form import (
    Annotations,
    Files,
    Photo,
    Region,
    Report,
    Unusable,
    polygon,
    rectangle,
    split_of,
    whole_size,
)

BOXES = "boxes without an outline, whose pixels are ignored (255)"


def read(files: Files, report: Report) -> Annotations:
    photos: dict[str, Photo] = {}
    classes: dict[str, None] = {}
    for path in files.with_suffix(".json"):
        with report.skip(path):
            data = files.json(path)
            if not isinstance(data, dict) or not isinstance(data.get("images"), list):
                raise Unusable("JSON files that are not COCO")
            if any("segments_info" in entry for entry in (data.get("annotations") or [])[:1]):
                raise Unusable("files of panoptic annotations, which are not read")
            names = _categories(data, path, report)
            classes.update(dict.fromkeys(names.values()))
            _read_file(data, path, names, photos, files, report)
    listed = list(photos.values())
    listed += [Photo(path, split_of(path)) for path in files.unlisted(listed)]
    return Annotations(listed, list(classes))


def _categories(data: dict, path: str, report: Report) -> dict[Any, str]:
    """{id: name} in the order of the ids, without those that stand for two names."""
    names: dict[Any, str] = {}
    clashing = set()
    categories = [entry for entry in data.get("categories") or [] if isinstance(entry, dict)]
    for entry in categories:
        with report.skip(path):
            if names.setdefault(entry["id"], str(entry["name"])) != str(entry["name"]):
                report.add("category ids that stand for two names; their pixels are ignored", path)
                clashing.add(entry["id"])
    used = {entry.get("category_id") for entry in data.get("annotations") or [] if isinstance(entry, dict)}
    for key, name in list(names.items()):
        parents = {entry.get("supercategory") for entry in categories if entry.get("id") != key}
        if key == 0 and key not in used and parents == {name}:  # Roboflow names the project so
            report.add("classes left out, which Roboflow only uses as heading", name)
            clashing.add(key)
    whole = all(isinstance(key, int) for key in names)
    return {key: names[key] for key in sorted(names, key=None if whole else str) if key not in clashing}


def _read_file(
    data: dict, path: str, names: dict[Any, str], photos: dict[str, Photo], files: Files, report: Report
) -> None:
    """Adds the photos of one file, with their regions."""
    by_id: dict[Any, Photo | None] = {}
    here: set[str] = set()
    for entry in data["images"]:
        with report.skip(str(entry.get("file_name")) if isinstance(entry, dict) else path):
            key = entry["id"]
            if key in by_id:
                by_id[key] = None
                raise Unusable("photos whose id belongs to two photos; both are left without annotations")
            by_id[key] = None
            file = files.find(entry["file_name"], path)
            if file in here:
                raise Unusable("photos that are listed twice; the first listing is used")
            here.add(file)
            if file in photos and photos[file].regions is not None:
                raise Unusable("photos that another file has annotated already; the first one is used")
            split = split_of(path, by_name=True)
            split = split if split != "train" else split_of(file)
            photo = Photo(file, split, size=whole_size(entry.get("width"), entry.get("height")))
            photos[file] = by_id[key] = photo
    datumaro = _by_datumaro(data)
    seen = set()
    found: dict[str, list[Region]] = {}
    for entry in data.get("annotations") or []:
        with report.skip(path):
            if entry["image_id"] not in by_id:
                raise Unusable("annotations of photos that are not listed")
            if entry.get("id") in seen:
                report.add("annotation ids that occur twice; both are used", path)
            seen.add(entry.get("id"))
            photo = by_id[entry["image_id"]]
            if photo is None:
                continue  # what is wrong with the photo was told
            with report.skip(photo.file):
                region = _region(entry, photo, names, datumaro, files, report)
                found.setdefault(photo.file, []).append(region)
    for file, regions in found.items():
        photos[file].regions = regions


def _by_datumaro(data: dict) -> bool:
    """Whether Datumaro, which CVAT exports with, wrote the file: it leaves the facts about the dataset empty."""
    info, licenses = data.get("info"), data.get("licenses")
    empty = {"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""}
    return info == empty and licenses == [{"name": "", "id": 0, "url": ""}]


def _region(
    entry: dict, photo: Photo, names: dict[Any, str], datumaro: bool, files: Files, report: Report
) -> Region:
    shape, label, layer = entry.get("segmentation"), names.get(entry["category_id"]), 0
    if label is None:
        report.add("annotations of an unknown class, whose pixels are ignored (255)", photo.file)
    marks_masks = datumaro or "attributes" in entry  # which CVAT adds
    if entry.get("iscrowd") and not (marks_masks and isinstance(shape, dict)):
        label, layer = None, -1
    if isinstance(shape, dict):
        width, height = photo.size or files.shown_size(photo.file)
        if list(map(int, shape["size"])) != [height, width]:
            raise Unusable("masks of another size than their photo")
        counts = shape["counts"]
        decode = from_coco_string if isinstance(counts, str) else from_runs
        return Region(label, bitmap=lambda: tight(decode(counts, height, width)), layer=layer)
    polygons = []
    for points in shape or []:
        with report.skip(photo.file):
            polygons.append(polygon(points))
    if polygons:
        return Region(label, polygons, layer=layer)
    if shape or not entry.get("bbox"):
        raise Unusable("annotations without an outline")
    report.add(BOXES, photo.file)
    return Region(None, [rectangle(*map(float, entry["bbox"]))], layer=-1)
