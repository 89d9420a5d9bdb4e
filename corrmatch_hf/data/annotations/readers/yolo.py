"""YOLO segmentation: images/.../a.jpg, labels/.../a.txt, data.yaml or classes.txt with the names of the classes.

A line is a class and the points of one polygon, as shares of the width and height. Smaller objects lie on top. An empty
file means that all of the photo is background; a photo without a file is unlabelled.
"""

from __future__ import annotations

import posixpath

import numpy as np
import yaml

from ....errors import InputError
from ..form import Annotations, Files, Photo, Region, Report, Unusable, polygon, rectangle, split_of
from .coco import BOXES


def read(files: Files, report: Report) -> Annotations:
    names = _names(files, report)
    texts = {path for path in files.with_suffix(".txt") if "labels" in path.split("/")}
    photos = []
    for file in files.pictures:
        with report.skip(file):
            photo = Photo(file, split_of(file))
            photos.append(photo)
            text = _label_file(file)
            if text in texts:
                texts.remove(text)
                width, height = files.shown_size(file)
                photo.regions = _regions(files.text(text), text, names, (width, height), report)
    for text in sorted(texts):
        report.add("label files whose photo is missing", text)
    return Annotations(photos, [names[key] for key in sorted(names)])


def _names(files: Files, report: Report) -> dict[int, str]:
    for path in files.with_suffix(".yaml", ".yml"):
        with report.skip(path):
            try:
                names = (yaml.safe_load(files.text(path)) or {}).get("names")
            except yaml.YAMLError as error:
                raise Unusable("files that are not valid YAML") from error
            if names:
                pairs = names.items() if isinstance(names, dict) else enumerate(names)
                # Names only: the text of a nested value can be as long as its author likes.
                return {int(key): str(name) for key, name in pairs if isinstance(name, str | int | float)}
    for path in files.with_suffix(".txt"):
        if posixpath.basename(path) == "classes.txt":  # of Label Studio
            return dict(
                enumerate(line.strip() for line in files.required_text(path).splitlines() if line.strip())
            )
    raise InputError(f"{files.root} contains no data.yaml or classes.txt with the names of the classes.")


def _label_file(file: str) -> str:
    """images/train/a.jpg -> labels/train/a.txt, also train/images/a.jpg -> train/labels/a.txt."""
    parts = posixpath.splitext(file)[0].split("/")
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return "/".join(parts) + ".txt"


def _regions(
    text: str, path: str, names: dict[int, str], size: tuple[int, int], report: Report
) -> list[Region] | None:
    """The objects of one file; None if none of its lines can be used."""
    regions, lines = [], [line.split() for line in text.splitlines() if line.strip()]
    for first, *rest in lines:
        with report.skip(path):
            label, numbers = names.get(int(float(first))), np.asarray(rest, dtype=np.float64)
            if label is None:
                report.add("annotations of an unknown class, whose pixels are ignored (255)", path)
            if len(numbers) == 4:
                center, extent = numbers.reshape(2, 2) * size
                report.add(BOXES, path)
                box = rectangle(*(center - extent / 2), *extent)
                regions.append(Region(None, [box], layer=-1))
            elif len(numbers) % 2:
                raise Unusable("lines that do not hold pairs of numbers")
            else:
                regions.append(Region(label, [polygon(numbers.reshape(-1, 2) * size)]))
    return regions if regions or not lines else None
