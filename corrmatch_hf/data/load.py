"""`load_semi_dataset`: from the Hub, folders, lists, a stream or nothing at all to a SemiDataset."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np

from ..errors import InputError, refuse
from .masks import Color, MaskFormat
from .semi_dataset import SemiDataset, mask_file, undecoded
from .sources.folders import LocalSource, as_dataset, match, picture_folder, with_masks
from .sources.hub import AnyDataset, HubSource, read_by_datasets, rows_with_label
from .sources.lists import read_list
from .sources.synthetic import synthetic_semi_dataset

SCANNED_MASKS = 2000  # of each split, to find out how many classes there are when nobody says
UNLABELED = datasets.Features({"image": datasets.Image(), "file": datasets.Value("string")})


def load_semi_dataset(
    name: str | None = None,
    *,
    config_name: str | None = None,
    revision: str | None = None,
    data_dir: str | None = None,
    train_images: str | None = None,
    train_masks: str | None = None,
    validation_images: str | None = None,
    validation_masks: str | None = None,
    labeled_list: str | None = None,
    unlabeled_list: str | None = None,
    validation_list: str | None = None,
    labeled_fraction: float | None = None,
    labeled_count: int | None = None,
    seed: int = 0,
    extra_unlabeled: str | Sequence[str] | None = None,
    streaming: bool = False,
    train_split: str = "train",
    validation_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    id2label: Mapping[int, str] | Sequence[str] | str | None = None,
    num_labels: int | None = None,
    reduce_labels: bool = False,
    ignore_index: int = 255,
    label_colors: Mapping[int, Color] | Sequence[Color] | str | None = None,
) -> SemiDataset:
    """Labelled, unlabelled and validation images from any source.

    Where the images are:
        name: a dataset of the Hub, or a folder that `datasets` reads (saved, Parquet, imagefolder and
            metadata), with config_name, revision, train_split, validation_split, image_column, label_column.
        data_dir: a local folder (see `folders.Folder`), also the root that partition lists are relative to;
            together with `name` it goes to `datasets.load_dataset`.
        train_images, train_masks, validation_images, validation_masks: plain folders, matched by file name.
        Nothing, or name="synthetic": the built-in set with `labeled_count` labelled images, made from `seed`.
    Which are labelled:
        labeled_list, and unlabeled_list: files with one "image mask" or "image" a line.
        labeled_fraction or labeled_count: drawn with `seed`, so that every class appears where it can.
        Otherwise: every image that has a mask.
        Unlabelled are the images of unlabeled_list, else the rest of the training images and those of a split
        or folder called "unlabeled"; and those of `extra_unlabeled` (folders, lists or Hub datasets). Masks
        they may have are not part of the result; only the draw looks at masks, for the classes they hold.
    streaming: unlabelled images become an IterableDataset, fetched while they are used; a Hub dataset without
        a split "unlabeled" gives the first `labeled_count` images of its training split as the labelled ones.
    What the masks mean: see `MaskFormat`. id2label is a mapping, a list of names, or a JSON file of either;
        by default the source's own `id2label.json`, else `num_labels` or the highest id found, with the names
        LABEL_0, LABEL_1, ... label_colors is a list with a colour for each class, a mapping from id to colour
        (ignore_index may be among the ids), or a JSON file of either.

    Raises InputError with a sentence to act on for whatever does not fit.
    """
    refuse(option_problems(**locals()))
    extra = [extra_unlabeled] if isinstance(extra_unlabeled, str) else list(extra_unlabeled or ())
    label_colors, ignore_colors = _read_colors(label_colors, ignore_index)
    names = _read_names(id2label, ignore_index)
    if _built_in(name, data_dir, train_images, labeled_list):
        semi = synthetic_semi_dataset(labeled=labeled_count or 12, seed=seed)
        unlabeled = _join([semi.unlabeled, *(_read_extra(e, data_dir, streaming) for e in extra)], streaming)
        return dataclasses.replace(semi, unlabeled=unlabeled)

    folder = data_dir if name is None else name if data_dir is None and os.path.isdir(name) else None
    if train_images is None and (name if folder is None else read_by_datasets(folder)):
        source = HubSource(
            folder if name is None else name,
            config_name=config_name,
            revision=revision,
            data_dir=data_dir if name is not None else None,
            train_split=train_split,
            image_column=image_column,
            label_column=label_column,
            streaming=streaming,
        )
    else:
        source = LocalSource(folder, train_images, train_masks, train_split, labeled_list)

    if names is None and source.id2label_file() is not None:
        names = _read_names(source.id2label_file(), ignore_index)
    if names is not None and num_labels not in (None, len(names)):
        place = "--id2label" if id2label is not None else source.id2label_file()
        raise InputError(f"--num_labels is {num_labels}, but {place} names {len(names)} classes.")
    if names is None and (num_labels or label_colors):
        names = {i: f"LABEL_{i}" for i in range(num_labels or len(label_colors))}
    mask_format = MaskFormat(names and len(names), ignore_index, reduce_labels, label_colors, ignore_colors)

    pool: list[AnyDataset | None] = []
    if labeled_list is not None:
        labeled, rest = source.by_list(labeled_list, unlabeled_list)
        pool.append(rest)
    elif streaming and isinstance(source, HubSource) and source.unlabeled() is None:
        labeled, rest = source.first_labeled(labeled_count)
        pool.append(rest)
    else:
        labeled, rest = _divide(source.train(), labeled_fraction, labeled_count, seed, mask_format)
        pool.append(rest)
    if unlabeled_list is None:
        pool.append(source.unlabeled())
    pool += [_read_extra(e, data_dir, streaming) for e in extra]

    if validation_images is not None:
        options = "--validation_images, --validation_masks"
        validation = with_masks(match(validation_images, validation_masks, options), options)
    elif validation_list is not None:
        root = Path(validation_list).parent if data_dir is None else Path(data_dir)
        validation = as_dataset(read_list(validation_list, root, {}, "--validation_list"))
    else:
        validation = source.validation(validation_split)

    if names is None:
        highest = _highest_id([labeled, validation], mask_format)
        names = {i: f"LABEL_{i}" for i in range(highest + 1)}
    return SemiDataset(
        labeled=labeled,
        unlabeled=_join(pool, streaming),
        validation=validation,
        id2label=names,
        ignore_index=ignore_index,
        reduce_labels=reduce_labels,
        label_colors=label_colors,
        ignore_colors=ignore_colors,
        name=Path(folder or train_images or labeled_list).name if name is None or folder else name,
        hub_id=name if isinstance(source, HubSource) and folder is None and "/" in name else None,
    )


def option_problems(
    *,
    name: str | None,
    data_dir: str | None,
    train_images: str | None,
    train_masks: str | None,
    validation_images: str | None,
    validation_masks: str | None,
    labeled_list: str | None,
    unlabeled_list: str | None,
    validation_list: str | None,
    labeled_fraction: float | None,
    labeled_count: int | None,
    seed: int,
    num_labels: int | None,
    **others,
) -> list[str]:
    """What `load_semi_dataset` refuses of its arguments before it reads anything, a sentence each without full stop."""
    found = []
    if labeled_fraction is not None and not 0 < labeled_fraction <= 1:
        found.append(f"--labeled_fraction is {labeled_fraction}: give a number above 0 and up to 1")
    if labeled_count is not None and labeled_count < 1:
        found.append(f"--labeled_count is {labeled_count}: give at least 1")
    if sum(v is not None for v in (labeled_list, labeled_fraction, labeled_count)) > 1:
        found.append("Give one of --labeled_list, --labeled_fraction and --labeled_count, not several")
    if unlabeled_list is not None and labeled_list is None:
        found.append("--unlabeled_list needs --labeled_list, which names the images that have masks")
    if train_masks is not None and train_images is None:
        found.append("--train_masks needs --train_images, the folder with the photos of those masks")
    if (validation_images is None) != (validation_masks is None):
        found.append("--validation_images and --validation_masks must be given together")
    if seed < 0:
        found.append(f"--split_seed is {seed}: give 0 or more")
    if num_labels is not None and num_labels < 1:
        found.append(f"--num_labels is {num_labels}: give at least 1")
    own = (labeled_fraction, validation_images, validation_list)
    if _built_in(name, data_dir, train_images, labeled_list) and any(value is not None for value in own):
        found.append(
            "The built-in synthetic set takes --labeled_count, not --labeled_fraction or images of your own: name a "
            "dataset by --dataset_name or --data_dir"
        )
    return found


def _built_in(
    name: str | None, data_dir: str | None, train_images: str | None, labeled_list: str | None
) -> bool:
    """Whether the synthetic set is meant."""
    return name == "synthetic" or all(v is None for v in (name, data_dir, train_images, labeled_list))


def _divide(
    train: datasets.Dataset, fraction: float | None, count: int | None, seed: int, mask_format: MaskFormat
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Labelled and unlabelled rows: as drawn, or as masks are there."""
    there = rows_with_label(train)
    masked = [row for row, given in enumerate(there) if given]
    if not masked:
        raise InputError(
            "No training image has a mask: give at least one, or a --labeled_list that names some."
        )
    if fraction is not None:
        count = max(round(fraction * len(masked)), 1)
    if count is None:
        labeled = masked
    elif count > len(masked):
        raise InputError(f"--labeled_count is {count}, but only {len(masked)} training images have a mask.")
    else:
        rows = undecoded(train)

        def present(i: int) -> frozenset[int]:
            try:
                return _present(rows[masked[i]], mask_format)
            except InputError:  # drawn or not, checks and training say so where it is used
                return frozenset()

        labeled = [masked[i] for i in draw_labeled(count, len(masked), present, mask_format.num_labels, seed)]
    chosen = set(labeled)
    rest = [row for row in range(len(train)) if row not in chosen]
    return train.select(labeled), train.select(rest)


def _read_extra(source: str, data_dir: str | None, streaming: bool) -> AnyDataset:
    """One of `extra_unlabeled`: a folder of pictures, a list of them, or anything that `datasets` reads."""
    if os.path.isfile(source):
        root = Path(source).parent if data_dir is None else Path(data_dir)
        return as_dataset(read_list(source, root, {}, "--extra_unlabeled", masks=False))
    if os.path.isdir(source) and not read_by_datasets(source):
        return picture_folder(source, "--extra_unlabeled")
    return HubSource(source, streaming=streaming).all_images()


def _join(parts: Sequence[AnyDataset | None], streaming: bool) -> AnyDataset | None:
    """One unlabelled pool of all parts, with the columns image and file."""
    pool = []
    for part in parts:
        if part is None or (isinstance(part, datasets.Dataset) and len(part) == 0):
            continue
        part = part.select_columns(["image", "file"])
        if streaming and isinstance(part, datasets.Dataset):
            part = part.to_iterable_dataset(num_shards=min(len(part), 64))  # which are shuffled too
        pool.append(part if part.features == UNLABELED else part.cast(UNLABELED))
    if not pool:
        return None
    return pool[0] if len(pool) == 1 else datasets.concatenate_datasets(pool)


def _highest_id(parts: Sequence[datasets.Dataset | None], mask_format: MaskFormat) -> int:
    """The highest class id in the masks of these sets, those left out that cannot be read while others can."""
    highest, unreadable = -1, None
    for part in parts:
        if part is None or len(part) == 0:
            continue
        rows = undecoded(part)
        for i in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SCANNED_MASKS)).astype(int)).tolist():
            try:
                highest = max([highest, *_present(rows[i], mask_format)])
            except InputError as error:
                unreadable = unreadable or error
    if highest < 0 and unreadable is not None:
        raise unreadable
    if highest < 1:
        what = "no class id" if highest < 0 else "no class id but 0"
        raise InputError(
            f"The masks hold {what} (and the ignore value {mask_format.ignore_index}): check --ignore_index "
            "and --reduce_labels; black and white masks need --label_colors [[0, 0, 0], [255, 255, 255]]."
        )
    return highest


def _present(row: dict, mask_format: MaskFormat) -> frozenset[int]:
    """The classes that the mask of a row shows."""
    return mask_format.present(row["label"], mask_file(row))


def _read_json(path: str, option: str):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{option} names {path}, which cannot be read as JSON: {error}.") from error


def _read_names(value: Mapping | Sequence | str | None, ignore_index: int) -> dict[int, str] | None:
    """id2label in any of its forms -> {id: name}, the ignore value left out."""
    if value is None:
        return None
    place = "--id2label"
    if isinstance(value, str):
        place = value
        value = _read_json(value, "--id2label")
    try:
        names = {int(i): str(label) for i, label in _entries(value)}
    except (TypeError, ValueError):
        raise InputError(
            f"{place} must map each class id to its name, as in {{'0': 'sky', '1': 'road'}}."
        ) from None
    if ignore_index >= len(names) - 1:
        names.pop(ignore_index, None)
    if not names:
        raise InputError(f"{place} names no class.")
    return dict(sorted(names.items()))


def _entries(value) -> Iterable[tuple]:
    """What a mapping or a list says of each class; TypeError where it is neither."""
    if isinstance(value, str):
        raise TypeError(value)
    return value.items() if isinstance(value, Mapping) else enumerate(value)


def _read_colors(
    value: Mapping | Sequence | str | None, ignore_index: int
) -> tuple[tuple[Color, ...] | None, tuple[Color, ...]]:
    """label_colors in any of its forms -> the colours of the classes, and those of 'ignore'."""
    if value is None:
        return None, ()
    if isinstance(value, str):
        value = _read_json(value, "--label_colors")
    try:
        colors = {int(i): tuple(int(c) for c in color) for i, color in _entries(value)}
    except (TypeError, ValueError):
        colors = {}
    if not colors or any(len(c) != 3 or not all(0 <= v <= 255 for v in c) for c in colors.values()):
        raise InputError(
            "--label_colors must give [red, green, blue], each 0 to 255, for each class, as in "
            "[[0, 0, 0], [128, 0, 0]]."
        )
    ignored = (
        (colors.pop(ignore_index),) if ignore_index >= len(colors) - 1 and ignore_index in colors else ()
    )
    if sorted(colors) != list(range(len(colors))):
        raise InputError(
            f"--label_colors names the ids {sorted(colors)}: they must be 0 to {len(colors) - 1}."
        )
    if len(set(colors.values()) | set(ignored)) < len(colors) + len(ignored):
        raise InputError("--label_colors gives the same colour to two ids.")
    return tuple(colors[i] for i in range(len(colors))), ignored


def draw_labeled(
    count: int, total: int, present: Callable[[int], frozenset[int]], num_labels: int | None, seed: int
) -> list[int]:
    """`count` of `total` images, sorted, chosen by `seed` such that every class appears where it can.

    `present(i)` gives the classes of image i; it is asked in random order, and no more once every class has
    been seen (with num_labels=None, where that cannot be known, for every image). Images are then taken
    greedily, the one with most classes not yet covered first, and the rest at random.
    """
    order = np.random.default_rng([seed, total]).permutation(total).tolist()
    classes: dict[int, frozenset[int]] = {}
    for i in order:
        classes[i] = present(i)
        enough = len(classes) >= 4 * count  # a wider choice, to cover many classes with few images
        if enough and num_labels is not None and len(frozenset().union(*classes.values())) >= num_labels:
            break
    chosen: list[int] = []
    covered: frozenset[int] = frozenset()
    while len(chosen) < count:
        best = max(
            (i for i in classes if i not in chosen), key=lambda i: len(classes[i] - covered), default=None
        )
        if best is None or not classes[best] - covered:
            break
        chosen.append(best)
        covered |= classes[best]
    taken = set(chosen)
    rest = [i for i in order if i not in taken]
    return sorted(chosen + rest[: count - len(chosen)])
