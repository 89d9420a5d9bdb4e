"""The names and colours of the classes, in any of the forms that users give them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..errors import InputError
from .masks import Color, MaskFormat
from .semi_dataset import mask_file, undecoded

SCANNED_MASKS = 2000  # masks of each split that are read to find the number of classes


def read_names(value: Mapping | Sequence | str | None, ignore_index: int) -> dict[int, str] | None:
    """A mapping, a list of names or a JSON file of either -> {id: name} without the ignore value, sorted by id."""
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


def read_colors(
    value: Mapping | Sequence | str | None, ignore_index: int
) -> tuple[tuple[Color, ...] | None, tuple[Color, ...]]:
    """A mapping, a list of colours or a JSON file of either -> colours of the classes, colours of 'ignore'."""
    if value is None:
        return None, ()
    if isinstance(value, str):
        value = _read_json(value, "--label_colors")
    try:
        colors: dict[int, Any] = {int(i): tuple(int(c) for c in color) for i, color in _entries(value)}
    except (TypeError, ValueError):
        colors = {}
    if not colors or any(len(c) != 3 or not all(0 <= v <= 255 for v in c) for c in colors.values()):
        raise InputError(
            "--label_colors must give [red, green, blue], each 0 to 255, for each class, as in "
            "[[0, 0, 0], [128, 0, 0]]."
        )
    ignored: tuple[Color, ...] = ()
    if ignore_index >= len(colors) - 1 and ignore_index in colors:
        ignored = (colors.pop(ignore_index),)
    if sorted(colors) != list(range(len(colors))):
        raise InputError(
            f"--label_colors names the ids {sorted(colors)}: they must be 0 to {len(colors) - 1}."
        )
    if len(set(colors.values()) | set(ignored)) < len(colors) + len(ignored):
        raise InputError("--label_colors gives the same colour to two ids.")
    return tuple(colors[i] for i in range(len(colors))), ignored


def numbered_names(count: int) -> dict[int, str]:
    """transformers' default names: {0: "LABEL_0", 1: "LABEL_1", ...}."""
    return {i: f"LABEL_{i}" for i in range(count)}


def highest_id(parts: Sequence[datasets.Dataset | None], mask_format: MaskFormat) -> int:
    """The highest class id in the masks of these sets; unreadable masks are skipped unless all of them are."""
    highest, unreadable = -1, None
    for part in parts:
        if part is None or len(part) == 0:
            continue
        rows = undecoded(part)
        for i in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SCANNED_MASKS)).astype(int)).tolist():
            try:
                highest = max([highest, *classes_of(rows[i], mask_format)])
            except InputError as error:
                unreadable = unreadable or error
    if highest < 0 and unreadable is not None:
        raise unreadable
    if highest < 1:
        found = "no class id" if highest < 0 else "no class id but 0"
        raise InputError(
            f"The masks contain {found} (and the ignore value {mask_format.ignore_index}): check --ignore_index "
            "and --reduce_labels; black and white masks need --label_colors [[0, 0, 0], [255, 255, 255]]."
        )
    return highest


def classes_of(row: dict, mask_format: MaskFormat) -> frozenset[int]:
    """The classes in the mask of a row."""
    return mask_format.present(row["label"], mask_file(row))


def _entries(value: Any) -> Iterable[tuple]:
    """(id, entry) pairs of a mapping or a list; TypeError for anything else."""
    if isinstance(value, str):
        raise TypeError(value)
    return value.items() if isinstance(value, Mapping) else enumerate(value)


def _read_json(path: str, option: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{option} names {path}, which cannot be read as JSON: {error}.") from error
