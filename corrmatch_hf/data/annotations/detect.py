"""Which annotation format a folder holds, from its names and the ends of a few files."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator

FORMATS = {
    "coco": "COCO JSON, as of Roboflow, CVAT, Label Studio and many others",
    "labelme": "LabelMe, one JSON file for each photo",
    "voc_masks": "masks in colours with labelmap.txt, as CVAT's 'Segmentation mask'",
    "roboflow_masks": "Roboflow's 'Semantic Segmentation Masks' with _classes.csv",
    "yolo": "YOLO segmentation, one .txt file for each photo and data.yaml",
    "cvat": "CVAT for images, XML",
    "label_studio": "Label Studio JSON",
    "supervisely": "Supervisely, meta.json and a folder 'ann'",
    "via": "VGG Image Annotator (VIA) JSON",
}
DEPTH = 4  # folders below the given one
FOLDERS, ENTRIES = 200, 100_000  # folders whose names are read, and names in each
READ = 40  # JSON and XML files whose ends are read
PART = 1 << 16  # bytes at each end of a file
# Words of which at least two stand near the ends of a JSON file of this format, in the order in which they are tried.
KEYS = {
    "labelme": ("shapes", "imagePath", "imageHeight"),
    "via": ("_via_img_metadata", "_via_settings", "shape_attributes", "file_attributes", "region_attributes"),
    "label_studio": ("annotations", "completions", "result", "original_width", "file_upload", "from_name"),
    "coco": ("images", "annotations", "categories", "category_id", "image_id"),
}


def detect(folder: str | os.PathLike) -> str | None:
    """The name in FORMATS of the annotations in a folder; None if there are none, or the folder cannot be read."""
    read = 0
    for names, path in _files(str(folder)):
        if found := _by_names(names, path):
            return found
        for name in names:
            suffix = name.lower().rpartition(".")[2]
            if suffix in ("json", "xml") and read < READ:
                read += 1
                if found := _by_content(os.path.join(path, name), suffix):
                    return found
    return None


def _files(folder: str) -> Iterator[tuple[list[str], str]]:
    """(names of the files, folder), a folder before those inside it; hidden ones are left out."""
    waiting = [(0, folder)]
    for depth, path in waiting:
        files = []
        try:
            with os.scandir(path) as entries:
                for entry in itertools.islice(entries, ENTRIES):
                    if entry.name.startswith((".", "__MACOSX")):
                        continue
                    if entry.is_file():
                        files.append(entry.name)
                    elif entry.is_dir() and depth < DEPTH and len(waiting) < FOLDERS:
                        waiting.append((depth + 1, entry.path))
        except OSError:
            continue
        yield sorted(files), path


def _by_names(names: list[str], path: str) -> str | None:
    present = set(names)
    if "_classes.csv" in present and any(name.endswith("_mask.png") for name in names):
        return "roboflow_masks"
    if "labelmap.txt" in present and "SegmentationClass" in _folders(path):
        return "voc_masks"
    if "meta.json" in present and any(os.path.isdir(os.path.join(path, p, "ann")) for p in _folders(path)):
        return "supervisely"
    if present & {"data.yaml", "data.yml", "dataset.yaml", "classes.txt"} and _has_label_files(path):
        return "yolo"
    return None


def _folders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []


def _has_label_files(path: str) -> bool:
    """Whether a folder named labels below `path` has a text file, a few folders deeper."""
    for names, folder in _files(path):
        if "labels" in folder[len(path) :].split(os.sep) and any(name.endswith(".txt") for name in names):
            return True
    return False


def _by_content(path: str, suffix: str) -> str | None:
    try:
        with open(path, "rb") as file:
            text = file.read(PART)
            size = os.fstat(file.fileno()).st_size
            if size > PART:
                file.seek(max(PART, size - PART))
                text += b"\n" + file.read(PART)
    except OSError:
        return None
    if suffix == "xml":
        return "cvat" if b"<annotations>" in text and b"<image " in text else None
    keys = {match.decode("ascii", "ignore") for match in re.findall(rb'"(\w{1,30})"\s*:', text)}
    for name, wanted in KEYS.items():
        start = b"[" if name == "label_studio" else b"{"
        if len(keys.intersection(wanted)) >= 2 and text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(start):
            return name
    return None
