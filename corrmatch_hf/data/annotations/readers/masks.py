"""Masks as pictures, with a file that names their values.

CVAT's "Segmentation mask" is PASCAL VOC's layout with labelmap.txt, which gives each class its colour. Roboflow's
"Semantic Segmentation Masks" has a.jpg beside a_mask.png, and _classes.csv with the value of each class.
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from PIL import Image

from ....errors import InputError
from ..form import Annotations, Files, Photo, Region, Report, Unusable, split_of

BORDER = 224 << 16 | 224 << 8 | 192  # PASCAL VOC's colour of what does not count
VOC_IGNORED = ("ignored", "void")
UNNAMED = "masks with values that the list of classes does not name; these pixels are ignored (255)"
Masks = Mapping[int, "str | None"]  # value or colour: class, None to ignore


def read_voc(files: Files, report: Report) -> Annotations:
    maps = [path for path in files.with_suffix(".txt") if posixpath.basename(path) == "labelmap.txt"]
    if not maps:
        raise InputError(f"{files.root} contains no labelmap.txt.")
    root = posixpath.dirname(maps[0])
    names, colors = _labelmap(files.required_text(maps[0]), report)
    masks = {path for path in files.pictures if path.startswith(posixpath.join(root, "SegmentationClass/"))}
    objects = posixpath.join(root, "SegmentationObject/")
    others = [path for path in files.pictures if path not in masks and not path.startswith(objects)]
    splits = _image_sets(files)
    photos, taken = [], set()
    stems: dict[str, list[str]] = {}
    for path in others:
        stems.setdefault(posixpath.basename(_stem(path)), []).append(path)
    for mask in sorted(masks):
        with report.skip(mask):
            stem = _stem(mask)[len(posixpath.join(root, "SegmentationClass/")) :]
            found = [
                path
                for path in stems.get(posixpath.basename(stem), [])
                if f"/{_stem(path)}".endswith(f"/{stem}")
            ]
            if len(found) != 1:
                raise Unusable(
                    "masks whose photo is missing" if not found else "masks that fit several photos"
                )
            taken.add(found[0])
            regions = _reader(files, mask, colors, dict(enumerate(names)), report)
            photos.append(Photo(found[0], splits.get(stem, "train"), regions))
    photos += [Photo(path, split_of(path)) for path in others if path not in taken]
    return Annotations(photos, [name for name in names if name.lower() not in VOC_IGNORED])


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]


def _labelmap(text: str, report: Report) -> tuple[list[str], Masks]:
    """Lines `name:r,g,b:parts:actions` -> the names, and {colour: class}; without colours, PASCAL VOC's in order."""
    from ...masks import voc_colors

    names: list[str] = []
    colors: dict[int, str | None] = {BORDER: None}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, color, *_ = [*line.rsplit(":", 3), "", ""]
        with report.skip("labelmap.txt"):
            names.append(name)
            red, green, blue = map(int, color.split(",")) if color.strip() else voc_colors()[len(names) - 1]
            colors[red << 16 | green << 8 | blue] = None if name.lower() in VOC_IGNORED else name
    return names, colors


def _image_sets(files: Files) -> dict[str, str]:
    """{stem of a photo: split} of ImageSets/Segmentation/*.txt."""
    splits = {}
    for path in files.with_suffix(".txt"):
        if "ImageSets" in path.split("/"):
            for line in files.required_text(path).splitlines():
                splits.setdefault(line.strip(), split_of(posixpath.basename(path), by_name=True))
    return splits


def read_roboflow(files: Files, report: Report) -> Annotations:
    photos, classes = [], {}
    for path in files.with_suffix("_classes.csv"):
        with report.skip(path):
            folder = posixpath.dirname(path)
            rows = list(csv.reader(io.StringIO(files.text(path)), skipinitialspace=True))[1:]
            values: Masks = {int(row[0]): row[1].strip() for row in rows if row}
            classes.update(dict.fromkeys(values[value] for value in sorted(values)))
            here = [file for file in files.pictures if posixpath.dirname(file) == folder]
            masks = {_stem(file)[: -len("_mask")]: file for file in here if _stem(file).endswith("_mask")}
            for file in sorted(set(here) - set(masks.values())):
                mask = masks.pop(_stem(file), None)
                regions = None if mask is None else _reader(files, mask, {}, values, report)
                photos.append(Photo(file, split_of(file), regions))
            for mask in masks.values():
                report.add("masks whose photo is missing", mask)
    return Annotations(photos, list(classes))


def _reader(
    files: Files, mask: str, colors: Masks, values: Masks, report: Report
) -> Callable[[], list[Region]]:
    """A function that reads a mask: RGB and palette pictures by their colours if there are any, others by value."""

    def read() -> list[Region]:
        from ...images import open_picture

        try:
            picture = open_picture(str(files.root / mask), mask)
        except InputError as error:
            raise Unusable("masks that cannot be read") from error
        if colors and picture.mode in ("P", "RGB", "RGBA"):
            found = _by_meaning(_codes(picture), colors)
            if None not in found or picture.mode != "P":
                return _regions(found, mask, report)
        array = np.asarray(picture)
        if array.ndim != 2:
            raise Unusable("masks in colours, though the list of classes names none")
        return _regions(_by_meaning(array.astype(np.int64), values), mask, report)

    return read


def _codes(picture: Image.Image) -> np.ndarray:
    """(H, W) int, one number for each colour."""
    rgb = np.asarray(picture.convert("RGB")).astype(np.int64)
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]


def _by_meaning(codes: np.ndarray, meaning: Masks) -> dict[tuple | None, np.ndarray]:
    """{(class,): its pixels}, (None,) for those to ignore and None for those whose value has no meaning."""
    found: dict[tuple | None, np.ndarray] = {}
    for code in np.unique(codes).tolist():
        key = (meaning[code],) if code in meaning else None
        pixels = codes == code
        found[key] = found[key] | pixels if key in found else pixels
    return found


def _at_corner(pixels: np.ndarray) -> tuple[np.ndarray, int, int]:
    return pixels, 0, 0


def _regions(found: Mapping[tuple | None, np.ndarray], mask: str, report: Report) -> list[Region]:
    if None in found:
        report.add(UNNAMED, mask)
    return [
        Region(None if key is None else key[0], bitmap=partial(_at_corner, pixels))
        for key, pixels in found.items()
    ]
