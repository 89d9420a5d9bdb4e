"""The one reader of pictures: photos of every kind as RGB."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import datasets
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import InputError

_IMAGE = datasets.Image()

# The formats that are decoded, whatever the file's suffix. PIL's other formats are rare, and one starts a program (EPS:
# Ghostscript).
FORMATS = ("JPEG", "JPEG2000", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM", "TGA")


def open_picture(value: Any, file: str) -> Image.Image:
    """One cell of an image column, decoded or not -> picture, turned upright by its EXIF orientation.

    An animation gives its first frame. Raises InputError, naming `file`, if the picture is missing, truncated, larger
    than `PIL.Image.MAX_IMAGE_PIXELS`, or in an unknown format.
    """
    try:
        if isinstance(value, dict | str | Image.Image):
            return _decode(value)
        if value is None:
            raise ValueError("it is missing")
        array = np.asarray(value)
        if array.dtype == np.int64 and array.size and array.min() >= 0 and array.max() <= 255:
            array = array.astype(np.uint8)  # columns of arrays come as nested lists, without their dtype
        return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, EOFError, struct.error ...
        # PIL's message contains a memory address, which would differ from run to run.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = (
            f"its format is none of {', '.join(FORMATS)}" if unknown else str(error) or type(error).__name__
        )
        raise InputError(
            f"Cannot read the picture {file}: {reason.rstrip('.')}. Repair it or remove it from the data."
        ) from error


def _decode(value: dict | str | Image.Image) -> Image.Image:
    """Like `datasets.Image.decode_example`, but a too large picture is rejected before its pixels are decoded."""
    if isinstance(value, Image.Image):
        return _upright(value)
    cell: dict[str, Any] = {"path": value, "bytes": None} if isinstance(value, str) else value
    content, path = cell.get("bytes"), cell.get("path")
    if content is None and path is None:
        raise ValueError("it is missing")
    if content is None and "://" in path:  # of a stream: `datasets` fetches it
        picture = _IMAGE.decode_example({"path": path, "bytes": None})
        _check_size(picture)
        return picture
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # a build of PIL may lack some
    with Image.open(path if content is None else BytesIO(content), formats=formats) as picture:
        return _upright(picture)


def _upright(picture: Image.Image) -> Image.Image:
    """The picture with its pixels in memory, turned by its EXIF orientation."""
    _check_size(picture)
    picture.load()
    turned = picture.getexif().get(ExifTags.Base.Orientation) is not None
    return ImageOps.exif_transpose(picture) if turned else picture


def _check_size(picture: Image.Image) -> None:
    """Rejects possible decompression bombs, of which PIL only warns."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        raise ValueError(
            f"it has {picture.width} x {picture.height} pixels, more than PIL.Image.MAX_IMAGE_PIXELS = {limit}"
        )


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any mode -> 8-bit RGB. 16-bit values keep their upper 8 bits; transparency is dropped."""
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I"):  # I;16, I;16B, I: PIL's convert clips at 255
        picture = Image.fromarray((np.clip(np.asarray(picture), 0, 65535) >> 8).astype(np.uint8))
    elif picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture))
        values = values * 255 if values.max(initial=0) <= 1 else values
        picture = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    elif picture.mode == "P":  # transparent palettes make PIL warn if converted to RGB directly
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def read_photo(value: Any, file: str) -> Image.Image:
    """One cell of an image column -> RGB image."""
    return to_rgb(open_picture(value, file))


def read_unlabeled(row: dict) -> Image.Image:
    """A row of the unlabelled pool -> RGB image."""
    return read_photo(row["image"], row["file"])
