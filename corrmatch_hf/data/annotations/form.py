"""The one form into which every reader brings annotations, and what readers share."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from os.path import commonpath
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from ...errors import InputError

BACKGROUND = "background"
# Names by which tools call "nothing" and "not to be used".
BACKGROUND_NAMES = ("background", "_background_", "__background__")
IGNORE_NAMES = ("__ignore__", "_ignore_")
ORIENTATION = ExifTags.Base.Orientation
LARGEST_FILE = 2 << 30  # bytes of one JSON file
SHOWN = 3  # names that are listed with a reason


class Unusable(Exception):
    """An annotation or file that cannot be used; the message is a reason that fits many of them."""


class Report:
    """What could not be used or deserves a word: {reason: names}."""

    def __init__(self) -> None:
        self.reasons: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        self.reasons.setdefault(reason, []).append(name)

    @contextmanager
    def skip(self, name: str) -> Iterator[None]:
        """Turns an `Unusable`, or the errors of reading data of an unexpected form, into an entry."""
        try:
            yield
        except Unusable as error:
            self.add(str(error), name)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
            self.add("annotations that do not have the form that the format prescribes", name)

    def lines(self) -> list[str]:
        """One line for each reason, with the number of cases and the first names."""
        lines = []
        for reason, names in self.reasons.items():
            distinct = list(dict.fromkeys(names))
            more = ", ..." if len(distinct) > SHOWN else ""
            lines.append(f"{len(names)} {reason}: {', '.join(map(_printable, distinct[:SHOWN]))}{more}")
        return lines


def _printable(name: str) -> str:
    """The name as it is, without control characters and of limited length."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= 120 else f"{name[:117]}..."


@dataclass
class Region:
    """One annotated object.

    label: the class; None means that its pixels are to be ignored.
    polygons: (N, 2) float arrays of x, y in pixels, whose origin is the corner of the image; their union is the object.
    holes: polygons that are cut out.
    bitmap: instead of polygons, a function that returns a bool array and the x and y of its upper left corner.
    layer: a region of a higher layer lies on top; in one layer, smaller regions lie on top of larger ones.
    """

    label: str | None
    polygons: list[np.ndarray] = field(default_factory=list)
    holes: list[np.ndarray] = field(default_factory=list)
    bitmap: Callable[[], tuple[np.ndarray, int, int]] | None = None
    layer: int = 0


@dataclass
class Photo:
    """One photo.

    file: its path relative to the source, with slashes.
    split: train, validation or test.
    regions: the objects; None for a photo without annotations. An empty list means that all of it is background. A
        function reads them when needed; it may raise `Unusable`.
    size: (width, height) for which the annotations were made; None if they do not say it.
    """

    file: str
    split: str = "train"
    regions: list[Region] | Callable[[], list[Region]] | None = None
    size: tuple[int, int] | None = None


@dataclass
class Annotations:
    """photos, and the names of the classes in the order of their ids, without background."""

    photos: list[Photo]
    classes: list[str]


class Files:
    """The files below a folder by their paths relative to it. A name in the annotations only finds files among them."""

    def __init__(self, root: str | os.PathLike):
        from ..images import suffixes

        self.root = Path(root)
        self.pictures: list[str] = []
        self.others: list[str] = []
        for parent, names in self._walk():
            for name in names:
                path = os.path.relpath(os.path.join(parent, name), self.root).replace(os.sep, "/")
                suffix = os.path.splitext(name)[1].lower()
                (self.pictures if suffix in suffixes() else self.others).append(path)
        self._headers: dict[str, tuple[tuple[int, int], int]] = {}

    def _walk(self) -> Iterator[tuple[str, list[str]]]:
        seen: set[str] = set()  # circular links end here
        for parent, folders, names in os.walk(self.root, followlinks=True):
            real = os.path.realpath(parent)
            hidden = (".", "__MACOSX")
            folders[:] = [] if real in seen else sorted(f for f in folders if not f.startswith(hidden))
            if real not in seen:
                seen.add(real)
                yield parent, sorted(name for name in names if not name.startswith("."))

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """{file name: paths}; names are compared in one Unicode form, since macOS writes another."""
        found: dict[str, list[str]] = {}
        for path in self.pictures:
            found.setdefault(_normal(path.rpartition("/")[2]), []).append(path)
        return found

    def with_suffix(self, *suffixes: str) -> list[str]:
        return [path for path in self.others if path.lower().endswith(suffixes)]

    def find(self, name: str, near: str) -> str:
        """The picture that a file at the path `near` calls `name`.

        It is looked for relative to that file, then anywhere with the same last folders, then by its name alone. Of
        several, the one wins whose folders are named in `near`.
        """
        if not isinstance(name, str) or not name.strip():
            raise Unusable("annotations without the name of their photo")
        name = _normal(name.replace("\\", "/"))
        base = name.rpartition("/")[2]
        absolute = name.startswith("/") or re.match(r"[A-Za-z]:|\w+://", name) is not None
        candidates = self._by_name.get(base, [])
        if absolute:
            matching = candidates
        else:
            target = os.path.relpath(self.root / os.path.dirname(near) / name, self.root).replace(os.sep, "/")
            if (target == ".." or target.startswith("../")) and not candidates:
                raise Unusable("photos whose path leads out of the folder (refused)")
            exact = [path for path in candidates if _normal(path) == _normal(target)]
            tail = "/" + os.path.normpath(name).replace(os.sep, "/").lstrip("./")
            matching = exact or [path for path in candidates if ("/" + _normal(path)).endswith(tail)]
            matching = matching or candidates
        if not matching:
            raise Unusable("photos that are named in the annotations but not in the folder")
        words = set(re.split(r"[/_.\- ]", near))

        def nearness(path: str) -> tuple[int, int]:
            folders = path.split("/")[:-1]
            return sum(folder in words for folder in folders), len(commonpath([path, near]))

        matching = sorted(matching, key=nearness, reverse=True)
        if len(matching) > 1 and nearness(matching[0]) == nearness(matching[1]):
            raise Unusable("photos whose name fits several files")
        return matching[0]

    def header(self, file: str) -> tuple[tuple[int, int], int]:
        """(width, height) as stored, and the EXIF orientation (1 to 8, 1 is upright)."""
        if file not in self._headers:
            from ..images import FORMATS

            if not file.isprintable() and not _is_text(file):
                raise Unusable("photos whose name is not UTF-8 text")
            try:
                if not (self.root / file).is_file():
                    raise OSError(file)
                Image.init()
                formats = [name for name in FORMATS if name in Image.OPEN]
                with Image.open(self.root / file, formats=formats) as picture:
                    turned = picture.getexif().get(ORIENTATION, 1)
                    size = picture.size
            except Exception as error:  # PIL raises many kinds
                raise Unusable("photos that cannot be read") from error
            if Image.MAX_IMAGE_PIXELS is not None and size[0] * size[1] > Image.MAX_IMAGE_PIXELS:
                raise Unusable("photos with more pixels than PIL.Image.MAX_IMAGE_PIXELS")
            self._headers[file] = size, turned if turned in range(1, 9) else 1
        return self._headers[file]

    def shown_size(self, file: str) -> tuple[int, int]:
        """(width, height) as the photo is displayed."""
        (width, height), turned = self.header(file)
        return (height, width) if turned >= 5 else (width, height)

    def text(self, file: str) -> str:
        path = self.root / file
        try:
            if not path.is_file():  # a pipe would never end
                raise Unusable("paths that are not regular files")
            if path.stat().st_size > LARGEST_FILE:
                raise Unusable("files of more than 2 GiB")
            return path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise Unusable("files that cannot be read as UTF-8 text") from error

    def required_text(self, file: str) -> str:
        """The text of a file without which nothing else can be read."""
        try:
            return self.text(file)
        except Unusable as error:
            raise InputError(f"{self.root / file} cannot be read as UTF-8 text.") from error

    def json(self, file: str) -> Any:
        try:
            return json.loads(self.text(file))
        except (ValueError, RecursionError) as error:
            raise Unusable("files that are not valid JSON") from error

    def unlisted(self, photos: list[Photo]) -> list[str]:
        """Pictures that are not among the photos, in folders where some of those are."""
        listed = {photo.file for photo in photos}
        folders = {os.path.dirname(file) for file in listed}
        return [path for path in self.pictures if path not in listed and os.path.dirname(path) in folders]


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # the system could not decode its bytes
        return False
    return True


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def split_of(path: str, by_name: bool = False) -> str:
    """The split that a path names by a folder called valid, val2017, test ..., or by a word of the file's name."""
    from ..sources.folders import SPLIT_NAMES

    known = {alias: name for name in ("train", "validation", "test") for alias in SPLIT_NAMES[name]}
    *folders, name = path.lower().split("/")
    words = re.split(r"[_.\- ]", name.rpartition(".")[0]) if by_name else []
    for word in (*words, *reversed(folders)):
        if word.rstrip("0123456789") in known:
            return known[word.rstrip("0123456789")]
    return "train"


def polygon(points: Any) -> np.ndarray:
    """[[x, y], ...] or [x, y, x, y, ...] -> (N, 2) float64, finite, at least three different points."""
    try:
        array = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise Unusable("polygons whose points are not pairs of numbers") from error
    if not np.isfinite(array).all():
        raise Unusable("polygons with points that are not finite numbers")
    if len(np.unique(array, axis=0)) < 3:
        raise Unusable("polygons with fewer than 3 points")
    return array


def rectangle(x: float, y: float, width: float, height: float) -> np.ndarray:
    """The polygon of a box."""
    return polygon([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])


def ellipse(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0.0) -> np.ndarray:
    """A polygon of 72 points."""
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    turned = np.deg2rad(degrees)
    a, b = radius_x * np.cos(angles), radius_y * np.sin(angles)
    xs = x + a * np.cos(turned) - b * np.sin(turned)
    ys = y + a * np.sin(turned) + b * np.cos(turned)
    return polygon(np.stack([xs, ys], axis=1))


def whole_size(width: Any, height: Any) -> tuple[int, int] | None:
    """(width, height) where both are positive numbers; None where the annotations do not say them."""
    if not width or not height:
        return None
    if not all(isinstance(v, int | float) and np.isfinite(v) and 0 < v < 1 << 31 for v in (width, height)):
        raise Unusable("annotations whose image size is not two positive numbers")
    return int(width), int(height)


def require_pycocotools() -> None:
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise InputError(
            'Reading polygons needs pycocotools: pip install "corrmatch-hf[formats]" (from a checkout: pip install -e '
            '".[formats]").'
        ) from error
