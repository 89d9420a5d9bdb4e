"""Masks that are stored inside annotation files: run lengths and pictures. None of them unpacks to more than asked."""

from __future__ import annotations

import base64
import zlib
from io import BytesIO
from typing import Any, Literal

import numpy as np
from PIL import Image

from .form import Unusable

WRONG_RUNS = "masks whose run lengths do not fill their image"
LARGEST_PACKED = 1 << 26  # bytes of a picture inside a JSON file, after decompression by zlib


def from_runs(counts: Any, height: int, width: int, order: Literal["F", "C"] = "F") -> np.ndarray:
    """Lengths of runs of 0 and 1 in turn -> (H, W) bool. COCO counts down the columns (order "F"), CVAT along rows."""
    runs = np.asarray(counts, dtype=np.int64).ravel()
    if (runs < 0).any() or (runs > height * width).any() or int(runs.sum()) != height * width:
        raise Unusable(WRONG_RUNS)
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order=order)


def from_coco_string(text: str | bytes, height: int, width: int) -> np.ndarray:
    """COCO's compressed run lengths -> (H, W) bool.

    Six bits a character: five of a number, least significant first, and one that tells that more follow. From the
    fourth number on, each is the difference to the one two places before.
    """
    codes = np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, dtype=np.uint8)
    codes = codes.astype(np.int64) - 48
    ends = np.flatnonzero((codes & 0x20) == 0)
    if codes.size == 0 or (codes < 0).any() or (codes > 63).any() or codes[-1] & 0x20:
        raise Unusable(WRONG_RUNS)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 7:
        raise Unusable(WRONG_RUNS)
    place = np.arange(codes.size) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    negative = (codes[ends] & 0x10) != 0
    numbers = numbers - np.where(negative, np.int64(1) << (5 * (ends - starts + 1)), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return from_runs(numbers, height, width)


def from_label_studio(data: Any, height: int, width: int) -> np.ndarray:
    """Label Studio's run lengths of an RGBA picture -> (H, W) bool, where the opacity is not 0.

    A header: 32 bits the count of values, 5 bits their size - 1, four times 4 bits the sizes - 1 of run lengths. Then
    runs: one bit (1: a repeated value), two bits that choose the size, the length - 1, and one value or as many.
    """
    packed = np.asarray(data, dtype=np.int64).ravel()
    if ((packed < 0) | (packed > 255)).any():
        raise Unusable(WRONG_RUNS)
    bits = "".join(f"{byte:08b}" for byte in packed.tolist())
    at = 0

    def take(size: int) -> int:
        nonlocal at
        at += size
        if at > len(bits):
            raise Unusable(WRONG_RUNS)
        return int(bits[at - size : at], 2)

    count, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    if count != height * width * 4:
        raise Unusable(WRONG_RUNS)
    values = np.zeros(count, dtype=bool)
    i = 0
    while i < count:
        repeated = take(1)
        j = i + 1 + take(sizes[take(2)])
        if repeated:
            values[i:j] = take(word) > 0
        else:
            for k in range(i, min(j, count)):
                values[k] = take(word) > 0
        i = j
    return values.reshape(height, width, 4)[..., 3]


def from_picture(text: str, largest: tuple[int, int], compressed: bool = False) -> np.ndarray:
    """A picture in base64, of at most `largest` (width, height) -> bool: where it is opaque, else where it is not 0."""
    try:
        data = base64.b64decode(text)
        if compressed:
            unpacking = zlib.decompressobj()
            data = unpacking.decompress(data, LARGEST_PACKED)
            if unpacking.unconsumed_tail:
                raise Unusable("masks that are larger than their photo")
        with Image.open(BytesIO(data), formats=["PNG"]) as picture:
            if picture.width > largest[0] or picture.height > largest[1]:
                raise Unusable("masks that are larger than their photo")
            array = np.asarray(picture)
            if picture.mode in ("RGBA", "LA"):
                return array[..., -1] > 0
            return (array if array.ndim == 2 else array.max(axis=2)) > 0
    except Unusable:
        raise
    except Exception as error:  # zlib, binascii and PIL raise many kinds
        raise Unusable("masks that cannot be decoded") from error
