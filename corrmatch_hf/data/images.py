"""Photos of every kind, as RGB."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageOps

from corrmatch_hf.errors import InputError

_IMAGE = datasets.Image()


def open_picture(value: Any, file: str) -> Image.Image:
    """The picture of one cell of an image column, decoded or not, turned as its EXIF orientation says.

    Raises InputError, naming `file`, where it is missing, cut off or no picture at all.
    """
    try:
        if isinstance(value, Image.Image):
            value.load()
            return ImageOps.exif_transpose(value)
        if isinstance(value, dict):
            return _IMAGE.decode_example(value)
        if isinstance(value, str):
            return _IMAGE.decode_example({"path": value, "bytes": None})
        array = np.asarray(value)
        return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, EOFError, struct.error ...
        reason = str(error) or type(error).__name__
        raise InputError(
            f"Cannot read the picture {file}: {reason}. Repair it or take it out of the data."
        ) from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode -> RGB, 8 bits. 16-bit values keep their upper 8 bits; transparency is dropped."""
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I"):  # I;16, I;16B, I: PIL would clip at 255
        picture = Image.fromarray((np.clip(np.asarray(picture), 0, 65535) >> 8).astype(np.uint8))
    elif picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture))
        values = values * 255 if values.max(initial=0) <= 1 else values
        picture = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    elif picture.mode == "P":  # a palette may hold transparency, which RGBA understands and RGB warns about
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def read_photo(value: Any, file: str) -> Image.Image:
    """One cell of an image column -> RGB image."""
    return to_rgb(open_picture(value, file))
