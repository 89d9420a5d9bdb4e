"""LabelMe: one JSON file for each photo. Later shapes lie on top of earlier ones.

Points are in the photo as LabelMe displays it, upright. A file without shapes means that all of it is background.
"""

from __future__ import annotations

import posixpath

import numpy as np

from ..bitmaps import from_picture
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


def read(files: Files, report: Report) -> Annotations:
    photos: dict[str, Photo] = {}
    names: set[str] = set()
    for path in files.with_suffix(".json"):
        with report.skip(path):
            data = files.json(path)
            if not isinstance(data, dict) or "shapes" not in data:
                raise Unusable("JSON files that are not LabelMe's")
            file = files.find(data["imagePath"], path)
            if file in photos:
                raise Unusable("files of a photo that has annotations already")
            size = whole_size(data.get("imageWidth"), data.get("imageHeight")) or files.shown_size(file)
            photo = photos[file] = Photo(file, split_of(path), [], size)
            found = []
            for layer, shape in enumerate(data["shapes"]):
                with report.skip(path):
                    found.append(_region(shape, layer, size))
            photo.regions = found if found or not data["shapes"] else None
            names |= {region.label for region in found}
    listed = list(photos.values())
    listed += [Photo(path, split_of(path)) for path in files.unlisted(listed)]
    return Annotations(listed, _ordered(files, names))


def _ordered(files: Files, names: set[str]) -> list[str]:
    """The order of labels.txt, the file that LabelMe is started with, if there is one; else that of the alphabet."""
    lists = [path for path in files.with_suffix(".txt") if posixpath.basename(path) == "labels.txt"]
    given = [
        line.strip() for path in lists[:1] for line in files.required_text(path).splitlines() if line.strip()
    ]
    return [*dict.fromkeys(given), *sorted(names - set(given))]


def _region(shape: dict, layer: int, size: tuple[int, int]) -> Region:
    label, points, kind = str(shape["label"]), shape["points"], shape.get("shape_type") or "polygon"
    if kind in ("polygon", "oriented_rectangle"):
        return Region(label, [polygon(points)], layer=layer)
    if kind not in ("rectangle", "circle", "mask"):
        raise Unusable("shapes that have no area (points and lines)")
    (x, y), (end_x, end_y) = np.asarray(points, dtype=np.float64).reshape(2, 2)
    if not np.isfinite([x, y, end_x, end_y]).all():
        raise Unusable("polygons with points that are not finite numbers")
    if kind == "rectangle":
        return Region(label, [polygon([[x, y], [end_x, y], [end_x, end_y], [x, end_y]])], layer=layer)
    if kind == "circle":
        radius = float(np.hypot(end_x - x, end_y - y))
        return Region(label, [ellipse(x, y, radius, radius)], layer=layer)
    picture, left, top = shape["mask"], int(x), int(y)
    return Region(label, bitmap=lambda: (from_picture(picture, size), left, top), layer=layer)
