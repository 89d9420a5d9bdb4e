"""Which images are labelled: named by a list, or drawn so that every class appears where it can."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ...errors import InputError


class Pair(NamedTuple):
    """An image and, where there is one, its mask: paths."""

    image: str
    mask: str | None = None


def read_list(
    path: str | os.PathLike, root: Path, known: Mapping[str, Pair], option: str, masks: bool = True
) -> list[Pair]:
    """The pairs of a partition list, one "image mask" or "image" a line, relative to `root`.

    An entry may also be the bare name of an image in `known`, which gives its mask too. With masks=False the
    masks of the list are not looked at and need not exist. A name may hold spaces where only one reading of
    the line exists. Raises InputError with list, line number and path where an entry is missing or leads out of
    `root` (see `_Located`).
    """
    located = _Located(root, path)
    pairs = []
    for number, line in list_lines(path, option):
        place = f"{path}, line {number} ({option})"
        read = _read_masked if masks else _read_bare
        pairs.append(read(line, located, known, place))
    return pairs


def rows_of_list(path: str | os.PathLike, files: list[str], option: str) -> list[int]:
    """For a dataset that is no folder: the rows whose file a list names, by path, file name or stem."""
    rows: dict[str, int | None] = {}
    for row, file in enumerate(files):
        for name in {file, Path(file).name, Path(file).stem}:
            rows[name] = None if name in rows else row  # None: the name means more than one row
    found = []
    for number, line in list_lines(path, option):
        images = [image for image, _ in _splits(line)] or [line]
        meant = {rows.get(line)} - {None} or {_row(image, rows) for image in images} - {None}
        if not meant:
            raise InputError(
                f"{path}, line {number} ({option}): the dataset has no image, or more than one, named "
                f"{images[0]!r}; its first image is {files[0]!r}."
            )
        if len(meant) > 1:
            raise InputError(
                f"{path}, line {number} ({option}): {line!r} may name {len(meant)} images: separate image and "
                "mask by a tab."
            )
        (row,) = meant
        found.append(row)
    return found


def _row(image: str, rows: Mapping[str, int | None]) -> int | None:
    names = image, Path(image).name, Path(image).stem
    return next((row for name in names if (row := rows.get(name)) is not None), None)


def _splits(line: str) -> Iterable[tuple[str, str]]:
    """Every way to cut a line in two at white space; at a tab only, if it has one."""
    for gap in re.finditer(r"\t+" if "\t" in line else r"\s+", line):
        yield line[: gap.start()], line[gap.end() :]


class _Located:
    """Where the entries of a list lie: `located(entry)` is a path, or None if it leads out of `root`.

    Entries are relative to `root`; those that begin with `..` may be relative to the list's own folder. Absolute
    ones are taken as they are, for the list is the user's own. It is the path as written that must not lead out:
    links may, so data that are linked into `root` are found.
    """

    def __init__(self, root: str | os.PathLike, list_file: str | os.PathLike):
        self.root, self.list_file = str(Path(root)), list_file

    def __call__(self, entry: str) -> str | None:
        if os.path.isabs(entry):
            return entry
        inside = os.path.normpath(entry)
        if _leaves(inside):
            from_list = os.path.join(os.path.realpath(os.path.dirname(self.list_file) or "."), inside)
            inside = os.path.relpath(os.path.normpath(from_list), os.path.realpath(self.root))
        return None if _leaves(inside) else os.path.join(self.root, inside)


def _leaves(path: str) -> bool:
    """Whether a normalised relative path begins with `..`."""
    return path.split(os.sep, 1)[0] == os.pardir


def _is_file(path: str | None) -> bool:
    return path is not None and os.path.isfile(path)  # False, too, for names that no system takes


def _read_masked(line: str, located: _Located, known: Mapping[str, Pair], place: str) -> Pair:
    readings = [
        Pair(image, mask)
        for image, mask in (map(located, names) for names in _splits(line))
        if _is_file(image) and _is_file(mask)
    ]
    if len(readings) > 1:
        raise InputError(
            f"{place}: {line!r} can be read as {len(readings)} pairs of files: separate them by a tab."
        )
    if readings:
        return readings[0]
    pair, file = _find(line, known), located(line)
    if _is_file(file) or (file is not None and pair):
        if pair is None or pair.mask is None or (_is_file(file) and not os.path.samefile(file, pair.image)):
            raise InputError(f"{place}: no mask is given for {line}, and none of the same name was found.")
        return pair
    image, mask = next(iter(_splits(line)), (line, None))
    raise _missing(mask if mask is not None and _is_file(located(image)) else image, line, located, place)


def _read_bare(line: str, located: _Located, known: Mapping[str, Pair], place: str) -> Pair:
    names = (line, *(image for image, _ in _splits(line)))
    readings = [(name, path) for name in names if _is_file(path := located(name))]
    if len(readings) > 1:
        choice = " or ".join(name for name, _ in readings)
        raise InputError(f"{place}: {line!r} may name {choice}: separate image and mask by a tab.")
    if readings:
        return Pair(readings[0][1])
    pair = _find(line, known)
    if pair and located(line) is not None:
        return Pair(pair.image)
    raise _missing(names[1] if len(names) > 1 else line, line, located, place)


def _find(entry: str, known: Mapping[str, Pair]) -> Pair | None:
    """The image that an entry means, if it is the bare name, with suffix or without, of one in `known`."""
    return known.get(entry) or known.get(Path(entry).stem)


def _missing(entry: str, line: str, located: _Located, place: str) -> InputError:
    """The error for a line that names no file, of which `entry` is the part that is missing."""
    if line.startswith("#"):
        return InputError(f"{place}: {line!r} names no file: a list holds names alone, no comments.")
    path = located(entry)
    if path is None:
        return InputError(
            f"{place}: {entry} leads out of {located.root}: give the folder that holds all the data as --data_dir, "
            "or absolute paths."
        )
    folder = next((p for p in reversed(Path(path).parents) if not os.path.exists(p)), None)
    if folder is not None:
        return InputError(f"{place}: {path} does not exist, nor does its folder {folder}: check --data_dir.")
    return InputError(f"{place}: {path} does not exist.")


# -------------------- Text files with one entry a line: partition lists, and those of PASCAL VOC.


def list_lines(path: str | os.PathLike, option: str) -> list[tuple[int, str]]:
    """The lines of a list that are not empty, numbered from 1, without the white space around them.

    A list is UTF-8, with or without a byte order mark; its lines end as on any system. Raises InputError, naming
    the list and the option, where it is missing, empty, or no such text.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"The list {path} ({option}) does not exist.") from None
    except OSError as error:
        raise InputError(f"The list {path} ({option}) cannot be read: {error.strerror}.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"The list {path} ({option}) is no UTF-8 text, for line {line} holds the byte "
            f"0x{content[error.start]:02X}: save it as UTF-8."
        ) from None
    # Not splitlines, which would also cut at characters that names may hold.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = [(number, entry) for number, line in enumerate(lines, 1) if (entry := line.strip())]
    if not lines:
        raise InputError(f"The list {path} ({option}) is empty.")
    return lines
