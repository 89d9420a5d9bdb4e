"""Label Studio: its JSON export, with polygons, brush masks, ellipses and rectangles in percent of the photo.

Later regions lie on top. Of several annotations of a task, the latest that was not cancelled counts; an empty one means
that all of the photo is background. Predictions are not used.
"""

from __future__ import annotations

import posixpath
import re
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from ..bitmaps import from_label_studio
from ..draw import tight
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
    classes: dict[str, None] = {}
    for path in files.with_suffix(".json"):
        with report.skip(path):
            tasks = files.json(path)
            if not isinstance(tasks, list):
                raise Unusable("JSON files that are not Label Studio's export")
            for task in tasks:
                with report.skip(path):
                    photo = _photo(task, path, files)
                    if photo.file in photos:
                        raise Unusable("tasks of a photo that another task has already")
                    photos[photo.file] = photo
                    results = _results(task, photo.file, report)
                    if results is not None:
                        photo.regions = _regions(results, photo, files, report)
                        found = [region.label for region in photo.regions or []]
                        classes.update(dict.fromkeys(label for label in found if label))
    listed = list(photos.values())
    listed += [Photo(path, split_of(path)) for path in files.unlisted(listed)]
    return Annotations(listed, sorted(classes))


def _photo(task: dict, path: str, files: Files) -> Photo:
    """The photo of a task. Label Studio puts eight characters before the names of uploaded files."""
    from ...images import suffixes

    if "data" not in task:
        raise Unusable("tasks without data (of Label Studio's exports, choose JSON, not JSON-MIN)")
    texts = [value for value in (task["data"].get("image"), *task["data"].values()) if isinstance(value, str)]
    names = []
    for text in texts:
        address = urlsplit(text)
        name = parse_qs(address.query).get("d", [unquote(address.path)])[0]
        if posixpath.splitext(name)[1].lower() in suffixes():
            names.append(posixpath.basename(name.replace("\\", "/")))
    if not names:
        raise Unusable("annotations without the name of their photo")
    try:
        file = files.find(names[0], path)
    except Unusable:
        file = files.find(re.sub(r"^[0-9a-f]{8}-", "", names[0]), path)
    return Photo(file, split_of(file))


def _results(task: dict, file: str, report: Report) -> list[dict] | None:
    done = task.get("annotations") or task.get("completions") or []
    done = [entry for entry in done if isinstance(entry, dict) and not entry.get("was_cancelled")]
    if len(done) > 1:
        report.add("photos with several annotations, of which the latest is used", file)
    if not done:
        return None
    return max(done, key=lambda entry: str(entry.get("updated_at") or entry.get("created_at") or ""))[
        "result"
    ]


def _regions(results: list[dict], photo: Photo, files: Files, report: Report) -> list[Region] | None:
    """The regions of a task; None if none of its results can be used."""
    # A region drawn by a tag without labels has a second result of the same id, which names its class.
    labels: dict[str, str] = {}
    shapes: dict[str, dict] = {}
    for number, result in enumerate(results):
        with report.skip(photo.file):
            value = result["value"]
            key = str(result.get("id", number))
            named = [v for k, v in value.items() if k.endswith("labels") and isinstance(v, list) and v]
            if named:
                labels[key] = str(named[0][0])
            if {"points", "rle", "radiusX", "width"} & value.keys():
                shapes[key] = result
    regions = []
    for layer, (key, result) in enumerate(shapes.items()):
        with report.skip(photo.file):
            region = _region(result, labels.get(key), photo, files)
            region.layer = layer
            if region.label is None:
                report.add("annotations of an unknown class, whose pixels are ignored (255)", photo.file)
            regions.append(region)
    return regions if regions or not results else None


def _region(result: dict, label: str | None, photo: Photo, files: Files) -> Region:
    value = result["value"]
    if result.get("image_rotation"):
        raise Unusable("annotations of photos that were turned in Label Studio")
    photo.size = photo.size or whole_size(result.get("original_width"), result.get("original_height"))
    width, height = photo.size or files.shown_size(photo.file)
    scale = np.array([width, height]) / 100
    if "rle" in value:
        runs = value["rle"]
        return Region(label, bitmap=lambda: tight(from_label_studio(runs, height, width)))
    if "points" in value:
        return Region(label, [polygon(np.asarray(value["points"], dtype=np.float64) * scale)])
    x, y = np.array([value["x"], value["y"]], dtype=np.float64) * scale
    degrees = float(value.get("rotation") or 0)
    if "radiusX" in value:
        radii = np.array([value["radiusX"], value["radiusY"]], dtype=np.float64) * scale
        return Region(label, [ellipse(x, y, float(radii[0]), float(radii[1]), degrees)])
    w, h = np.array([value["width"], value["height"]], dtype=np.float64) * scale
    angle = np.deg2rad(degrees)  # around the upper left corner
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return Region(label, [polygon(np.array([[0, 0], [w, 0], [w, h], [0, h]]) @ turn + (x, y))])
