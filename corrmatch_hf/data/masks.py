"""The one reader of masks: masks of every kind as class ids.

Masks are never converted to another picture mode, because that would turn palette ids into brightness.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import InputError
from .images import open_picture

Color = tuple[int, int, int]
MANY_IDS = 10  # that belong to no class: more are not listed
JPEG_REMEDY = "JPEG compression changes ids and colours; save masks as PNG"


def voc_colors(count: int = 256) -> tuple[Color, ...]:
    """PASCAL VOC's colours: bits 0, 1, 2 of a class id are the highest bits of R, G, B, bits 3, 4, 5 the next."""
    colors = []
    for class_id in range(count):
        color = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                color[channel] |= (class_id >> (3 * bit + channel) & 1) << (7 - bit)
        colors.append((color[0], color[1], color[2]))
    return tuple(colors)


class RawMask(NamedTuple):
    """A mask as its file holds it."""

    values: np.ndarray  # (H, W) whole numbers, or (H, W, 3) uint8 colours
    palette: np.ndarray | None = (
        None  # (256, 3) uint8, the colours of the numbers, unless it is the ramp of grays
    )
    jpeg: bool = False


@dataclass(frozen=True)
class MaskFormat:
    """How the masks of a dataset code class ids, and which ids are allowed.

    num_labels: ids run from 0 to num_labels - 1, after `reduce_labels`; None allows every id.
    reduce_labels: 0 becomes ignore_index and every other id is lowered by one; not in colour-coded masks.
    label_colors: the colour of each class in colour-coded masks; None means PASCAL VOC's, whose border colour is
        ignore_index. If they are given, masks with a palette are read by its colours; if all of them are gray, masks
        of one channel are, too.
    ignore_colors: colours that mean ignore_index.
    label_ids: the number in the masks that each class has, in their order; None: the class id itself.
    ignored_ids: numbers in the masks that mean ignore_index, besides ignore_index itself.
    """

    num_labels: int | None
    ignore_index: int = 255
    reduce_labels: bool = False
    label_colors: tuple[Color, ...] | None = None
    ignore_colors: tuple[Color, ...] = ()
    label_ids: tuple[int, ...] | None = None
    ignored_ids: tuple[int, ...] = ()

    def read(self, value: Any, file: str) -> np.ndarray:
        """One cell of a label column -> (H, W) uint8 or int32, every value a class id or ignore_index.

        Raises InputError that names `file` and the id or colour without a class.
        """
        raw = open_mask(value, file)
        values = raw.values
        if self.label_colors is not None and raw.palette is not None:
            values = raw.palette[values]
        elif values.ndim == 2 and self._gray_colors and values.dtype == np.uint8:
            values = np.repeat(values[..., None], 3, axis=2)
        ids = self._from_colors(values, file, raw.jpeg) if values.ndim == 3 else self._from_ids(values, file)
        limit = np.iinfo(np.int32).max if self.num_labels is None else self.num_labels
        wrong = ((ids < 0) | (ids >= limit)) & (ids != self.ignore_index)
        if wrong.any():
            reduced = " (after reduce_labels)" if self.reduce_labels else ""
            known = "0 or more" if self.num_labels is None else f"0 to {self.num_labels - 1}"
            lossy = f" The file is a JPEG: {JPEG_REMEDY}." if raw.jpeg else ""
            if not lossy and len(np.unique(ids[wrong])) > MANY_IDS:
                lossy = " So many ids look like objects (instance ids), or like a resize with interpolation."
            raise InputError(
                f"Mask {file} holds {_class_ids(ids[wrong])}{reduced}, but ids "
                f"must be {known}, or {self.ignore_index} for 'ignore': name more classes with --num_labels "
                "or --id2label, give another --ignore_index, or use --reduce_labels if 0 means 'no class'."
                + lossy
            )
        return ids

    def present(self, value: Any, file: str) -> frozenset[int]:
        """The class ids that occur in a mask, ignore_index left out."""
        return frozenset(np.unique(self.read(value, file)).tolist()) - {self.ignore_index}

    def _from_ids(self, values: np.ndarray, file: str) -> np.ndarray:
        """(H, W) of any integers, or of floats that are whole numbers -> ids."""
        if self.label_ids is not None or self.ignored_ids:
            return self._from_named_ids(values, file)
        small = values.dtype == np.uint8 and 0 <= self.ignore_index <= 255
        whole = np.iinfo(np.int32)  # clipped, since wrapped-around values could be valid ids
        ids = values if small else np.clip(values, whole.min, whole.max).astype(np.int32)
        if not self.reduce_labels:
            return ids
        ignored = (ids == 0) | (ids == self.ignore_index)
        return np.where(ignored, np.array(self.ignore_index, ids.dtype), ids - np.array(1, ids.dtype))

    def _from_named_ids(self, values: np.ndarray, file: str) -> np.ndarray:
        """(H, W) numbers -> the classes that `label_ids` gives them."""
        keys, classes = self._id_table
        place = np.searchsorted(keys, values).clip(max=len(keys) - 1)
        unknown = keys[place] != values
        if unknown.any():
            raise InputError(
                f"Mask {file} holds {_class_ids(values[unknown])}, which id2label does not name: add it to --id2label, "
                "with the name null if its pixels are to be ignored."
            )
        return classes[place]

    @cached_property
    def _id_table(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted numbers in the masks, and their class ids."""
        named = range(self.num_labels) if self.label_ids is None else self.label_ids
        table = dict.fromkeys((self.ignore_index, *self.ignored_ids), self.ignore_index)
        table |= {number: i for i, number in enumerate(named)}
        keys = sorted(table)
        return np.array(keys), np.array([table[key] for key in keys], dtype=np.int32)

    def _from_colors(self, values: np.ndarray, file: str, jpeg: bool) -> np.ndarray:
        """(H, W, 3) uint8 -> ids."""
        gray = bool((values == values[..., :1]).all())
        if gray and self.label_colors is None and self.label_ids is not None:  # ids, saved as R = G = B
            return self._from_ids(values[..., 0], file)
        codes = _color_codes(values)
        keys, key_ids = self._color_table
        place = np.searchsorted(keys, codes).clip(max=len(keys) - 1)
        unknown = keys[place] != codes
        if not unknown.any():
            return key_ids[place]
        if gray and (self.label_colors is None or self._gray_colors):
            return self._from_ids(values[..., 0], file)
        code = int(codes[unknown][0])
        color = (code >> 16, code >> 8 & 255, code & 255)
        y, x = (int(v[0]) for v in np.nonzero(unknown))
        table = "PASCAL VOC's colours" if self.label_colors is None else "--label_colors"
        raise InputError(
            f"Mask {file} has the colour {color} at row {y}, column {x}, which {table} do not name: give the "
            "colour of every class, and of 'ignore', with --label_colors."
            + (f" The file is a JPEG: {JPEG_REMEDY}." if jpeg else "")
        )

    @cached_property
    def _gray_colors(self) -> bool:
        """Whether the given colours are all gray, so that a mask of one channel is coded by them too."""
        colors = (*(self.label_colors or ()), *self.ignore_colors)
        return bool(colors) and all(len(set(color)) == 1 for color in colors)

    @cached_property
    def _color_table(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted colour codes and their ids."""
        if self.label_colors is None:
            *classes, border = voc_colors()
            classes, ignored = classes[: self.num_labels], (border,)
        else:
            classes, ignored = self.label_colors, self.ignore_colors
        colors = np.array([*classes, *ignored], dtype=np.uint8)
        ids = np.array([*range(len(classes)), *[self.ignore_index] * len(ignored)], dtype=np.int32)
        codes = _color_codes(colors)
        order = np.argsort(codes, kind="stable")
        return codes[order], ids[order]


def _color_codes(colors: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 -> (...) int32, one number per colour."""
    red, green, blue = (colors[..., i].astype(np.int32) for i in range(3))
    return red << 16 | green << 8 | blue


def _class_ids(values: np.ndarray) -> str:
    """ "the class ids 3, 4": the different values, the first ten of them."""
    found = np.unique(values)
    more = " ..." if len(found) > MANY_IDS else ""
    listed = ", ".join(f"{v:g}" for v in found[:MANY_IDS].tolist()) + more
    return f"the class id{'s' if len(found) > 1 else ''} {listed}"


def open_mask(value: Any, file: str) -> RawMask:
    """One cell of a label column, decoded or not, or the path of a .npy file -> its numbers or colours."""
    palette, jpeg = None, False
    if (path := _array_file(value)) is not None:
        array = _load_array(path, file)
    elif isinstance(value, dict | str | bytes | Image.Image):
        picture = open_picture(value, file)
        if picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):  # their channels would be mistaken for RGB
            raise InputError(
                f"Mask {file} is a picture in {picture.mode}: save it as PNG, with class ids or as RGB."
            )
        jpeg = picture.format in ("JPEG", "MPO")
        array = np.asarray(picture)
        if picture.mode in ("LA", "PA", "RGBA"):
            _refuse_drawn_by_alpha(array, file)
        if picture.mode in ("LA", "PA"):  # ids and transparency
            array = array[..., 0]
        if picture.mode in ("P", "PA"):
            palette = _palette(picture)
    else:
        array = _nested(value, file)
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array.squeeze(0 if array.shape[0] == 1 else 2)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8:
        return RawMask(array[..., :3], jpeg=jpeg)
    whole = array.dtype.kind in "iu" or (array.dtype.kind == "f" and bool((array == np.floor(array)).all()))
    if array.ndim != 2 or not whole or array.size == 0:
        raise InputError(
            f"Mask {file} is an array of shape {array.shape} and type {array.dtype}: give one whole number "
            "per pixel, or an RGB picture with --label_colors."
        )
    return RawMask(array, palette, jpeg)


def _nested(value: Any, file: str) -> np.ndarray:
    """An array, or nested lists of the same lengths."""
    try:
        return np.asarray(value)
    except ValueError:
        raise InputError(
            f"Mask {file} consists of lists of different lengths, as of polygons or boxes, not of rows of pixels: name "
            "the column of the masks with --label_column."
        ) from None


def _refuse_drawn_by_alpha(array: np.ndarray, file: str) -> None:
    """Raises InputError if the transparency, which is not read, is all that differs in a mask."""
    colors, alpha = array[..., :-1], array[..., -1]
    if array.size and (colors == colors[0, 0]).all() and not (alpha == alpha[0, 0]).all():
        raise InputError(
            f"Mask {file} has one colour and differs in its transparency alone, which is not read: save its alpha "
            "channel as the mask, in Pillow with getchannel('A')."
        )


def _palette(picture: Image.Image) -> np.ndarray | None:
    """The (256, 3) uint8 palette of a picture; None for the ramp of grays, whose colours say nothing."""
    colors = np.zeros((256, 3), np.uint8)
    given = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)[:256]
    colors[: len(given)] = given
    ramp = np.arange(len(given), dtype=np.uint8)
    return None if (given == ramp[:, None]).all() else colors


def _array_file(value: Any) -> str | None:
    """The path of a .npy file that a cell names."""
    path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else value
    return path if isinstance(path, str) and path.lower().endswith(".npy") else None


def _load_array(path: str, file: str) -> np.ndarray:
    """The array of a .npy file, without pickled objects, and no larger than a picture may be."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # reads the head alone
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and array.size > limit:
            raise ValueError(f"it has {array.size} values, more than PIL.Image.MAX_IMAGE_PIXELS = {limit}")
        return np.array(array)
    except Exception as error:  # OSError, ValueError, EOFError, SyntaxError ... of a damaged head
        reason = str(error).rstrip(".") or type(error).__name__
        raise InputError(
            f"Cannot read the mask {file}: {reason}. Repair it or remove it from the data."
        ) from error
