"""`load_semi_dataset`: a SemiDataset from the Hub, local folders, list files, a stream or the built-in generator."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..errors import InputError, unknown_name
from ..text import short
from .classes import Classes, classes_of, numbered_names, read_class_file, read_colors, read_names
from .masks import MaskFormat
from .options import DataOptions
from .semi_dataset import AnyDataset, SemiDataset, undecoded
from .sources.folders import LocalSource, as_dataset, match, used, with_masks
from .sources.hub import HubSource, read_by_datasets, rows_with_label
from .sources.lists import read_list
from .sources.synthetic import synthetic_semi_dataset
from .survey import SAMPLED_MASKS, SCANNED_MASKS, settle_classes, survey_masks

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
        the result; only the random choice reads masks, to find the classes in them. With `diagnose_with_masks`,
        those that have masks are `diagnosis`, too, which methods count by and never train on.
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
    if chosen.synthetic:
        semi = synthetic_semi_dataset(
            labeled=chosen.labeled_count or 12, seed=chosen.split_seed, diagnosis=chosen.diagnose_with_masks
        )
        notes = [*chosen.idle(), *_for_hub_alone(chosen, "the built-in pictures")]
        pool = [semi.unlabeled, *_extra_unlabeled(chosen, notes)]
        return dataclasses.replace(
            semi,
            unlabeled=_join(pool, chosen.streaming),
            notes=tuple(notes),
        )

    source = _open_source(chosen)
    if isinstance(source, LocalSource):
        source.notes += _for_hub_alone(chosen, "folders of photos")
    classes, mask_format = _given_classes(source, chosen)
    labeled, rest = _labeled_and_rest(source, chosen, mask_format)
    own = [rest, source.unlabeled() if chosen.unlabeled_list is None else None]
    pool = [
        *own,
        *_extra_unlabeled(chosen, source.notes),
    ]
    validation = _validation(source, chosen)
    if chosen.hold_out is not None:
        labeled, validation = _held_out(labeled, validation, chosen, mask_format, source.notes)
    known = classes is not None or chosen.num_labels is not None
    survey = survey_masks([labeled, validation], SAMPLED_MASKS if known else SCANNED_MASKS)
    given = chosen.ignore_index is not None
    classes = settle_classes(classes, chosen.num_labels, mask_format, survey, given)
    name, hub_id = _name_and_hub_id(source, chosen)
    return SemiDataset(
        labeled=labeled,
        unlabeled=_join(pool, chosen.streaming),
        diagnosis=_diagnosis(own) if chosen.diagnose_with_masks else None,
        validation=validation,
        id2label=classes.id2label,
        ignore_index=mask_format.ignore_index,
        reduce_labels=mask_format.reduce_labels,
        label_colors=mask_format.label_colors,
        ignore_colors=mask_format.ignore_colors,
        label_ids=classes.label_ids,
        ignored_ids=classes.ignored_ids,
        name=name,
        hub_id=hub_id,
        notes=(*chosen.idle(), *source.notes, *classes.notes),
    )


def _as_options(dataset_name: str | DataOptions | None, options: dict[str, Any]) -> DataOptions:
    if isinstance(dataset_name, DataOptions):
        return dataclasses.replace(dataset_name, **options)
    known = [field.name for field in dataclasses.fields(DataOptions)]
    for name in options:
        if name not in known:
            raise unknown_name("option of load_semi_dataset", name, known)
    return DataOptions(dataset_name=dataset_name, **options)


def _for_hub_alone(options: DataOptions, data: str) -> list[str]:
    """Options that were given and do nothing with this kind of data."""
    given = {name: getattr(options, name) for name in ("dataset_config_name", "dataset_revision")}
    return [
        f"--{name} is {short(value)}, which does nothing with {data}."
        for name, value in given.items()
        if value is not None
    ]


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
        folder,
        options.train_images,
        options.train_masks,
        options.train_split,
        options.labeled_list,
        options.allow_unused_files,
    )


def _name_and_hub_id(source: HubSource | LocalSource, options: DataOptions) -> tuple[str, str | None]:
    name, folder = options.dataset_name, _local_folder(options)
    if name is not None and folder is None:
        is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not os.path.exists(name)
        return name, name if isinstance(source, HubSource) and is_id else None
    return Path(folder or options.train_images or options.labeled_list).name, None


def _given_classes(
    source: HubSource | LocalSource, options: DataOptions
) -> tuple[Classes | None, MaskFormat]:
    """The classes as the options or a file of the source name them, and how the masks are coded."""
    ignore_index = 255 if options.ignore_index is None else options.ignore_index
    ignored_given = options.ignore_index is not None
    label_colors, ignore_colors = read_colors(options.label_colors, ignore_index)
    classes, place = read_names(options.id2label, ignore_index, ignored_given), "--id2label"
    if classes is None and (file := source.class_file()) is not None:
        classes, file_colors = read_class_file(file, ignore_index, ignored_given)
        place = file
        label_colors = label_colors if label_colors is not None else file_colors
    if classes is None and label_colors is not None:
        classes, place = Classes(numbered_names(len(label_colors))), "--label_colors"
    count = options.num_labels
    if classes is not None and count not in (None, len(classes.id2label)):
        raise InputError(f"--num_labels is {count}, but {place} names {len(classes.id2label)} classes.")
    if (
        classes is not None
        and classes.label_ids is not None
        and (options.reduce_labels or label_colors is not None)
    ):
        other = "--reduce_labels" if options.reduce_labels else "--label_colors"
        raise InputError(
            f"{place} names the ids {classes.label_ids[:12]}, but together with {other} they must be 0 to "
            f"{len(classes.label_ids) - 1}."
        )
    return classes, MaskFormat(
        count if classes is None else len(classes.id2label),
        ignore_index,
        options.reduce_labels,
        label_colors,
        ignore_colors,
        None if classes is None else classes.label_ids,
        () if classes is None else classes.ignored_ids,
    )


def _labeled_and_rest(
    source: HubSource | LocalSource, options: DataOptions, mask_format: MaskFormat
) -> tuple[datasets.Dataset, AnyDataset | None]:
    """The labelled training images, and the other ones."""
    if options.labeled_list is not None:
        return source.by_list(options.labeled_list, options.unlabeled_list, options.diagnose_with_masks)
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
        labeled = _draw(count, train, masked, options, mask_format)
    if len(labeled) < len(masked):
        option = "--labeled_count" if options.labeled_fraction is None else "--labeled_fraction"
        source.notes.append(
            f"{option} uses {len(labeled)} of the {len(masked)} masks; the other photos are used without theirs."
        )
    rest = sorted(set(range(len(train))) - set(labeled))
    return train.select(labeled), train.select(rest)


def _validation(source: HubSource | LocalSource, options: DataOptions) -> datasets.Dataset | None:
    if options.validation_images is not None:
        folders = "--validation_images, --validation_masks"
        found = match(options.validation_images, options.validation_masks, folders)
        return with_masks(found, folders, source.notes, options.allow_unused_files)
    if options.validation_list is not None:
        root = _list_root(options.validation_list, options)
        return as_dataset(read_list(options.validation_list, root, {}, "--validation_list"))
    return source.validation(options.validation_split)


def _held_out(
    labeled: datasets.Dataset,
    validation: datasets.Dataset | None,
    options: DataOptions,
    mask_format: MaskFormat,
    notes: list[str],
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The labelled images that are trained on, with every class if possible, and those that are evaluated on."""
    if validation is not None:
        raise InputError(
            f"--hold_out is {options.hold_out}, but there are {len(validation)} validation images: leave it out."
        )
    total = len(labeled)
    count = max(round(options.hold_out * total), 1)
    if count >= total:
        raise InputError(f"--hold_out {options.hold_out} of {total} labelled images leaves none to train on.")
    kept = _draw(total - count, labeled, range(total), options, mask_format)
    notes.append(f"--hold_out keeps {count} of the {total} labelled images out of training, to evaluate on.")
    return labeled.select(kept), labeled.select(sorted(set(range(total)) - set(kept)))


def _draw(
    count: int, train: datasets.Dataset, masked: Sequence[int], options: DataOptions, mask_format: MaskFormat
) -> list[int]:
    """`count` of the images `masked` of `train`, at random, such that every class appears if possible."""
    rows = undecoded(train)

    def present(i: int) -> frozenset[int]:
        try:
            return classes_of(rows[masked[i]], mask_format)
        except InputError:  # an unusable mask is reported by the check before training, if it is chosen
            return frozenset()

    chosen = draw_labeled(count, len(masked), present, mask_format.num_labels, options.split_seed)
    return [masked[i] for i in chosen]


def _extra_unlabeled(options: DataOptions, notes: list[str]) -> Iterator[AnyDataset]:
    """The entries of `extra_unlabeled`: list files, folders of pictures, and anything that `datasets` reads."""
    given = options.extra_unlabeled
    for source in [given] if isinstance(given, str) else given or ():
        if os.path.isfile(source):
            root = _list_root(source, options)
            yield as_dataset(read_list(source, root, {}, "--extra_unlabeled", masks=False))
        elif os.path.isdir(source) and not read_by_datasets(source):
            found = match(source, None, "--extra_unlabeled")
            yield as_dataset(used(found, notes, options.allow_unused_files))
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


def _diagnosis(parts: Sequence[AnyDataset | None]) -> datasets.Dataset:
    """The unlabelled photos whose masks are known."""
    found = []
    for part in parts:
        if isinstance(part, datasets.Dataset) and "label" in part.column_names:
            rows = [row for row, given in enumerate(rows_with_label(part)) if given]
            found += [part.select(rows)] if rows else []
    if not found:
        raise InputError(
            "--diagnose_with_masks: none of the unlabelled photos has a mask; leave this option out, or name their "
            "masks in --unlabeled_list."
        )
    return found[0] if len(found) == 1 else datasets.concatenate_datasets(found)


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
