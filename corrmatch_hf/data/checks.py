"""Reading part of the data before the first step, so that what does not fit is said then, in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import datasets
import numpy as np

from corrmatch_hf.data.semi_dataset import SemiDataset, mask_file, spread_rows
from corrmatch_hf.data.training_set import read_unlabeled
from corrmatch_hf.errors import InputError


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
