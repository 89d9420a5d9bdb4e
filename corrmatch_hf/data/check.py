"""Checks of the data before training.

`check_dataset` reads a part of it and stops at the first error, before every training. `scan_dataset` reads all of it
and collects every error, for `corrmatch check`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
from tqdm import tqdm

from ..errors import InputError, refuse
from ..model.configuration_corrmatch import CorrMatchConfig
from ..text import some
from .check_report import DatasetReport, MasksReport, PartReport
from .images import open_picture, read_photo, read_unlabeled
from .semi_dataset import AnyDataset, SemiDataset, check_sizes, mask_file, spread_rows

JPEG_START = b"\xff\xd8"


def check_dataset(
    semi: SemiDataset,
    *,
    limit: int | None = 200,
    mask_limit: int | None = 2000,
    on_bad_sample: str = "error",
    need_unlabeled: bool = True,
) -> list[str]:
    """Reads part of each set, evenly spread, and returns warnings: what was assumed about the data (`semi.notes`),
    skipped samples, classes without a labelled pixel, photos of few bits.

    Args:
        mask_limit, limit: read at most so many images with masks, and without; None reads all. Of a stream, at most
            the first 8 are read.
        on_bad_sample: with "skip", training replaces a bad sample, so here it only becomes a warning unless more than
            half of the images read are bad. Validation images are never skipped.

    Raises:
        InputError: no labelled images; no unlabelled ones although `need_unlabeled`; a picture that cannot be read;
            class ids out of range; image and mask of different size; a labelled mask of ignored pixels only.
    """
    refuse(semi.missing_images(need_unlabeled))
    shown: set[int] = set()
    empty: list[str] = []

    def check_labeled(row: dict) -> None:
        _, mask = semi.read_labeled(row)
        shown.update(np.unique(mask).tolist())
        if (mask == semi.ignore_index).all():
            empty.append(mask_file(row))

    skip = on_bad_sample == "skip"
    warnings = [*semi.notes, *_read_all(spread_rows(semi.labeled, mask_limit), check_labeled, skip)]
    if empty:
        raise InputError(
            f"Mask {empty[0]} of a labelled image contains only the ignore value {semi.ignore_index}: "
            "check --ignore_index and --reduce_labels, or remove it from the labelled images."
        )
    missing = [name for i, name in semi.id2label.items() if i not in shown]
    if missing and (mask_limit is None or mask_limit >= len(semi.labeled)):
        warnings.append(
            f"No labelled image shows {some(missing)}: a model cannot learn a class without labels."
        )
    if semi.unlabeled is not None:
        warnings += _read_all(spread_rows(semi.unlabeled, limit, stream_limit=8), read_unlabeled, skip)
    if semi.validation is not None:
        seen = sorted(filter(os.path.isfile, {*semi.labeled["file"]} & {*semi.validation["file"]}))
        if seen:
            warnings.append(
                f"{len(seen)} validation images are labelled training images, too ({some(seen, 3)}): the results say "
                "nothing about new photos."
            )
        _read_all(spread_rows(semi.validation, mask_limit), semi.read_labeled, skip=False)
    return warnings


def _read_all(rows: Iterable[dict], read: Callable[[dict], object], skip: bool) -> list[str]:
    """Reads every row; returns the errors if they are to be skipped and at most half of the rows have one."""
    errors, count = [], 0
    for row in rows:
        count += 1
        try:
            read(row)
        except InputError as error:
            if not skip:
                raise
            errors.append(str(error))
    if len(errors) > count / 2:
        raise InputError(f"{len(errors)} of {count} images cannot be used, too many to skip: {errors[0]}")
    return errors


def scan_dataset(
    semi: SemiDataset, *, crop_size: int = 321, limit: int | None = None, progress: bool = False
) -> DatasetReport:
    """Reads every picture and mask of `semi`, or `limit` of each part, evenly spread; of a stream the first ones.

    Unreadable files are reported and do not stop the scan. Raises InputError only if a stream breaks off.
    """
    parts: dict[str, PartReport] = {}
    digests: dict[str, dict[bytes, str]] = {}
    for name, rows in (
        ("labelled", semi.labeled), ("unlabelled", semi.unlabeled), ("validation", semi.validation)
    ):  # fmt: skip
        if rows is not None:
            parts[name], digests[name] = _scan_part(name, rows, semi, crop_size, limit, progress)
    training = {**digests.get("unlabelled", {}), **digests["labelled"]}
    leaks = {
        file: training[digest] for digest, file in digests.get("validation", {}).items() if digest in training
    }
    shown = parts["labelled"].masks.images
    never = [name for i, name in semi.id2label.items() if not shown[i]]
    return DatasetReport(
        semi.name,
        crop_size,
        dict(semi.id2label),
        parts,
        leaks,
        never,
        _refused(semi, parts),
        list(semi.notes),
    )


def _refused(semi: SemiDataset, parts: dict[str, PartReport]) -> list[str]:
    """Why training would stop."""
    if "unlabelled" in parts and parts["unlabelled"].read == 0:  # an empty stream, too
        semi = dataclasses.replace(semi, unlabeled=None)
    reasons = [f"{reason}." for reason in semi.missing_images(need_unlabeled=True)]
    try:
        CorrMatchConfig(id2label=semi.id2label, ignore_index=semi.ignore_index)
    except ValueError as error:  # what no model can be built for
        reasons.append(f"{str(error).rstrip('.')}.")
    for name, part in parts.items():
        if part.bad:
            may_skip = name != "validation" and 2 * len(part.bad) <= part.read  # as `_read_all`
            skip = ", or train with --on_bad_sample skip" if may_skip else ""
            reasons.append(
                f"{len(part.bad)} of {part.read} {name} images cannot be used: repair or remove them{skip}."
            )
    if empty := parts["labelled"].masks.odd["all_ignored"]:
        reasons.append(
            f"{len(empty)} labelled masks contain only the ignore value {semi.ignore_index}: check "
            "--ignore_index and --reduce_labels, or remove them from the labelled images."
        )
    return reasons


def _scan_part(
    name: str, dataset: AnyDataset, semi: SemiDataset, crop_size: int, limit: int | None, progress: bool
) -> tuple[PartReport, dict[bytes, str]]:
    """The report of a part, and {digest of the image's bytes: file}."""
    total = None if isinstance(dataset, datasets.IterableDataset) else len(dataset)
    part, digests, sizes = PartReport(total), {}, []
    masked = name != "unlabelled"
    if masked:
        part.masks = MasksReport([0] * semi.num_labels, [0] * semi.num_labels)
    bar = tqdm(
        total=total if limit is None or total is None else min(limit, total),
        desc=name,
        unit="image",
        disable=None if progress else True,
    )
    for seen in _concurrently(lambda row: _inspect(row, semi, masked), spread_rows(dataset, limit)):
        bar.update(1)
        part.read += 1
        if seen.error is not None:
            part.bad[seen.file] = seen.error
        if seen.size is not None:
            sizes.append(seen.size)
        if seen.digest is not None:
            digests.setdefault(seen.digest, seen.file)
        if masked:
            _count_mask(part.masks, seen)
    bar.close()
    if part.images is None and (limit is None or part.read < limit):
        part.images = part.read
    if sizes:
        columns = np.array(sizes)  # (N, 2): width, height
        part.width, part.height = (
            (int(side.min()), int(np.median(side)), int(side.max())) for side in columns.T
        )
        part.smaller_than_crop = int((columns.min(1) < crop_size).sum())
    return part, digests


@dataclass
class _Inspected:
    """One row of a dataset, read."""

    file: str
    error: str | None = None
    size: tuple[int, int] | None = None  # width, height of the photo
    digest: bytes | None = None
    mask: str = ""
    pixels: np.ndarray | None = None  # (K + 1,) counts of each class, the last one of ignored pixels
    unknown_ids: list[int] = field(default_factory=list)
    jpeg: bool = False
    colored: bool = False


def _count_mask(masks: MasksReport, seen: _Inspected) -> None:
    """Add one mask to the report."""
    if seen.unknown_ids:
        masks.unknown_ids[seen.mask] = seen.unknown_ids
    for kind in ("jpeg", "colored"):
        if getattr(seen, kind):
            masks.odd[kind].append(seen.mask)
    if seen.pixels is None:
        return
    *classes, ignored = seen.pixels.tolist()
    masks.pixels = [a + b for a, b in zip(masks.pixels, classes, strict=True)]
    masks.images = [a + (b > 0) for a, b in zip(masks.images, classes, strict=True)]
    masks.ignored += ignored
    shown = sum(count > 0 for count in classes)
    if shown < 2:
        masks.odd["one_class" if shown else "all_ignored"].append(seen.mask)


def _inspect(row: dict, semi: SemiDataset, masked: bool) -> _Inspected:
    """Read the photo and, if `masked`, the mask of a row; the first error is kept."""
    seen = _Inspected(row["file"])
    photo = None
    try:
        cell = _with_content(row["image"])
        photo = read_photo(cell, row["file"])
        seen.size, seen.digest = photo.size, _digest(cell)
    except InputError as error:
        seen.error = str(error)
    if masked:
        try:
            ids = _inspect_mask(row, semi, seen)
            if photo is not None:
                check_sizes(row, photo, ids)
        except InputError as error:
            seen.error = seen.error or str(error)
    return seen


def _inspect_mask(row: dict, semi: SemiDataset, seen: _Inspected) -> np.ndarray:
    """Note the contents of a row's mask in `seen`; returns its (H, W) class ids."""
    if row["label"] is None:
        raise InputError(f"The labelled image {row['file']} has no mask.")
    seen.mask, mask = mask_file(row), row["label"]
    if isinstance(mask, dict | str):
        cell = _with_content(mask)
        seen.jpeg = isinstance(cell["bytes"], bytes) and cell["bytes"].startswith(JPEG_START)
        mask = open_picture(cell, seen.mask)
        seen.colored = mask.mode in ("RGB", "RGBA")
    form = semi.mask_format
    try:
        ids = form.read(mask, seen.mask)
    except InputError as error:
        try:
            every = np.unique(dataclasses.replace(form, num_labels=None).read(mask, seen.mask))
        except InputError:
            raise error from None
        seen.unknown_ids = [i for i in every.tolist() if i >= semi.num_labels and i != semi.ignore_index]
        raise
    ignored = ids == semi.ignore_index
    seen.pixels = np.append(np.bincount(ids[~ignored], minlength=semi.num_labels), ignored.sum())
    return ids


def _with_content(cell: Any) -> Any:
    """A cell with the bytes of the local file that it names, so that the file is read once."""
    cell = {"path": cell, "bytes": None} if isinstance(cell, str) else cell
    if isinstance(cell, dict) and cell["bytes"] is None and cell["path"] and "://" not in cell["path"]:
        try:
            with open(cell["path"], "rb") as file:
                return {"path": cell["path"], "bytes": file.read()}
        except OSError:  # reported when the cell is decoded
            pass
    return cell


def _digest(cell: Any) -> bytes | None:
    content = cell["bytes"] if isinstance(cell, dict) else None
    return None if content is None else hashlib.blake2b(content, digest_size=16).digest()


def _concurrently(function: Callable[[dict], _Inspected], rows: Iterable[dict]) -> Iterator[_Inspected]:
    """`function` of each row in order, in several threads; rows are fetched no faster than they are worked on."""
    threads = min(os.cpu_count() or 1, 8)
    waiting: deque = deque()
    with ThreadPoolExecutor(threads) as pool:
        for row in rows:
            waiting.append(pool.submit(function, row))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
