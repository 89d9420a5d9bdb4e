"""The common form of every data source: labelled, unlabelled and validation images, and class names."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TypeAlias

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..errors import InputError
from .images import read_photo
from .masks import Color, MaskFormat

AnyDataset: TypeAlias = datasets.Dataset | datasets.IterableDataset


@dataclass(frozen=True)
class SemiDataset:
    """A dataset with few labels.

    `labeled` and `validation` are `datasets.Dataset`s with the columns `image`, `label` and `file`;
    `unlabeled` has `image` and `file` and may be a `datasets.IterableDataset`. Formats and transforms set on
    them are not applied. `ignore_index`, `reduce_labels`, `label_colors`, `ignore_colors`, `label_ids` and
    `ignored_ids` describe the masks (see `MaskFormat`); `id2label` names the class ids 0 ... K-1. `hub_id` is
    "user/name" if the images come from the Hub. `notes` says what was assumed about the data, a sentence each.
    `diagnosis` has the columns of `labeled`, for unlabelled images whose masks are known: methods count by them and
    never train on them.
    """

    labeled: datasets.Dataset
    unlabeled: AnyDataset | None
    validation: datasets.Dataset | None
    id2label: dict[int, str]
    ignore_index: int = 255
    reduce_labels: bool = False
    label_colors: tuple[Color, ...] | None = None
    ignore_colors: tuple[Color, ...] = ()
    name: str = "dataset"
    hub_id: str | None = None
    label_ids: tuple[int, ...] | None = None
    ignored_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    diagnosis: datasets.Dataset | None = None

    def __post_init__(self):
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise InputError(
                f"id2label names the ids {sorted(self.id2label)}, but they must be 0 to "
                f"{len(self.id2label) - 1}, each once: 'ignore' has no name, and --reduce_labels shifts ids "
                "that start at 1."
            )
        if self.label_colors is not None and len(self.label_colors) != len(self.id2label):
            raise InputError(
                f"--label_colors gives {len(self.label_colors)} colours, but there are {len(self.id2label)} "
                "classes."
            )

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @cached_property
    def mask_format(self) -> MaskFormat:
        return MaskFormat(
            self.num_labels,
            self.ignore_index,
            self.reduce_labels,
            self.label_colors,
            self.ignore_colors,
            self.label_ids,
            self.ignored_ids,
        )

    def missing_images(self, need_unlabeled: bool) -> list[str]:
        """Why training cannot start, one sentence each without the full stop: a set without a single image."""
        missing = []
        if len(self.labeled) == 0:
            missing.append(f"{self.name} has no labelled images: give at least one image with a mask")
        pool = self.unlabeled
        if need_unlabeled and (pool is None or (isinstance(pool, datasets.Dataset) and len(pool) == 0)):
            missing.append(
                f"{self.name} has no unlabelled images: give --labeled_fraction, --labeled_count, --unlabeled_list or "
                "--extra_unlabeled, or train with --method supervised"
            )
        return missing

    @cached_property
    def identity(self) -> dict[str, str]:
        """What tells these data from others, for each part: the number of images and a digest of names and sizes.

        Paths count from the folder that the files of a part share, so that a folder that was moved stays the same.
        """
        parts = {"labelled": self.labeled, "unlabelled": self.unlabeled, "validation": self.validation}
        classes = hashlib.sha256(repr((self.id2label, self.mask_format)).encode()).hexdigest()[:16]
        found = {"classes": f"{self.num_labels}, {classes}"}
        for name, part in parts.items():
            if part is None:
                found[name] = "none"
            elif isinstance(part, datasets.IterableDataset):
                found[name] = "a stream"
            else:
                found[name] = f"{len(part)} images, {_digest(part)}"
        return found

    def read_labeled(self, row: dict) -> tuple[Image.Image, np.ndarray]:
        """A row of `labeled` or `validation` -> RGB image and (H, W) class ids of the same size."""
        if row["label"] is None:
            raise InputError(f"The labelled image {row['file']} has no mask.")
        image = read_photo(row["image"], row["file"])
        mask = self.mask_format.read(row["label"], mask_file(row))
        check_sizes(row, image, mask)
        return image, mask

    def describe(self) -> str:
        """One line to print: the number of images of each kind, and the classes."""
        if self.unlabeled is None:
            unlabeled = "no unlabelled images"
        elif isinstance(self.unlabeled, datasets.IterableDataset):
            unlabeled = "a stream of unlabelled images"
        else:
            unlabeled = f"{len(self.unlabeled)} unlabelled"
        validation = (
            "no validation images" if self.validation is None else f"{len(self.validation)} validation"
        )
        names = list(self.id2label.values())
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        counts = f"{len(self.labeled)} labelled, {unlabeled}, {validation}"
        return f"{self.name}: {counts}; {len(names)} classes ({listed})"


def _digest(part: datasets.Dataset) -> str:
    """A digest of the names of the images of a part, and of the sizes of the files that are local."""
    files = part["file"][:]
    folder = os.path.dirname(os.path.commonprefix(files))  # noqa: RUF071  (its folder is meant)
    digest = hashlib.sha256()
    for file in files:
        try:  # one look at the disk: with a million files, the system remembers none of them
            found = os.stat(file)
            size = found.st_size if stat.S_ISREG(found.st_mode) else -1
        except (OSError, ValueError):  # of a Hub dataset, or no name that the system allows
            size = -1
        digest.update(f"{file[len(folder) :]}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


class EvaluationSet(Dataset):
    """Whole images, one by one, for evaluating and predicting.

    `evaluation_set[i]`: {"image": uint8 (3, H, W), "label": int64 (H, W) or None, "file": str} in full size. Labels
    are class ids or `semi.ignore_index`. An unreadable file raises an InputError that names it.

    Args:
        dataset: with the columns `image`, `file` and, if there are masks, `label`, as `semi.validation` has them.
        semi: describes the masks.
    """

    def __init__(self, dataset: datasets.Dataset, semi: SemiDataset):
        self.rows, self.semi = undecoded(dataset), semi

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        row = self.rows[i]
        if row.get("label") is None:
            image, label = read_photo(row["image"], row["file"]), None
        else:
            image, mask = self.semi.read_labeled(row)
            label = torch.from_numpy(mask.astype(np.int64))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return {"image": pixels, "label": label, "file": row["file"]}


def check_sizes(row: dict, image: Image.Image, mask: np.ndarray) -> None:
    """Raises InputError if the image and the mask of a row differ in size."""
    if mask.shape != (image.height, image.width):
        raise InputError(
            f"Image {row['file']} is {image.width} x {image.height} pixels, but its mask "
            f"{mask_file(row)} is {mask.shape[1]} x {mask.shape[0]}: they must show the same pixels "
            "(after the photo is turned upright by its EXIF orientation)."
        )


def mask_file(row: dict) -> str:
    """The path of a row's mask for messages; if it has none, "of" the path of the image."""
    label = row["label"]
    path = label.get("path") if isinstance(label, dict) else None
    return path or f"of {row['file']}"


def undecoded(dataset: AnyDataset) -> AnyDataset:
    """The same rows with pictures as paths or bytes, so that decoding errors can name the file."""
    dataset = dataset.with_format(None)
    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset


def spread_rows(dataset: AnyDataset, limit: int | None, stream_limit: int | None = None) -> Iterator[dict]:
    """At most `limit` undecoded rows, evenly spread; of a stream the first ones, and at most `stream_limit`."""
    rows = undecoded(dataset)
    if isinstance(rows, datasets.IterableDataset):
        limits = [number for number in (limit, stream_limit) if number is not None]
        yield from islice(rows_of_stream(rows), min(limits, default=None))
        return
    count = len(rows) if limit is None else min(limit, len(rows))
    for i in np.unique(np.linspace(0, len(rows) - 1, count).astype(int)).tolist():
        yield rows[i]


def rows_of_stream(stream: datasets.IterableDataset) -> Iterator[dict]:
    """The rows of a stream; whatever `datasets` or the network raises becomes an InputError."""
    try:
        yield from stream
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"The stream of images cannot be read on: {reason_of(error)}.") from error


def reason_of(error: BaseException) -> str:
    """The message of an error of `datasets`, which may wrap the cause in "an error occurred"."""
    while isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).rstrip(".")
