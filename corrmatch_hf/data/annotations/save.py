"""Label maps as polygons in a folder that annotation tools open, with copies of the photos, to correct by hand."""

from __future__ import annotations

import json
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...text import visible
from .form import BACKGROUND_NAMES
from .outlines import outlines

LABELME_VERSION = "5.5.0"  # the version that LabelMe's files name; newer ones read it


class PolygonFolder:
    """A new folder with photos and their polygons. The class background gets none.

    coco: images/ and annotations.json. labelme: the photos, each with its JSON file.
    """

    def __init__(self, folder: Path, format: str, id2label: Mapping[int, str]):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"{folder} exists and may hold corrections; move it, or give another --output_dir."
            )
        # As `corrmatch import` reads them from id2label.json: without characters that steer a terminal.
        id2label = {i: visible(name) for i, name in id2label.items()}
        for name, count in Counter(id2label.values()).items():
            if count > 1:
                raise InputError(
                    f"The model calls {count} classes {name!r}, which polygons cannot tell apart: give each its own "
                    "name in id2label and label2id of its config.json."
                )
        self._numbers = folder.with_name("id2label.json")
        if self._numbers.exists() and self._numbers.read_text(encoding="utf-8") != _text(id2label):
            raise InputError(
                f"{self._numbers} holds other class numbers, which earlier corrections may need; move it, or give "
                "another --output_dir."
            )
        self.folder, self.format = folder, format
        self.names = {i: name for i, name in id2label.items() if name.lower() not in BACKGROUND_NAMES}
        self._id2label = id2label
        self._first = 0 if 0 not in self.names else 1  # COCO's categories start at 1
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.photos = folder / "images" if format == "coco" else folder

    def add(self, photo: Path, name: str, label_map: np.ndarray) -> None:
        """A photo, copied under its new name without suffix, and its (H, W) class ids, as it is displayed."""
        self.photos.mkdir(parents=True, exist_ok=True)  # not before the first prediction has worked
        file = f"{name}{photo.suffix}"
        shutil.copyfile(photo, self.photos / file)
        height, width = label_map.shape
        if self.format == "labelme":
            shapes = [
                {
                    "label": self.names[number],
                    "points": np.round(points, 2).tolist(),
                    "group_id": None,
                    "description": "",
                    "shape_type": "polygon",
                    "flags": {},
                    "mask": None,
                }
                for number, points in self._polygons(label_map)
            ]
            content = {
                "version": LABELME_VERSION,
                "flags": {},
                "shapes": shapes,
                "imagePath": file,
                "imageData": None,
                "imageHeight": height,
                "imageWidth": width,
            }
            _write(self.folder / f"{name}.json", content)
            return
        image = len(self.images) + 1
        self.images.append({"id": image, "file_name": file, "width": width, "height": height})
        for number, points in self._polygons(label_map):
            low, size = points.min(0), np.ptp(points, axis=0)
            x, y = points.T
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": image,
                    "category_id": number + self._first,
                    "segmentation": [np.round(points, 2).ravel().tolist()],
                    "area": round(abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2, 2),
                    "bbox": [round(float(v), 2) for v in (*low, *size)],
                    "iscrowd": 0,
                }
            )

    def close(self) -> str:
        """Writes what concerns all photos, and beside the folder the numbers of the classes; says what comes next."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.format == "coco":
            categories = [{"id": i + self._first, "name": name} for i, name in self.names.items()]
            content = {"images": self.images, "annotations": self.annotations, "categories": categories}
            _write(self.folder / "annotations.json", content)
        _write(self._numbers, self._id2label)
        command = ["corrmatch", "import", str(self.folder), "NEW", "--id2label", str(self._numbers)]
        return f"polygons: {self.folder}; after correcting them: {shlex.join(command)}"

    def _polygons(self, label_map: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(class id, polygon), the largest polygon first, as tools show later ones on top."""
        found = [
            (number, points)
            for number in np.unique(label_map).tolist()
            if number in self.names
            for points in outlines(label_map == number)
        ]
        yield from sorted(found, key=lambda entry: -float(np.prod(np.ptp(entry[1], axis=0))))


def _write(path: Path, content: Any) -> None:
    path.write_text(_text(content), encoding="utf-8")


def _text(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False)
