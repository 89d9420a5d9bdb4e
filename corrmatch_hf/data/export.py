"""A local folder made ready to be shared: every picture read once, every mask a PNG of class ids."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from tqdm import tqdm

from corrmatch_hf.data.folders import SPLIT_NAMES, Folder, Pair
from corrmatch_hf.data.hub import read_by_datasets
from corrmatch_hf.data.images import read_photo
from corrmatch_hf.data.load import load_semi_dataset
from corrmatch_hf.data.masks import Color
from corrmatch_hf.data.semi_dataset import SemiDataset
from corrmatch_hf.errors import InputError

IGNORED = 255  # in shared masks, as every reader of such datasets expects
SHOWN = 20  # problems that are told one by one
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})


@dataclass(frozen=True)
class ExportedFolder:
    """What `export_folder` makes.

    splits: the columns `image` and `label` (None where there is no mask), as paths, of the splits "train",
        "validation", "test" and "unlabeled" as far as the folder has them.
    pixels: of each split with masks, how many pixels show each class, and at the end how many are ignored.
    masks: of each split, how many images have one.
    rewritten: how many masks are not the folder's own files.
    left_out: splits of the folder with other names.
    """

    splits: datasets.DatasetDict
    id2label: dict[int, str]
    pixels: dict[str, list[int]]
    masks: dict[str, int]
    rewritten: int
    left_out: list[str]


def export_folder(
    folder: str | os.PathLike,
    aside: str | os.PathLike,
    *,
    id2label: Mapping[int, str] | Sequence[str] | str | None = None,
    reduce_labels: bool = False,
    ignore_index: int = 255,
    label_colors: Mapping[int, Color] | Sequence[Color] | str | None = None,
) -> ExportedFolder:
    """All splits of a folder (see `folders.Folder`), with masks of one kind: ids 0 ... K-1, and 255 for 'ignore'.

    Masks that are such PNGs of one channel already stay the files they are; others are written anew below
    `aside`, an empty folder that must live as long as the result. Photos stay as they are. `load_semi_dataset`
    makes the same training set of the result, without options, as of the folder with these.

    Args:
        id2label, reduce_labels, ignore_index, label_colors: what the folder's masks mean, as for
            `load_semi_dataset`.

    Raises:
        InputError: no such folder, no layout that is understood, no training masks, more than 255 classes; or
            pictures that cannot be used: unreadable, an id without a class, mask and photo of different size. All
            of these are named.
    """
    folder = Path(folder)
    layout = Folder(folder)
    if read_by_datasets(str(folder)):
        raise InputError(
            f"{folder} holds tables or metadata that `datasets` reads itself: publish it with "
            "datasets.load_dataset(...).push_to_hub(...)."
        )
    found = {name: pairs for name in SPLIT_NAMES if (pairs := layout.split(name))}
    if "train" not in found:
        there = f"only {', '.join(layout.splits())}" if layout.splits() else "no folder of images"
        raise InputError(
            f"{folder} has no training images, {there}: expected train/images + train/masks, images/train + "
            "masks/train, images + masks, or JPEGImages + SegmentationClass."
        )
    semi = load_semi_dataset(
        data_dir=str(folder),
        id2label=id2label,
        reduce_labels=reduce_labels,
        ignore_index=ignore_index,
        label_colors=label_colors,
    )
    if semi.num_labels > IGNORED:
        raise InputError(
            f"{folder} has {semi.num_labels} classes, but masks of 8 bits hold at most {IGNORED} and 'ignore'."
        )
    work = [(pair, folder, Path(aside), semi) for pairs in found.values() for pair in pairs]
    results = _checked(work)
    splits, pixels, masks, rewritten = datasets.DatasetDict(), {}, {}, 0
    for name, pairs in found.items():
        done = [next(results) for _ in pairs]
        labels = [label for label, _ in done]
        counts = [count for _, count in done if count is not None]
        columns = {"image": [pair.image for pair in pairs], "label": labels}
        splits[name] = datasets.Dataset.from_dict(columns, features=FEATURES)
        masks[name] = len(counts)
        rewritten += sum(label != pair.mask for label, pair in zip(labels, pairs, strict=True))
        if counts:
            pixels[name] = np.sum(counts, axis=0).tolist()
    usual = set().union(*([name, *others] for name, others in SPLIT_NAMES.items()))
    left_out = [name for name in layout.splits() if name not in usual]
    return ExportedFolder(splits, semi.id2label, pixels, masks, rewritten, left_out)


def _checked(work: Sequence[tuple]) -> Iterable[tuple[str | None, np.ndarray | None]]:
    """The results of `_export` in order, or one error that names every picture which cannot be used."""

    def attempt(task: tuple) -> tuple | InputError:
        try:
            return _export(*task)
        except InputError as error:
            return error

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        progress = tqdm(pool.map(attempt, work), total=len(work), desc="checking", unit="image", disable=None)
        results = list(progress)
    problems = [str(result) for result in results if isinstance(result, InputError)]
    if problems:
        more = [f"... and {len(problems) - SHOWN} more."] if len(problems) > SHOWN else []
        head = f"{len(problems)} of {len(work)} images cannot be published:"
        raise InputError("\n".join([head, *problems[:SHOWN], *more]))
    return iter(results)


def _export(pair: Pair, folder: Path, aside: Path, semi: SemiDataset) -> tuple[str | None, np.ndarray | None]:
    """The path of the mask to share, and its pixels of each class and ignored ones; None without a mask."""
    image = {"path": pair.image, "bytes": None}
    if pair.mask is None:
        read_photo(image, pair.image)
        return None, None
    row = {"image": image, "label": {"path": pair.mask, "bytes": None}, "file": pair.image}
    _, ids = semi.read_labeled(row)
    values = np.where(ids == semi.ignore_index, IGNORED, ids).astype(np.uint8)
    counts = np.bincount(values.ravel(), minlength=IGNORED + 1)
    counts = np.append(counts[: semi.num_labels], counts[IGNORED])
    if _is_stored(pair.mask, values):
        return pair.mask, counts
    path = aside / Path(pair.mask).relative_to(folder).with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return str(path), counts


def _is_stored(path: str, values: np.ndarray) -> bool:
    """Whether the file is a PNG of one channel with just these values."""
    with Image.open(path) as picture:
        plain = picture.format == "PNG" and picture.mode in ("L", "P")
        return plain and np.array_equal(np.asarray(picture), values)
