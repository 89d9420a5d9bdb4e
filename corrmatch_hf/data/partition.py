"""Which images are labelled: named by a list, or drawn so that every class appears where it can."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from corrmatch_hf.data.folders import Pair
from corrmatch_hf.errors import InputError


def read_list(
    path: str | os.PathLike, root: Path, known: Mapping[str, Pair], option: str, masks: bool = True
) -> list[Pair]:
    """The pairs of a partition list, one "image mask" or "image" a line, relative to `root`.

    An entry may also be the bare name of an image in `known`, which gives its mask too. With masks=False the
    masks of the list are not looked at and need not exist. A name may hold spaces where only one reading of
    the line exists. Raises InputError with list, line number and path where an entry is missing.
    """
    pairs = []
    for number, line in list_lines(path, option):
        place = f"{path}, line {number} ({option})"
        pair = _read_masked(line, root, known, place) if masks else _read_bare(line, root, known, place)
        pairs.append(pair)
    return pairs


def list_lines(path: str | os.PathLike, option: str) -> list[tuple[int, str]]:
    """The lines of a list that are not empty, numbered from 1."""
    if not Path(path).is_file():
        raise InputError(f"The list {path} ({option}) does not exist.")
    lines = [
        (n, line.strip()) for n, line in enumerate(Path(path).read_text().splitlines(), 1) if line.strip()
    ]
    if not lines:
        raise InputError(f"The list {path} ({option}) is empty.")
    return lines


def rows_of_list(path: str | os.PathLike, files: list[str], option: str) -> list[int]:
    """For a dataset that is no folder: the rows whose file a list names, by path, file name or stem."""
    rows: dict[str, int | None] = {}
    for row, file in enumerate(files):
        for name in {file, Path(file).name, Path(file).stem}:
            rows[name] = None if name in rows else row  # None: the name means more than one row
    found = []
    for number, line in list_lines(path, option):
        image = line.split()[0]
        row = next(
            (r for n in (line, image, Path(image).name, Path(image).stem) if (r := rows.get(n)) is not None),
            None,
        )
        if row is None:
            raise InputError(
                f"{path}, line {number} ({option}): the dataset has no image, or more than one, named "
                f"{image!r}; its first image is {files[0]!r}."
            )
        found.append(row)
    return found


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


def _splits(line: str) -> Iterable[tuple[str, str]]:
    """Every way to cut a line in two at white space; at a tab only, if it has one."""
    for gap in re.finditer(r"\t+" if "\t" in line else r"\s+", line):
        yield line[: gap.start()], line[gap.end() :]


def _read_masked(line: str, root: Path, known: Mapping[str, Pair], place: str) -> Pair:
    readings = [
        Pair(str(root / image), str(root / mask))
        for image, mask in _splits(line)
        if (root / image).is_file() and (root / mask).is_file()
    ]
    if len(readings) > 1:
        raise InputError(
            f"{place}: {line!r} can be read as {len(readings)} pairs of files: separate them by a tab."
        )
    if readings:
        return readings[0]
    pair, file = _find(line, known), root / line
    if pair or file.is_file():
        if pair is None or pair.mask is None or (file.is_file() and not file.samefile(pair.image)):
            raise InputError(f"{place}: no mask is given for {line}, and none of the same name was found.")
        return pair
    image, mask = next(iter(_splits(line)), (line, None))
    raise _missing(root / (mask if mask is not None and (root / image).is_file() else image), place)


def _read_bare(line: str, root: Path, known: Mapping[str, Pair], place: str) -> Pair:
    readings = [image for image in (line, *(image for image, _ in _splits(line))) if (root / image).is_file()]
    if len(readings) > 1:
        raise InputError(
            f"{place}: {line!r} may name {' or '.join(readings)}: separate image and mask by a tab."
        )
    if readings:
        return Pair(str(root / readings[0]))
    if pair := _find(line, known):
        return Pair(pair.image)
    raise _missing(root / next(iter(_splits(line)), (line,))[0], place)


def _find(entry: str, known: Mapping[str, Pair]) -> Pair | None:
    """The image that an entry means, if it is the bare name, with suffix or without, of one in `known`."""
    return known.get(entry) or known.get(Path(entry).stem)


def _missing(path: Path, place: str) -> InputError:
    folder = next((p for p in reversed(path.parents) if not p.exists()), None)
    if folder is not None:
        return InputError(f"{place}: {path} does not exist, nor does its folder {folder}: check --data_dir.")
    return InputError(f"{place}: {path} does not exist.")
