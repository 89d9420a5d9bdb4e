"""CVAT for images: annotations.xml. Objects lie in the order of `z_order`, smaller ones on top within one.

Points are in the photo as CVAT displays it, upright. A photo without objects is unlabelled.
"""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np

from ..bitmaps import from_runs
from ..form import (
    Annotations,
    Files,
    Photo,
    Region,
    Report,
    Unusable,
    ellipse,
    polygon,
    split_of,
    whole_size,
)

AREAS = ("polygon", "box", "ellipse", "mask")
LINES = ("polyline", "points", "cuboid", "skeleton")


def read(files: Files, report: Report) -> Annotations:
    photos: dict[str, Photo] = {}
    classes: dict[str, None] = {}
    for path in files.with_suffix(".xml"):
        with report.skip(path):
            try:
                root = ElementTree.fromstring(files.text(path))
            except ElementTree.ParseError as error:
                raise Unusable("files that are not valid XML") from error
            if root.tag != "annotations":
                raise Unusable("XML files that are not CVAT's")
            meta = root.find("meta")
            labels = [] if meta is None else [label.findtext("name") for label in meta.iter("label")]
            for element in root.iter("image"):
                with report.skip(element.get("name", path)):
                    photo = _photo(element, path, files)
                    if photo.file in photos:
                        raise Unusable("photos that are listed twice; the first listing is used")
                    photos[photo.file] = photo
                    photo.regions = _regions(element, photo, files, report) or None
                    labels += [region.label for region in photo.regions or []]
            classes.update(dict.fromkeys(label for label in labels if label))
    listed = list(photos.values())
    listed += [Photo(path, split_of(path)) for path in files.unlisted(listed)]
    return Annotations(listed, list(classes))


def _photo(element: ElementTree.Element, path: str, files: Files) -> Photo:
    name, subset = element.attrib["name"], element.get("subset", "")
    size = whole_size(float(element.get("width", 0)), float(element.get("height", 0)))
    near = f"images/{subset}/{path}" if subset else path
    split = split_of(f"{subset}/{name}") if subset else split_of(path, by_name=True)
    return Photo(files.find(name, near), split, size=size)


def _regions(element: ElementTree.Element, photo: Photo, files: Files, report: Report) -> list[Region]:
    regions = []
    for shape in element:
        with report.skip(photo.file):
            if shape.tag in AREAS:
                regions.append(_region(shape, photo.size or files.shown_size(photo.file)))
            elif shape.tag in LINES:
                raise Unusable("shapes that have no area (points and lines)")
    return regions


def _region(shape: ElementTree.Element, size: tuple[int, int]) -> Region:
    get, label = shape.attrib, shape.attrib["label"]
    layer = int(get.get("z_order", 0))
    if shape.tag == "mask":
        left, top, width, height = (int(get[key]) for key in ("left", "top", "width", "height"))
        runs = np.array(get["rle"].split(","), dtype=np.int64)
        if not (0 < width <= size[0] and 0 < height <= size[1]):
            raise Unusable("masks that are larger than their photo")
        return Region(label, bitmap=lambda: (from_runs(runs, height, width, "C"), left, top), layer=layer)
    if shape.tag == "ellipse":
        x, y, radius_x, radius_y = (float(get[key]) for key in ("cx", "cy", "rx", "ry"))
        outline = ellipse(x, y, radius_x, radius_y, float(get.get("rotation", 0)))
    elif shape.tag == "box":
        left, top, right, bottom = (float(get[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        angle = np.deg2rad(float(get.get("rotation", 0)))  # around the middle
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        outline = polygon((corners - corners.mean(0)) @ turn + corners.mean(0))
    else:
        outline = polygon([point.split(",") for point in get["points"].split(";")])
    return Region(label, [outline], layer=layer)
