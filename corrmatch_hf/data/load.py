"""`load_semi_dataset`: a SemiDataset from the Hub, local folders, list files, a stream or the built-in generator."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..errors import InputError, unknown_name
from .classes import classes_of, highest_id, numbered_names, read_colors, read_names
from .masks import MaskFormat
from .options import DataOptions
from .semi_dataset import AnyDataset, SemiDataset, undecoded
from .sources.folders import LocalSource, as_dataset, match, picture_folder, with_masks
from .sources.hub import HubSource, read_by_datasets, rows_with_label
from .sources.lists import read_list
from .sources.synthetic import synthetic_semi_dataset

UNLABELED = datasets.Features({"image": datasets.Image(), "file": datasets.Value("string")})


def load_semi_dataset(dataset_name: str | DataOptions | None = None, **options: Any) -> SemiDataset:
    """Labelled, unlabelled and validation images from any source.

    ```python
    data = load_semi_dataset(data_dir="photos", labeled_fraction=0.1)
    data = load_semi_dataset("user/streets", labeled_list="labeled.txt")
    ```

    The options are the fields of `DataOptions`, which may also be given as the only argument.

    Source:
        dataset_name: a dataset of the Hub, or a folder in a format of `datasets` (saved, Parquet, imagefolder with
            metadata).
        data_dir: a local folder (see `Folder`). Paths in list files are relative to it. Together with `dataset_name`
            it is passed to `datasets.load_dataset`.
        train_images, train_masks, validation_images, validation_masks: folders, matched by file name.
        Without these, or with dataset_name="synthetic": the built-in set with `labeled_count` labelled images,
        generated from `split_seed`.
    Labelled images:
        labeled_list, and unlabeled_list: files with one "image mask" or "image" per line.
        labeled_fraction or labeled_count: chosen at random such that every class appears if possible.
        Otherwise all images with a mask.
    Unlabelled images:
        those of `unlabeled_list`, else the remaining training images and a split or folder named "unlabeled"; and
        those of `extra_unlabeled`, one or a list of folders, list files or datasets. Their masks are never part of
        the result; only the random choice reads masks, to find the classes in them.
        With `streaming` they are an IterableDataset, downloaded during training. A Hub dataset without a split
        "unlabeled" then uses the first `labeled_count` training images as the labelled ones.
    Masks (see `MaskFormat`):
        id2label: a mapping, a list of names, or a JSON file of either; by default `id2label.json` of the source, else
            LABEL_0, LABEL_1, ... up to `num_labels` or the highest id found.
        label_colors: one colour per class, a mapping from id to colour (which may contain ignore_index), or a JSON
            file of either.

    Raises:
        InputError: an unknown option, options that contradict each other, or data that do not fit them.
    """
    chosen = _as_options(dataset_name, options)
    chosen.check()
    ignore_index = chosen.ignore_index
    label_colors, ignore_colors = read_colors(chosen.label_colors, ignore_index)
    names = read_names(chosen.id2label, ignore_index)
    if chosen.synthetic:
        semi = synthetic_semi_dataset(labeled=chosen.labeled_count or 12, seed=chosen.split_seed)
        pool = [semi.unlabeled, *_extra_unlabeled(chosen)]
        return dataclasses.replace(semi, unlabeled=_join(pool, chosen.streaming))

    source = _open_source(chosen)
    names = _known_names(names, source, chosen, len(label_colors or ()))
    mask_format = MaskFormat(
        len(names) if names else None, ignore_index, chosen.reduce_labels, label_colors, ignore_colors
    )
    labeled, rest = _labeled_and_rest(source, chosen, mask_format)
    pool = [rest, source.unlabeled() if chosen.unlabeled_list is None else None, *_extra_unlabeled(chosen)]
    validation = _validation(source, chosen)
    if names is None:
        names = numbered_names(highest_id([labeled, validation], mask_format) + 1)
    name, hub_id = _name_and_hub_id(source, chosen)
    return SemiDataset(
        labeled=labeled,
        unlabeled=_join(pool, chosen.streaming),
        validation=validation,
        id2label=names,
        ignore_index=ignore_index,
        reduce_labels=chosen.reduce_labels,
        label_colors=label_colors,
        ignore_colors=ignore_colors,
        name=name,
        hub_id=hub_id,
    )


def _as_options(dataset_name: str | DataOptions | None, options: dict[str, Any]) -> DataOptions:
    if isinstance(dataset_name, DataOptions):
        return dataclasses.replace(dataset_name, **options)
    known = [field.name for field in dataclasses.fields(DataOptions)]
    for name in options:
        if name not in known:
            raise unknown_name("option of load_semi_dataset", name, known)
    return DataOptions(dataset_name=dataset_name, **options)


def _local_folder(options: DataOptions) -> str | None:
    """The local folder that is the dataset; None for a dataset of the Hub and where folders are named one by one."""
    name, data_dir = options.dataset_name, options.data_dir
    if name is None:
        return data_dir
    return name if data_dir is None and os.path.isdir(name) else None


def _open_source(options: DataOptions) -> HubSource | LocalSource:
    name, folder = options.dataset_name, _local_folder(options)
    if options.train_images is None and (name if folder is None else read_by_datasets(folder)):
        return HubSource(
            folder or name,
            config_name=options.dataset_config_name,
            revision=options.dataset_revision,
            data_dir=options.data_dir if name is not None else None,
            train_split=options.train_split,
            image_column=options.image_column,
            label_column=options.label_column,
            streaming=options.streaming,
        )
    return LocalSource(
        folder, options.train_images, options.train_masks, options.train_split, options.labeled_list
    )


def _name_and_hub_id(source: HubSource | LocalSource, options: DataOptions) -> tuple[str, str | None]:
    name, folder = options.dataset_name, _local_folder(options)
    if name is not None and folder is None:
        return name, name if isinstance(source, HubSource) and "/" in name else None
    return Path(folder or options.train_images or options.labeled_list).name, None


def _known_names(
    names: dict[int, str] | None, source: HubSource | LocalSource, options: DataOptions, colors: int
) -> dict[int, str] | None:
    """The class names before any mask is read; None if the number of classes has to be found in the masks."""
    place = "--id2label"
    if names is None and (file := source.id2label_file()) is not None:
        names, place = read_names(file, options.ignore_index), file
    count = options.num_labels
    if names is None:
        return numbered_names(count or colors) if count or colors else None
    if count not in (None, len(names)):
        raise InputError(f"--num_labels is {count}, but {place} names {len(names)} classes.")
    return names


def _labeled_and_rest(
    source: HubSource | LocalSource, options: DataOptions, mask_format: MaskFormat
) -> tuple[datasets.Dataset, AnyDataset | None]:
    """The labelled training images, and the other ones."""
    if options.labeled_list is not None:
        return source.by_list(options.labeled_list, options.unlabeled_list)
    if options.streaming and isinstance(source, HubSource) and source.unlabeled() is None:
        return source.first_labeled(options.labeled_count)
    train = source.train()
    masked = [row for row, given in enumerate(rows_with_label(train)) if given]
    if not masked:
        raise InputError(
            "No training image has a mask: give at least one, or a --labeled_list that names some."
        )
    count = options.labeled_count
    if options.labeled_fraction is not None:
        count = max(round(options.labeled_fraction * len(masked)), 1)
    if count is None:
        labeled = masked
    elif count > len(masked):
        raise InputError(f"--labeled_count is {count}, but only {len(masked)} training images have a mask.")
    else:
        rows = undecoded(train)

        def present(i: int) -> frozenset[int]:
            try:
                return classes_of(rows[masked[i]], mask_format)
            except InputError:  # an unusable mask is reported by the check before training, if it is chosen
                return frozenset()

        chosen = draw_labeled(count, len(masked), present, mask_format.num_labels, options.split_seed)
        labeled = [masked[i] for i in chosen]
    rest = sorted(set(range(len(train))) - set(labeled))
    return train.select(labeled), train.select(rest)


def _validation(source: HubSource | LocalSource, options: DataOptions) -> datasets.Dataset | None:
    if options.validation_images is not None:
        folders = "--validation_images, --validation_masks"
        return with_masks(match(options.validation_images, options.validation_masks, folders), folders)
    if options.validation_list is not None:
        root = _list_root(options.validation_list, options)
        return as_dataset(read_list(options.validation_list, root, {}, "--validation_list"))
    return source.validation(options.validation_split)


def _extra_unlabeled(options: DataOptions) -> Iterator[AnyDataset]:
    """The entries of `extra_unlabeled`: list files, folders of pictures, and anything that `datasets` reads."""
    given = options.extra_unlabeled
    for source in [given] if isinstance(given, str) else given or ():
        if os.path.isfile(source):
            root = _list_root(source, options)
            yield as_dataset(read_list(source, root, {}, "--extra_unlabeled", masks=False))
        elif os.path.isdir(source) and not read_by_datasets(source):
            yield picture_folder(source, "--extra_unlabeled")
        else:
            yield HubSource(source, streaming=options.streaming).all_images()


def _list_root(list_file: str, options: DataOptions) -> Path:
    """The folder that the entries of a list file are relative to."""
    return Path(list_file).parent if options.data_dir is None else Path(options.data_dir)


def _join(parts: Sequence[AnyDataset | None], streaming: bool) -> AnyDataset | None:
    """One unlabelled pool of all parts, with the columns image and file."""
    pool = []
    for part in parts:
        if part is None or (isinstance(part, datasets.Dataset) and len(part) == 0):
            continue
        part = part.select_columns(["image", "file"])
        if streaming and isinstance(part, datasets.Dataset):
            part = part.to_iterable_dataset(num_shards=min(len(part), 64))  # shards are shuffled, too
        pool.append(part if part.features == UNLABELED else part.cast(UNLABELED))
    if not pool:
        return None
    return pool[0] if len(pool) == 1 else datasets.concatenate_datasets(pool)


def draw_labeled(
    count: int, total: int, present: Callable[[int], frozenset[int]], num_labels: int | None, seed: int
) -> list[int]:
    """Choose `count` of `total` images at random, such that every class appears if possible; sorted.

    `present(i)` returns the classes of image i. It is called in random order until every class has been seen, or for
    every image if num_labels is None. Images are then chosen greedily, the one with most uncovered classes first, and
    the remaining ones at random.
    """
    order = np.random.default_rng([seed, total]).permutation(total).tolist()
    classes: dict[int, frozenset[int]] = {}
    for i in order:
        classes[i] = present(i)
        enough = len(classes) >= 4 * count  # more candidates cover many classes with fewer images
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
