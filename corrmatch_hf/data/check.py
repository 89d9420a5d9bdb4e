"""Reading a whole dataset before training: what is in it, and everything that is wrong with it, not only the first."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import datasets
import numpy as np
from tqdm import tqdm

from ..errors import InputError
from .images import open_picture, read_photo, read_unlabeled
from .semi_dataset import SemiDataset, mask_file, spread_rows

ODDITIES = {
    "one_class": "show one class alone",
    "all_ignored": "hold nothing but the ignore value",
    "jpeg": "are JPEGs, which changes ids and colours along edges",
    "colored": "are coded by colours",
}


@dataclass
class MasksReport:
    """What the masks of a part show."""

    pixels: list[int]  # of each class
    images: list[int]  # in which each class occurs
    ignored: int = 0  # pixels
    unknown_ids: dict[str, list[int]] = field(default_factory=dict)  # mask -> its ids that are no class
    odd: dict[str, list[str]] = field(
        default_factory=lambda: {kind: [] for kind in ODDITIES}
    )  # kind -> masks


@dataclass
class PartReport:
    """One part of a dataset. Sizes are (smallest, median, largest) of those that could be read."""

    images: int | None  # None: a stream that was not read to its end
    read: int = 0
    width: tuple[int, int, int] | None = None
    height: tuple[int, int, int] | None = None
    smaller_than_crop: int = 0  # in width or height
    bad: dict[str, str] = field(default_factory=dict)  # file -> the sentence that training would stop with
    masks: MasksReport | None = None  # of a part with masks


@dataclass
class DatasetReport:
    """What `scan_dataset` found. `refused` is empty where training would start and run to its end."""

    name: str
    crop_size: int
    id2label: dict[int, str]
    parts: dict[str, PartReport]  # labelled, unlabelled, validation, as far as there are such
    leaks: dict[str, str]  # validation image -> training image with the same bytes
    never_labeled: list[str]  # names of the classes that no labelled image shows
    refused: list[str]  # why training would stop, a sentence each

    def as_dict(self) -> dict:
        """The same for JSON."""
        return dataclasses.asdict(self)


def scan_dataset(
    semi: SemiDataset, *, crop_size: int = 321, limit: int | None = None, progress: bool = False
) -> DatasetReport:
    """Reads every picture and mask of `semi`, or `limit` of each part, evenly spread; of a stream the first ones.

    What cannot be read is reported and does not stop the scan. Raises InputError only where a stream breaks off.
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
        semi.name, crop_size, dict(semi.id2label), parts, leaks, never, _refused(semi, parts)
    )


def _refused(semi: SemiDataset, parts: dict[str, PartReport]) -> list[str]:
    reasons = []
    if parts["labelled"].read == 0:
        reasons.append("There are no labelled images: give at least one image with a mask.")
    if "unlabelled" not in parts or parts["unlabelled"].read == 0:
        reasons.append(
            "There are no unlabelled images, which every method but --method supervised needs: give "
            "--labeled_fraction, --labeled_count, an --unlabeled_list or --extra_unlabeled."
        )
    for name, part in parts.items():
        if part.bad:
            skip = "" if name == "validation" else ", or train with --on_bad_sample skip"
            reasons.append(
                f"{len(part.bad)} of {part.read} {name} images cannot be used: mend them or take them out{skip}."
            )
    if empty := parts["labelled"].masks.odd["all_ignored"]:
        reasons.append(
            f"Labelled masks hold nothing but the ignore value {semi.ignore_index} ({len(empty)}): check "
            "--ignore_index and --reduce_labels, or take them out of the labelled images."
        )
    return reasons


@dataclass
class _Found:
    """What one row gives."""

    file: str
    error: str | None = None
    size: tuple[int, int] | None = None  # width, height of the photo
    digest: bytes | None = None
    mask: str = ""
    pixels: np.ndarray | None = None  # of each class, and at the end the ignored ones
    unknown_ids: list[int] = field(default_factory=list)
    jpeg: bool = False
    colored: bool = False


def _scan_part(
    name: str,
    dataset: datasets.Dataset | datasets.IterableDataset,
    semi: SemiDataset,
    crop_size: int,
    limit: int | None,
    progress: bool,
) -> tuple[PartReport, dict[bytes, str]]:
    """The report of a part, and the file of each content."""
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
    for found in _concurrently(lambda row: _look_at(row, semi, masked), spread_rows(dataset, limit)):
        bar.update(1)
        part.read += 1
        if found.error is not None:
            part.bad[found.file] = found.error
        if found.size is not None:
            sizes.append(found.size)
        if found.digest is not None:
            digests.setdefault(found.digest, found.file)
        if masked:
            _count_mask(part.masks, found)
    bar.close()
    if part.images is None and (limit is None or part.read < limit):
        part.images = part.read
    if sizes:
        columns = np.array(sizes)
        part.width, part.height = (
            (int(side.min()), int(np.median(side)), int(side.max())) for side in columns.T
        )
        part.smaller_than_crop = int((columns.min(1) < crop_size).sum())
    return part, digests


def _count_mask(masks: MasksReport, found: _Found) -> None:
    if found.unknown_ids:
        masks.unknown_ids[found.mask] = found.unknown_ids
    for kind in ("jpeg", "colored"):
        if getattr(found, kind):
            masks.odd[kind].append(found.mask)
    if found.pixels is None:
        return
    *classes, ignored = found.pixels.tolist()
    masks.pixels = [a + b for a, b in zip(masks.pixels, classes, strict=True)]
    masks.images = [a + (b > 0) for a, b in zip(masks.images, classes, strict=True)]
    masks.ignored += ignored
    shown = sum(count > 0 for count in classes)
    if shown < 2:
        masks.odd["one_class" if shown else "all_ignored"].append(found.mask)


def _look_at(row: dict, semi: SemiDataset, masked: bool) -> _Found:
    found = _Found(row["file"])
    photo = None
    try:
        cell = _with_content(row["image"])
        photo = read_photo(cell, row["file"])
        found.size, found.digest = photo.size, _digest(cell)
    except InputError as error:
        found.error = str(error)
    if masked:
        try:
            ids = _look_at_mask(row, semi, found)
            if photo is not None:
                semi.check_sizes(row, photo, ids)
        except InputError as error:
            found.error = found.error or str(error)
    return found


def _look_at_mask(row: dict, semi: SemiDataset, found: _Found) -> np.ndarray:
    """Its ids, after noting what it shows."""
    if row["label"] is None:
        raise InputError(f"The labelled image {row['file']} has no mask.")
    found.mask, mask = mask_file(row), row["label"]
    if isinstance(mask, dict | str):
        cell = _with_content(mask)
        found.jpeg = isinstance(cell["bytes"], bytes) and cell["bytes"].startswith(b"\xff\xd8")
        mask = open_picture(cell, found.mask)
        found.colored = mask.mode in ("RGB", "RGBA")
    form = semi.mask_format
    try:
        ids = form.read(mask, found.mask)
    except InputError as error:
        try:
            every = np.unique(dataclasses.replace(form, num_labels=None).read(mask, found.mask))
        except InputError:
            raise error from None
        found.unknown_ids = [i for i in every.tolist() if i >= semi.num_labels and i != semi.ignore_index]
        raise
    ignored = ids == semi.ignore_index
    found.pixels = np.append(np.bincount(ids[~ignored], minlength=semi.num_labels), ignored.sum())
    return ids


def _with_content(cell):
    """A cell that names a file of this machine -> one with the bytes of the file, so that it is read once."""
    cell = {"path": cell, "bytes": None} if isinstance(cell, str) else cell
    if isinstance(cell, dict) and cell["bytes"] is None and cell["path"] and "://" not in cell["path"]:
        try:
            with open(cell["path"], "rb") as file:
                return {"path": cell["path"], "bytes": file.read()}
        except OSError:  # it is said when the cell is decoded
            pass
    return cell


def _digest(cell) -> bytes | None:
    content = cell["bytes"] if isinstance(cell, dict) else None
    return None if content is None else hashlib.blake2b(content, digest_size=16).digest()


def _concurrently(function: Callable[[dict], _Found], rows: Iterable[dict]) -> Iterator[_Found]:
    """`function` of each row, in order, several at a time; rows are taken no faster than that."""
    threads = min(os.cpu_count() or 1, 8)
    waiting: deque = deque()
    with ThreadPoolExecutor(threads) as pool:
        for row in rows:
            waiting.append(pool.submit(function, row))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# -------------------- The report of a scan, for people to read.


SHOWN = 5  # files of a kind that is odd but not wrong


def scan_text(report: DatasetReport) -> str:
    """Parts, sizes, a table of classes, then all files that are bad, and what is odd."""
    lines = [report.name, ""]
    for name, part in report.parts.items():
        lines += [_sizes(name, part, report.crop_size)]
    lines += ["", *_classes(report)]
    for name, part in report.parts.items():
        lines += _wrong(name, part)
    lines += _odd(report)
    if report.refused:
        lines += ["", "Training would stop:", *(f"  {reason}" for reason in report.refused)]
    else:
        lines += ["", "Nothing that would stop training was found."]
    return "\n".join(lines)


def _sizes(name: str, part: PartReport, crop_size: int) -> str:
    count = f"{part.read}" if part.images == part.read else f"{part.read} of {part.images or 'a stream'}"
    text = f"{name:<10}  {count} images read"
    if part.width is not None:
        text += f", {_range('wide', part.width)}, {_range('high', part.height)}"
        if part.smaller_than_crop:
            text += f"; {part.smaller_than_crop} smaller than --crop_size {crop_size}"
    if part.bad:
        text += f"; {len(part.bad)} BAD"
    return text


def _range(side: str, values: tuple[int, int, int]) -> str:
    least, median, most = values
    return f"{least} {side}" if least == most else f"{least} to {most} {side} (median {median})"


def _classes(report: DatasetReport) -> list[str]:
    """A line for each class: share of the labelled pixels, and images that show it, in each part with masks."""
    masked = {name: part.masks for name, part in report.parts.items() if part.masks is not None}
    wide = max(len("ignored"), *(len(name) for name in report.id2label.values()))
    head = f"{'id':>5}  {'class':<{wide}}" + "".join(f"  {name:>10}  in images" for name in masked)
    lines = [head]
    for i, name in report.id2label.items():
        cells = "".join(
            f"  {_share(m.pixels[i], sum(m.pixels)):>10}  {m.images[i]:>9}" for m in masked.values()
        )
        lines.append(f"{i:>5}  {name:<{wide}}{cells}")
    cells = "".join(f"  {_share(m.ignored, m.ignored + sum(m.pixels)):>10}  {'':>9}" for m in masked.values())
    return [*lines, f"{'':>5}  {'ignored':<{wide}}{cells}".rstrip()]


def _share(count: int, total: int) -> str:
    if not total or not count:
        return "-"
    percent = 100 * count / total
    return f"{percent:.2f} %" if percent >= 0.01 else "< 0.01 %"


def _wrong(name: str, part: PartReport) -> list[str]:
    unknown = part.masks.unknown_ids if part.masks is not None else {}
    told_below = tuple(f"Mask {mask} holds the class id" for mask in unknown)
    reasons = [reason for reason in part.bad.values() if not reason.startswith(told_below)]
    lines = []
    if reasons:
        lines += ["", f"Bad {name} images ({len(reasons)}):", *(f"  {reason}" for reason in reasons)]
    if unknown:
        lines += ["", f"Ids without a class in {name} masks ({len(unknown)}):"]
        lines += [f"  {mask}: {', '.join(map(str, ids))}" for mask, ids in unknown.items()]
        lines += [
            "  Name more classes with --num_labels or --id2label, give another --ignore_index, or use --reduce_labels "
            "if 0 means 'no class'."
        ]
    return lines


def _odd(report: DatasetReport) -> list[str]:
    lines = []
    if report.never_labeled:
        lines.append(
            f"no labelled image shows {', '.join(report.never_labeled)}: a model cannot learn what it never sees"
        )
    if report.leaks:
        pairs = [f"{file} = {other}" for file, other in report.leaks.items()]
        lines.append(f"validation images that are training images, too ({len(pairs)}): {_some(pairs)}")
    for name, part in report.parts.items():
        lines += _odd_masks(name, part.masks) if part.masks is not None else []
    return ["", "Worth a look:", *(f"  {line}" for line in lines)] if lines else []


def _odd_masks(name: str, masks: MasksReport) -> list[str]:
    return [
        f"{name} masks that {ODDITIES[kind]} ({len(files)}): {_some(files)}"
        for kind, files in masks.odd.items()
        if files
    ]


def _some(files: list[str]) -> str:
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return ", ".join(files[:SHOWN]) + more


# -------------------- Reading part of the data before the first step, so that what does not fit is said then, in one sentence.


def check_dataset(
    semi: SemiDataset,
    *,
    limit: int | None = 200,
    mask_limit: int | None = 2000,
    on_bad_sample: str = "error",
    need_unlabeled: bool = True,
) -> list[str]:
    """Reads part of each set, evenly spread, and says what is wrong or odd.

    mask_limit, limit: how many images with masks, and without, are read at most; None for all; of a stream, never
        more than its first 8.
    Raises InputError for: no labelled images; no unlabelled ones although `need_unlabeled`; a picture that
    cannot be read; class ids out of range; image and mask of different size; a labelled mask that is 'ignore'
    everywhere. With on_bad_sample="skip", training will replace a bad sample, so here it is only listed,
    unless more than half of the images looked at are bad; validation images are not skipped.
    Returns warnings, a sentence each: the samples that will be skipped, and classes without a labelled pixel.
    """
    if len(semi.labeled) == 0:
        raise InputError(f"{semi.name} has no labelled images: give at least one image with a mask.")
    no_unlabeled = semi.unlabeled is None or (
        isinstance(semi.unlabeled, datasets.Dataset) and len(semi.unlabeled) == 0
    )
    if need_unlabeled and no_unlabeled:
        raise InputError(
            f"{semi.name} has no unlabelled images: give --labeled_fraction, --labeled_count, an "
            "--unlabeled_list or --extra_unlabeled."
        )

    shown: set[int] = set()
    empty: list[str] = []

    def check_labeled(row: dict) -> None:
        _, mask = semi.read_labeled(row)
        shown.update(np.unique(mask).tolist())
        if (mask == semi.ignore_index).all():
            empty.append(mask_file(row))

    skip = on_bad_sample == "skip"
    found = _check(spread_rows(semi.labeled, mask_limit), check_labeled, skip)
    if empty:
        raise InputError(
            f"Mask {empty[0]} of a labelled image holds only the ignore value {semi.ignore_index}: "
            "check --ignore_index and --reduce_labels, or take it out of the labelled images."
        )
    missing = [name for i, name in semi.id2label.items() if i not in shown]
    if missing and (mask_limit is None or mask_limit >= len(semi.labeled)):
        found.append(
            f"No labelled image shows {', '.join(missing)}: a model cannot learn what it never sees."
        )
    if not no_unlabeled:
        found += _check(spread_rows(semi.unlabeled, limit, stream_limit=8), read_unlabeled, skip)
    if semi.validation is not None:
        _check(spread_rows(semi.validation, mask_limit), semi.read_labeled, skip=False)
    return found


def _check(rows: Iterable[dict], read: Callable[[dict], object], skip: bool) -> list[str]:
    found, seen = [], 0
    for seen, row in enumerate(rows, 1):  # noqa: B007
        try:
            read(row)
        except InputError as error:
            if not skip:
                raise
            found.append(str(error))
    if len(found) > seen / 2:
        raise InputError(f"{len(found)} of {seen} images cannot be used, too many to skip: {found[0]}")
    return found
