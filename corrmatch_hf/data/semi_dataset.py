"""What every source of data is turned into: labelled, unlabelled and validation images, and class names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..errors import InputError
from .images import read_photo
from .masks import Color, MaskFormat


@dataclass(frozen=True)
class SemiDataset:
    """A dataset with few labels.

    `labeled` and `validation` are `datasets.Dataset`s with the columns `image`, `label` and `file`;
    `unlabeled` has `image` and `file` and may be a `datasets.IterableDataset`. Formats and transforms set on
    them are not applied. The masks are described by `ignore_index`, `reduce_labels`, `label_colors` and
    `ignore_colors` (see `MaskFormat`); `id2label` names the ids 0 ... K-1 that come out. `hub_id` is "user/name"
    where the images come from the Hub.
    """

    labeled: datasets.Dataset
    unlabeled: datasets.Dataset | datasets.IterableDataset | None
    validation: datasets.Dataset | None
    id2label: dict[int, str]
    ignore_index: int = 255
    reduce_labels: bool = False
    label_colors: tuple[Color, ...] | None = None
    ignore_colors: tuple[Color, ...] = ()
    name: str = "dataset"
    hub_id: str | None = None

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
            self.num_labels, self.ignore_index, self.reduce_labels, self.label_colors, self.ignore_colors
        )

    def read_labeled(self, row: dict) -> tuple[Image.Image, np.ndarray]:
        """A row of `labeled` or `validation` -> RGB image and (H, W) ids; InputError if sizes differ."""
        if row["label"] is None:
            raise InputError(f"The labelled image {row['file']} has no mask.")
        image = read_photo(row["image"], row["file"])
        mask = self.mask_format.read(row["label"], mask_file(row))
        self.check_sizes(row, image, mask)
        return image, mask

    @staticmethod
    def check_sizes(row: dict, image: Image.Image, mask: np.ndarray) -> None:
        """Raises InputError if image and mask of a row differ in size."""
        if mask.shape != (image.height, image.width):
            raise InputError(
                f"Image {row['file']} is {image.width} x {image.height} pixels, but its mask "
                f"{mask_file(row)} is {mask.shape[1]} x {mask.shape[0]}: they must show the same pixels "
                "(after the photo is turned upright by its EXIF orientation)."
            )

    def describe(self) -> str:
        """A line to print: how many images of each kind, and which classes."""
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


def undecoded(dataset: datasets.Dataset | datasets.IterableDataset):
    """The same rows with pictures left as files or bytes, so that a bad one is named when it is decoded."""
    dataset = dataset.with_format(None)
    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset


def spread_rows(
    dataset: datasets.Dataset | datasets.IterableDataset, limit: int | None, stream_limit: int | None = None
) -> Iterator[dict]:
    """At most `limit` rows, undecoded and evenly spread; of a stream its first ones, at most `stream_limit`, too."""
    rows = undecoded(dataset)
    if isinstance(rows, datasets.IterableDataset):
        limits = [number for number in (limit, stream_limit) if number is not None]
        yield from islice(rows_of_stream(rows), min(limits, default=None))
        return
    count = len(rows) if limit is None else min(limit, len(rows))
    for i in np.unique(np.linspace(0, len(rows) - 1, count).astype(int)).tolist():
        yield rows[i]


def rows_of_stream(stream: datasets.IterableDataset) -> Iterator[dict]:
    """Its rows; InputError where it cannot be read on, for whatever reason `datasets` and the network have."""
    try:
        yield from stream
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"The stream of images cannot be read on: {reason_of(error)}.") from error


def reason_of(error: BaseException) -> str:
    """What went wrong in `datasets`, which may hide it behind "an error occurred"."""
    while isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).rstrip(".")


def mask_file(row: dict) -> str:
    """What to call the mask of a row: its own path, or that of the image."""
    label = row["label"]
    path = label.get("path") if isinstance(label, dict) else None
    return path or f"of {row['file']}"


# -------------------- Whole images, one by one, for measuring and predicting.


class EvaluationSet(Dataset):
    """`evaluation_set[i]`: {"image": uint8 (3, H, W), "label": int64 (H, W) or None, "file": str}, full size.

    `dataset` has the columns image, file and, if there are masks, label (as `semi.validation` has); `semi`
    says how to read the masks. Labels are class ids or `semi.ignore_index`. InputError names a bad file.
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
