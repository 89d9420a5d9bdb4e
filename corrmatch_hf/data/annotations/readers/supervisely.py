"""Supervisely: meta.json, and for each dataset the folders img and ann, with ann/a.jpg.json for img/a.jpg.

Later objects lie on top. A photo without objects is unlabelled.
"""

from __future__ import annotations

import posixpath

from ....errors import InputError
from ..bitmaps import from_picture
from ..form import Annotations, Files, Photo, Region, Report, Unusable, polygon, split_of, whole_size


def read(files: Files, report: Report) -> Annotations:
    metas = [path for path in files.with_suffix(".json") if posixpath.basename(path) == "meta.json"]
    if not metas:
        raise InputError(f"{files.root} contains no meta.json.")
    classes = []
    with report.skip(metas[0]):
        classes = [str(entry["title"]) for entry in files.json(metas[0])["classes"]]
    pictures = {path for path in files.pictures if path.split("/")[-2:-1] == ["img"]}
    photos = {path: Photo(path, split_of(path)) for path in sorted(pictures)}
    for path in files.with_suffix(".json"):
        folder, name = posixpath.split(path)
        if posixpath.basename(folder) != "ann":
            continue
        with report.skip(path):
            photo = photos.get(posixpath.join(posixpath.dirname(folder), "img", name[: -len(".json")]))
            if photo is None:
                raise Unusable("annotations whose photo is missing")
            data = files.json(path)
            photo.size = whole_size(data["size"]["width"], data["size"]["height"])
            size = photo.size or files.shown_size(photo.file)
            regions = []
            for layer, entry in enumerate(data["objects"]):
                with report.skip(path):
                    regions.append(_region(entry, layer, size))
            photo.regions = regions or None
            classes += sorted({region.label for region in regions} - set(classes))
    return Annotations(list(photos.values()), classes)


def _region(entry: dict, layer: int, size: tuple[int, int]) -> Region:
    label = str(entry["classTitle"])
    if entry.get("bitmap"):
        picture, (x, y) = entry["bitmap"]["data"], map(int, entry["bitmap"]["origin"])
        return Region(label, bitmap=lambda: (from_picture(picture, size, compressed=True), x, y), layer=layer)
    outer = entry["points"]["exterior"]
    kind = entry.get("geometryType") or "polygon"
    if kind == "rectangle":
        (left, top), (right, bottom) = outer
        return Region(
            label, [polygon([[left, top], [right, top], [right, bottom], [left, bottom]])], layer=layer
        )
    if kind != "polygon":
        raise Unusable("shapes that have no area (points and lines)")
    holes = [polygon(hole) for hole in entry["points"].get("interior") or []]
    return Region(label, [polygon(outer)], holes, layer=layer)
