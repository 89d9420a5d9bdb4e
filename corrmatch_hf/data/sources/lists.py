"""List files, which name one image or one image and its mask per line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ...errors import InputError

LARGEST_LIST = 2**29  # bytes: millions of lines


class Pair(NamedTuple):
    """The path of an image and, if it has one, of its mask."""

    image: str
    mask: str | None = None


def read_lines(path: str | os.PathLike, option: str) -> list[tuple[int, str]]:
    """The non-empty lines of a list file, numbered from 1, without surrounding white space.

    The file is UTF-8, with or without a byte order mark, with the line ends of any system. Raises InputError, naming
    the file and the option, if it is missing, empty, a picture or the like, or not UTF-8 text.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_LIST + 1)
    except FileNotFoundError:
        raise InputError(f"The list {path} ({option}) does not exist.") from None
    except OSError as error:
        raise InputError(f"The list {path} ({option}) cannot be read: {error.strerror}.") from error
    if len(content) > LARGEST_LIST:
        raise InputError(
            f"The list {path} ({option}) is larger than {LARGEST_LIST // 2**20} MiB; give a text file with an image in "
            "each line."
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if b"\0" in content and not content.startswith((b"\xff\xfe", b"\xfe\xff")):  # those begin UTF-16
            raise InputError(
                f"The list {path} ({option}) is not a text file; give one with an image in each line."
            ) from None
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"The list {path} ({option}) is not UTF-8 text: line {line} holds the byte "
            f"0x{content[error.start]:02X}. Save it as UTF-8."
        ) from None
    # Not splitlines, which also splits at characters that file names may contain.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = [(number, entry) for number, line in enumerate(lines, 1) if (entry := line.strip())]
    if not lines:
        raise InputError(f"The list {path} ({option}) is empty.")
    return lines


def read_list(
    path: str | os.PathLike, root: Path, known: Mapping[str, Pair], option: str, masks: bool | None = True
) -> list[Pair]:
    """The pairs of a list with one "image mask" or "image" per line, relative to `root`.

    An entry may also be the bare name of an image in `known`, which then gives its mask. With masks=False, masks in
    the list are not read and need not exist; with None, those that exist are read. A name may contain spaces if the
    line can be read in only one way. Raises InputError with list, line number and path if an entry is missing or lies
    outside of `root` (see `_Locator`).
    """
    locate = _Locator(root, path)
    read = {True: _read_masked, False: _read_bare, None: _read_either}[masks]
    return [
        read(line, locate, known, f"{path}, line {number} ({option})")
        for number, line in read_lines(path, option)
    ]


def rows_of_list(path: str | os.PathLike, files: list[str], option: str) -> list[int]:
    """The rows of a dataset whose image file is named by a list: by path, by file name or without its suffix.

    Args:
        files: the image file of each row.
    """
    rows: dict[str, int | None] = {}
    files = [file.replace("\\", "/") for file in files]
    for row, file in enumerate(files):
        for name in {file, Path(file).name, Path(file).stem}:
            rows[name] = None if name in rows else row  # None: the name is ambiguous
    found = []
    for number, line in read_lines(path, option):
        line = line.replace("\\", "/")
        images = [image for image, _ in _splits(line)] or [line]
        meant = {rows.get(line)} - {None} or {_row(image, rows, files) for image in images} - {None}
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


def files_in_list(path: str | os.PathLike, files: list[str], option: str) -> set[int]:
    """The numbers of those `files` that a list names, as far as the paths in both go; other lines do not matter."""
    by_stem: dict[str, list[int]] = {}
    for number, file in enumerate(files):
        by_stem.setdefault(Path(file).stem, []).append(number)
    found = set()
    for _, line in read_lines(path, option):
        line = line.replace("\\", "/")
        for image in {line, *(image for image, _ in _splits(line))}:
            for number in by_stem.get(Path(image).stem, ()):
                folders = _folders_of_both(files[number].replace("\\", "/"), image)
                if all(one == other or other == ".." for one, other in folders):
                    found.add(number)
    return found


def _row(image: str, rows: Mapping[str, int | None], files: list[str]) -> int | None:
    """The row with this image: by its path, or by its name where the folders that both give agree."""
    if (row := rows.get(image)) is not None:
        return row
    row = rows.get(Path(image).name) if Path(image).suffix else rows.get(Path(image).stem)
    if row is None:
        return None
    return row if all(one == other for one, other in _folders_of_both(image, files[row])) else None


def _folders_of_both(one: str, other: str) -> Iterable[tuple[str, str]]:
    """The folders that two paths give, in pairs from the innermost outwards, as far as both go."""
    return zip(reversed(Path(one).parent.parts), reversed(Path(other).parent.parts), strict=False)


def _splits(line: str) -> Iterable[tuple[str, str]]:
    """All ways to split a line in two at white space; only at tabs if it contains any."""
    for gap in re.finditer(r"\t+" if "\t" in line else r"\s+", line):
        yield line[: gap.start()], line[gap.end() :]


class _Locator:
    """`locate(entry)`: the path of a list's entry, or None if it lies outside of `root`.

    Entries are relative to `root`; those that begin with `..` may also be relative to the list's folder. Absolute
    paths are allowed, because the list is the user's own. Only the path as written must stay inside: links may lead
    anywhere, so that data can be linked into `root`.
    """

    def __init__(self, root: str | os.PathLike, list_file: str | os.PathLike):
        self.root, self.list_file = str(Path(root)), list_file

    def __call__(self, entry: str) -> str | None:
        path = self._locate(entry)
        if "\\" in entry and not _is_file(path):  # a list written on Windows
            path = self._locate(entry.replace("\\", "/"))
        return path

    def _locate(self, entry: str) -> str | None:
        if os.path.isabs(entry):
            return entry
        inside = os.path.normpath(entry)
        if _is_outside(inside):
            from_list = os.path.join(os.path.realpath(os.path.dirname(self.list_file) or "."), inside)
            inside = os.path.relpath(os.path.normpath(from_list), os.path.realpath(self.root))
        return None if _is_outside(inside) else os.path.join(self.root, inside)


def _is_outside(path: str) -> bool:
    """Whether a normalised relative path begins with `..`."""
    return path.split(os.sep, 1)[0] == os.pardir


def _is_file(path: str | None) -> bool:
    return path is not None and os.path.isfile(path)  # also False for names that the system does not allow


def _read_masked(line: str, locate: _Locator, known: Mapping[str, Pair], place: str) -> Pair:
    """A line that must give an image with its mask."""
    readings = [
        Pair(image, mask)
        for image, mask in (map(locate, names) for names in _splits(line))
        if _is_file(image) and _is_file(mask)
    ]
    if len(readings) > 1:
        raise InputError(
            f"{place}: {line!r} can be read as {len(readings)} pairs of files: separate them by a tab."
        )
    if readings:
        return readings[0]
    file = locate(line)
    pair = _known(line, file, known)
    if _is_file(file) or (file is not None and pair):
        if pair is None or pair.mask is None or (_is_file(file) and not os.path.samefile(file, pair.image)):
            raise InputError(f"{place}: no mask is given for {line}, and none of the same name was found.")
        return pair
    image, mask = next(iter(_splits(line)), (line, None))
    raise _missing(mask if mask is not None and _is_file(locate(image)) else image, line, locate, place)


def _read_either(line: str, locate: _Locator, known: Mapping[str, Pair], place: str) -> Pair:
    """A line that may give an image with its mask."""
    try:
        return _read_masked(line, locate, known, place)
    except InputError:
        return _read_bare(line, locate, known, place)


def _read_bare(line: str, locate: _Locator, known: Mapping[str, Pair], place: str) -> Pair:
    """A line that must give an image; a mask in it is not read."""
    names = [line]
    if len(line.split(None, 1)) > 1:  # most lines of a million are one name
        names += [image for image, _ in _splits(line)]
    readings = [(name, path) for name in names if _is_file(path := locate(name))]
    if len(readings) > 1:
        choice = " or ".join(name for name, _ in readings)
        raise InputError(f"{place}: {line!r} may name {choice}: separate image and mask by a tab.")
    if readings:
        return Pair(readings[0][1])
    pair = _known(line, locate(line), known)
    if pair and locate(line) is not None:
        return Pair(pair.image)
    raise _missing(names[1] if len(names) > 1 else line, line, locate, place)


def _known(entry: str, file: str | None, known: Mapping[str, Pair]) -> Pair | None:
    """The image in `known` that an entry names: by the path of the file, or by its bare name.

    A path that does not exist names nothing: the file of that name in another folder is another picture.
    """
    if _is_file(file):
        name = os.path.basename(file)
        names = (os.path.normpath(file), name, os.path.splitext(name)[0])
        return next((known[name] for name in names if name in known), None)
    return known.get(entry)


def _missing(entry: str, line: str, locate: _Locator, place: str) -> InputError:
    """The error for a line without a file; `entry` is the part of it that is missing."""
    if line.startswith("#"):
        return InputError(f"{place}: {line!r} names no file: lists cannot contain comments.")
    path = locate(entry)
    if path is None:
        return InputError(
            f"{place}: {entry} leads out of {locate.root}: give the folder with all the data as --data_dir, "
            "or absolute paths."
        )
    folder = next((p for p in reversed(Path(path).parents) if not os.path.exists(p)), None)
    if folder is not None:
        return InputError(f"{place}: {path} does not exist, nor does its folder {folder}: check --data_dir.")
    return InputError(f"{place}: {path} does not exist.")
