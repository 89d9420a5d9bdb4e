"""A local folder in the form in which it is published: every picture readable, every mask a PNG of class ids."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from tqdm import tqdm

from ..data.images import read_photo
from ..data.load import load_semi_dataset
from ..data.masks import Color
from ..data.semi_dataset import SemiDataset
from ..data.sources.folders import SPLIT_NAMES, Folder, split_kind
from ..data.sources.hub import read_by_datasets
from ..data.sources.lists import Pair
from ..errors import InputError
from .metadata import without_metadata

IGNORED = 255  # in published masks, the usual value
SHOWN = 20  # errors that are listed
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})


@dataclass(frozen=True)
class ExportedFolder:
    """The result of `export_folder`.

    splits: the folder's splits among "train", "validation", "test" and "unlabeled", with the columns `image` and
        `label` (None for images without mask) as paths.
    pixels: for each split with masks, the number of pixels of each class and, last, of ignored pixels.
    masks: for each split, the number of images with a mask.
    rewritten: the number of masks that are not the folder's own files.
    stripped: the number of photos that held metadata, which are left out.
    left_out: the folder's splits with other names.
    """

    splits: datasets.DatasetDict
    id2label: dict[int, str]
    pixels: dict[str, list[int]]
    masks: dict[str, int]
    rewritten: int
    left_out: list[str]
    stripped: int = 0


def export_folder(
    folder: str | os.PathLike,
    aside: str | os.PathLike,
    *,
    id2label: Mapping[int, str] | Sequence[str] | str | None = None,
    reduce_labels: bool = False,
    ignore_index: int | None = None,
    label_colors: Mapping[int, Color] | Sequence[Color] | str | None = None,
    keep_metadata: bool = False,
) -> ExportedFolder:
    """All splits of a folder (see `Folder`), with uniform masks: class ids 0 ... K-1, and 255 for 'ignore'.

    Masks that already are such PNGs of one channel are used as they are; others are converted to files below `aside`,
    an empty folder that must exist as long as the result is used. So are photos with metadata, such as the place in
    their EXIF; their pixels stay the same (see `metadata.py`). `load_semi_dataset` returns the same data for the
    result, without options, as for the folder with these options.

    Args:
        id2label, reduce_labels, ignore_index, label_colors: the meaning of the folder's masks, see
            `load_semi_dataset`.
        keep_metadata: photos stay the files they are.

    Raises:
        InputError: the folder does not exist, has an unknown layout, no training masks or more than 255 classes; or
            lists all unusable pictures: unreadable files, ids without a class, masks of another size than the photo.
    """
    folder = Path(folder)
    layout = Folder(folder)
    if read_by_datasets(str(folder)):
        raise InputError(
            f"{folder} contains tables or metadata of the library `datasets`: publish it with "
            "datasets.load_dataset(...).push_to_hub(...)."
        )
    found = _splits_with_training(layout, folder)
    semi = load_semi_dataset(
        data_dir=str(folder),
        id2label=id2label,
        reduce_labels=reduce_labels,
        ignore_index=ignore_index,
        label_colors=label_colors,
    )
    if semi.num_labels > IGNORED:
        raise InputError(
            f"{folder} has {semi.num_labels} classes, but 8-bit masks allow at most {IGNORED} and 'ignore'."
        )
    work = [(pair, folder, Path(aside), semi, keep_metadata) for pairs in found.values() for pair in pairs]
    results = iter(_export_all(work))
    splits, pixels, masks, rewritten, stripped = datasets.DatasetDict(), {}, {}, 0, 0
    for name, pairs in found.items():
        done = [next(results) for _ in pairs]
        images, labels = ([row[i] for row in done] for i in range(2))
        counts = [count for _, _, count in done if count is not None]
        columns = {"image": images, "label": labels}
        splits[name] = datasets.Dataset.from_dict(columns, features=FEATURES)
        masks[name] = len(counts)
        rewritten += sum(label != pair.mask for label, pair in zip(labels, pairs, strict=True))
        stripped += sum(image != pair.image for image, pair in zip(images, pairs, strict=True))
        if counts:
            pixels[name] = np.sum(counts, axis=0).tolist()
    left_out = [name for name in layout.splits() if split_kind(name) is None]
    return ExportedFolder(splits, semi.id2label, pixels, masks, rewritten, left_out, stripped)


def _splits_with_training(layout: Folder, folder: Path) -> dict[str, list[Pair]]:
    """The splits that are published, by their usual names; an `InputError` if there are no training images."""
    found = {name: split.pairs for name in SPLIT_NAMES if (split := layout.split(name))}
    if "train" not in found:
        there = f"only {', '.join(layout.splits())}" if layout.splits() else "no folder of images"
        raise InputError(
            f"{folder} has no training images, {there}: expected train/images + train/masks, images/train + "
            "masks/train, images + masks, or JPEGImages + SegmentationClass."
        )
    return found


def _export_all(work: Sequence[tuple]) -> list[tuple[str, str | None, np.ndarray | None]]:
    """The results of `_export` in order, or one error that lists all unusable pictures."""

    def attempt(task: tuple) -> tuple | InputError:
        try:
            return _export(*task)
        except InputError as error:
            return error

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        progress = tqdm(pool.map(attempt, work), total=len(work), desc="checking", unit="image", disable=None)
        attempts = list(progress)
    problems = [str(result) for result in attempts if isinstance(result, InputError)]
    if problems:
        more = [f"... and {len(problems) - SHOWN} more."] if len(problems) > SHOWN else []
        head = f"{len(problems)} of {len(work)} images cannot be published:"
        raise InputError("\n".join([head, *problems[:SHOWN], *more]))
    return [result for result in attempts if not isinstance(result, InputError)]


def _export(
    pair: Pair, folder: Path, aside: Path, semi: SemiDataset, keep_metadata: bool
) -> tuple[str, str | None, np.ndarray | None]:
    """The paths of photo and mask to publish, and the mask's (K + 1,) pixel counts, ignored ones last.

    Without a mask, the last two are None.
    """
    image = {"path": pair.image, "bytes": None}
    if pair.mask is None:
        read_photo(image, pair.image)
        return _file(pair.image, folder, aside, keep_metadata), None, None
    row = {"image": image, "label": {"path": pair.mask, "bytes": None}, "file": pair.image}
    _, ids = semi.read_labeled(row)
    values = np.where(ids == semi.ignore_index, IGNORED, ids).astype(np.uint8)
    counts = np.bincount(values.ravel(), minlength=IGNORED + 1)
    counts = np.append(counts[: semi.num_labels], counts[IGNORED])
    photo = _file(pair.image, folder, aside, keep_metadata)
    if _is_stored(pair.mask, values):
        return photo, _file(pair.mask, folder, aside, keep_metadata), counts
    path = aside / Path(pair.mask).relative_to(folder).with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return photo, str(path), counts


def _file(path: str, folder: Path, aside: Path, keep_metadata: bool) -> str:
    """The path of a picture to publish: the file itself, or a copy without its metadata."""
    if keep_metadata or (found := without_metadata(path)) is None:
        return path
    content, suffix = found
    copy = aside / "without metadata" / (Path(path).relative_to(folder).as_posix() + suffix)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(content)
    return str(copy)


def _is_stored(path: str, values: np.ndarray) -> bool:
    """Whether the file is a PNG of one channel with exactly these values."""
    with Image.open(path) as picture:
        plain = picture.format == "PNG" and picture.mode in ("L", "P")
        return plain and np.array_equal(np.asarray(picture), values)
