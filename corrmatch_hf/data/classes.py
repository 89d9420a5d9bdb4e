"""The names and colours of the classes, in any of the forms that users give them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..text import read_small_text, visible
from .masks import Color, MaskFormat
from .semi_dataset import mask_file


@dataclass(frozen=True)
class Classes:
    """The classes of a dataset, and the numbers that they have in its masks (see `MaskFormat`)."""

    id2label: dict[int, str]  # 0 ... K-1
    label_ids: tuple[int, ...] | None = None
    ignored_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()  # what was assumed, a sentence each

    def __post_init__(self):
        """Names may come from strangers: characters that steer a terminal or a page are written as escapes."""
        shown = {i: visible(name) for i, name in self.id2label.items()}
        object.__setattr__(self, "id2label", shown)

    @property
    def names_in_masks(self) -> dict[int, str]:
        """{number in the masks: name}."""
        return dict(zip(self.label_ids or self.id2label, self.id2label.values(), strict=True))


def read_names(
    value: Mapping | Sequence | str | None, ignore_index: int, ignored_given: bool
) -> Classes | None:
    """A mapping, a list of names, JSON of either or a JSON file -> the classes in the order of their numbers.

    A mapping may give any numbers, such as {"7": "road", "26": "car", "0": null}: 7 and 26 become the classes 0 and 1,
    and 0 is ignored.
    """
    if value is None:
        return None
    place = "--id2label"
    if isinstance(value, str):
        place = "--id2label" if _is_inline(value) else value
        value = _read_json(value, "--id2label")
    try:
        names = {int(i): _name(label) for i, label in _entries(value)}
    except (TypeError, ValueError):
        raise InputError(
            f'{place} must map each class id to its name, as in {{"0": "sky", "1": "road"}}.'
        ) from None
    ignored = tuple(i for i, label in names.items() if label is None)
    names = {i: label for i, label in sorted(names.items()) if label is not None}
    rest = [i for i in names if i != ignore_index]
    # 255: "void" beside 0 ... 20 names what is ignored; 0 and 255 are the two classes of a black and white mask.
    if ignore_index in names and (ignored_given or (rest == list(range(len(rest))) and len(rest) > 1)):
        names.pop(ignore_index)
    if not names:
        raise InputError(f"{place} names no class.")
    numbered = list(names) == list(range(len(names)))
    return Classes(dict(enumerate(names.values())), None if numbered else tuple(names), ignored)


def read_colors(
    value: Mapping | Sequence | str | None, ignore_index: int
) -> tuple[tuple[Color, ...] | None, tuple[Color, ...]]:
    """A mapping, a list of colours, JSON of either or a JSON file -> colours of the classes, colours of 'ignore'."""
    if value is None:
        return None, ()
    if isinstance(value, str):
        value = _read_json(value, "--label_colors")
    try:
        colors: dict[int, Any] = {int(i): tuple(map(_whole, color)) for i, color in _entries(value)}
    except (TypeError, ValueError, OverflowError):
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


def read_class_file(
    path: str, ignore_index: int, ignored_given: bool
) -> tuple[Classes, tuple[Color, ...] | None]:
    """The classes that a data folder names, and their colours if the file gives them.

    id2label.json; CVAT's labelmap.txt, with lines "name:red,green,blue:parts:actions"; Roboflow's _classes.csv, with
    lines "number, name".
    """
    if path.endswith(".json"):
        return read_names(path, ignore_index, ignored_given), None
    try:
        lines = read_small_text(path).splitlines()
        lines = [line for line in lines if line.strip() and not line.startswith("#")]
        if path.endswith(".csv"):
            rows = [row for row in csv.reader(lines) if row[0].strip().isdigit()]
            return read_names(
                {int(row[0]): row[1].strip() for row in rows}, ignore_index, ignored_given
            ), None
        entries = [line.rsplit(":", 3) for line in lines]
        colors = [[int(part) for part in entry[1].split(",")] for entry in entries]
    except (ValueError, IndexError, csv.Error) as error:
        raise InputError(
            f"{path} names the classes, but cannot be read ({error}): mend it, or remove it and give --id2label."
        ) from error
    return Classes({i: entry[0] for i, entry in enumerate(entries)}), read_colors(colors, ignore_index)[0]


def numbered_names(count: int) -> dict[int, str]:
    """transformers' default names: {0: "LABEL_0", 1: "LABEL_1", ...}."""
    return {i: f"LABEL_{i}" for i in range(count)}


def classes_of(row: dict, mask_format: MaskFormat) -> frozenset[int]:
    """The classes in the mask of a row."""
    return mask_format.present(row["label"], mask_file(row))


def _entries(value: Any) -> Iterable[tuple]:
    """(id, entry) pairs of a mapping or a list; TypeError for anything else."""
    if isinstance(value, str):
        raise TypeError(value)
    return value.items() if isinstance(value, Mapping) else enumerate(value)


def _name(label: Any) -> str | None:
    """The name of a class; TypeError for a mapping or a list, such as a tool's description of a class."""
    if isinstance(label, Mapping | list | tuple):
        raise TypeError(label)
    return label if label is None else str(label)


def _is_inline(value: str) -> bool:
    """Whether an option's value is JSON itself, not the name of a file."""
    return value.lstrip()[:1] in ("{", "[")


def _whole(value: Any) -> int:
    """A whole number; ValueError for 0.5, which is no 8-bit colour, and for text that is no number."""
    if int(value) != float(value):
        raise ValueError(value)
    return int(value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are different: of two equal ones, `json` would keep the last without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key stands there twice, among {', '.join(key for key, _ in pairs)[:200]}")
    return found


def _read_json(path: str, option: str) -> Any:
    if _is_inline(path):
        try:
            return json.loads(path, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{option} {path[:60]} is neither valid JSON nor a file: {error}.") from error
    try:
        return json.loads(read_small_text(path), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{option} names {path[:200]}, which cannot be read as JSON: {error}.") from error
