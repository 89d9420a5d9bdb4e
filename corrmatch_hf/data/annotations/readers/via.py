"""VGG Image Annotator, version 2: a project or its JSON export. Smaller regions lie on top.

The class is the value of a region's attribute: of the one that most regions have. A photo without regions is
unlabelled.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ..form import Annotations, Files, Photo, Region, Report, Unusable, ellipse, polygon, split_of


def read(files: Files, report: Report) -> Annotations:
    photos: dict[str, Photo] = {}
    found: dict[str, list[dict]] = {}
    for path in files.with_suffix(".json"):
        with report.skip(path):
            data = files.json(path)
            if not isinstance(data, dict):
                raise Unusable("JSON files that are not VIA's")
            for entry in data.get("_via_img_metadata", data).values():
                with report.skip(path):
                    if "filename" not in entry:
                        raise Unusable("JSON files that are not VIA's")
                    file = files.find(entry["filename"], path)
                    if file in photos:
                        raise Unusable("photos that are listed twice; the first listing is used")
                    photos[file] = Photo(file, split_of(file))
                    regions = entry.get("regions") or []  # a mapping in version 1
                    found[file] = list(regions.values() if isinstance(regions, dict) else regions)
    attribute = _class_attribute([region for regions in found.values() for region in regions], report)
    classes: set[str] = set()
    for file, regions in found.items():
        done = []
        for entry in regions:
            with report.skip(file):
                done.append(_region(entry, attribute))
                if done[-1].label is None:
                    report.add("annotations of an unknown class, whose pixels are ignored (255)", file)
        photos[file].regions = done or None
        classes |= {region.label for region in done if region.label}
    listed = list(photos.values())
    listed += [Photo(path, split_of(path)) for path in files.unlisted(listed)]
    return Annotations(listed, sorted(classes))


def _class_attribute(regions: list[Any], report: Report) -> str | None:
    counts: Counter[str] = Counter()
    for region in regions:
        attributes = region.get("region_attributes") if isinstance(region, dict) else None
        counts.update(attributes if isinstance(attributes, dict) else ())
    if len(counts) > 1:
        report.add("attributes of regions, of which the first names the class", ", ".join(counts))
    return counts.most_common(1)[0][0] if counts else None


def _region(entry: dict, attribute: str | None) -> Region:
    shape, value = entry["shape_attributes"], (entry.get("region_attributes") or {}).get(attribute)
    if isinstance(value, dict):  # check boxes
        value = next((name for name, ticked in value.items() if ticked), None)
    label = str(value).strip() or None if value is not None else None
    kind = shape["name"]
    if kind in ("polygon", "polyline"):
        points = np.stack([shape["all_points_x"], shape["all_points_y"]], axis=1)
        if kind == "polygon" or np.array_equal(points[0], points[-1]):
            return Region(label, [polygon(points)])
    if kind == "rect":
        x, y, w, h = (float(shape[key]) for key in ("x", "y", "width", "height"))
        return Region(label, [polygon([[x, y], [x + w, y], [x + w, y + h], [x, y + h]])])
    if kind in ("circle", "ellipse"):
        rx, ry = (shape["r"], shape["r"]) if kind == "circle" else (shape["rx"], shape["ry"])
        turned = float(np.rad2deg(shape.get("theta") or 0))
        return Region(label, [ellipse(float(shape["cx"]), float(shape["cy"]), float(rx), float(ry), turned)])
    raise Unusable("shapes that have no area (points and lines)")
