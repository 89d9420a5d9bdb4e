"""Photos of every kind, as RGB."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import datasets
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import InputError

_IMAGE = datasets.Image()

# What is opened, whatever a file is called. Of PIL's other formats, one starts a program (EPS: Ghostscript), most are
# seldom read by anyone.
FORMATS = ("JPEG", "JPEG2000", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM", "TGA")


def open_picture(value: Any, file: str) -> Image.Image:
    """The picture of one cell of an image column, decoded or not, turned as its EXIF orientation says.

    Of an animation it is the first frame. Raises InputError, naming `file`, where it is missing, cut off, larger
    than `PIL.Image.MAX_IMAGE_PIXELS`, or no picture at all.
    """
    try:
        if isinstance(value, dict | str | Image.Image):
            return _decode(value)
        if value is None:
            raise ValueError("there is none")
        array = np.asarray(value)
        if array.dtype == np.int64 and array.size and array.min() >= 0 and array.max() <= 255:
            array = array.astype(np.uint8)  # nested lists of a column of arrays, whose type is lost
        return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, EOFError, struct.error ...
        # PIL would name the place in memory of the bytes, so the same file would never read the same again.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"it is none of {', '.join(FORMATS)}" if unknown else str(error) or type(error).__name__
        raise InputError(
            f"Cannot read the picture {file}: {reason.rstrip('.')}. Repair it or take it out of the data."
        ) from error


def _decode(value: dict | str | Image.Image) -> Image.Image:
    """As `datasets.Image` decodes, but a picture that is too large is refused before its pixels take memory."""
    if isinstance(value, Image.Image):
        return _upright(value)
    cell = {"path": value, "bytes": None} if isinstance(value, str) else value
    content, path = cell.get("bytes"), cell.get("path")
    if content is None and path is None:
        raise ValueError("there is none")
    if content is None and "://" in path:  # of a stream; `datasets` knows how to fetch it
        picture = _IMAGE.decode_example({"path": path, "bytes": None})
        _check_size(picture)
        return picture
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # not every PIL has them all
    with Image.open(path if content is None else BytesIO(content), formats=formats) as picture:
        return _upright(picture)


def _upright(picture: Image.Image) -> Image.Image:
    """The picture with its pixels in memory, as it is meant to be looked at."""
    _check_size(picture)
    picture.load()
    turned = picture.getexif().get(ExifTags.Base.Orientation) is not None
    return ImageOps.exif_transpose(picture) if turned else picture


def _check_size(picture: Image.Image) -> None:
    """Where PIL only warns of what may be a decompression bomb, it is refused."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        raise ValueError(
            f"its {picture.width} x {picture.height} pixels are more than the {limit} that PIL.Image.MAX_IMAGE_PIXELS "
            "allows"
        )


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


def read_unlabeled(row: dict) -> Image.Image:
    """A row of the unlabelled pool -> RGB image."""
    return read_photo(row["image"], row["file"])
