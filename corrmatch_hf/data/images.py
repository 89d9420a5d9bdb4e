"""The one reader of pictures: photos of every kind as RGB."""

from __future__ import annotations

import warnings
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import InputError
from ..model.picture_corrmatch import refuse_huge_tiles, to_rgb

# The formats that are decoded, whatever the file's suffix. PIL's other formats are rare, and one starts a program (EPS:
# Ghostscript).
FORMATS = ("JPEG", "JPEG2000", "PNG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF", "PPM", "TGA", "HEIF")


@cache
def suffixes() -> frozenset[str]:
    """The suffixes, in small letters, of the files that Pillow can decode here (HEIC: with a plugin)."""
    Image.init()
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    return frozenset(known & {s for s, name in Image.registered_extensions().items() if name in Image.OPEN})


def open_picture(value: Any, file: str) -> Image.Image:
    """One cell of an image column, decoded or not -> picture, turned upright by its EXIF orientation.

    An animation gives its first frame, and so does a TIFF of several pages, with a warning. Raises InputError, naming
    `file`, if the picture is missing, truncated, larger than `PIL.Image.MAX_IMAGE_PIXELS`, or in an unknown format.
    """
    try:
        if isinstance(value, bytes):
            value = {"bytes": value, "path": None}
        if isinstance(value, dict | str | Image.Image):
            return _decode(value, file)
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


def _decode(value: dict | str | Image.Image, file: str) -> Image.Image:
    """Like `datasets.Image.decode_example`, but a too large picture is rejected before its pixels are decoded."""
    if isinstance(value, Image.Image):
        return _upright(value)
    cell: dict[str, Any] = {"path": value, "bytes": None} if isinstance(value, str) else value
    content, path = cell.get("bytes"), cell.get("path")
    if content is None and path is None:
        raise ValueError("it is missing")
    if content is None and "://" in path:  # of a stream: `datasets` fetches it
        import datasets  # takes two seconds, which predictions would pay

        picture = datasets.Image().decode_example({"path": path, "bytes": None})
        _check_size(picture)
        return picture
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # a build of PIL may lack some
    with Image.open(path if content is None else BytesIO(content), formats=formats) as picture:
        _tell_pages(picture, file)
        return _upright(picture)


def _upright(picture: Image.Image) -> Image.Image:
    """The picture with its pixels in memory, turned by its EXIF orientation."""
    _check_size(picture)
    picture.load()
    if picture.getexif().get(ExifTags.Base.Orientation) is None:
        return picture
    turned = ImageOps.exif_transpose(picture)
    turned.format = picture.format
    return turned


def _check_size(picture: Image.Image) -> None:
    """Rejects possible decompression bombs, of which PIL only warns."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None:
        return
    if picture.width * picture.height > limit:
        raise ValueError(
            f"it has {picture.width} x {picture.height} pixels, more than PIL.Image.MAX_IMAGE_PIXELS = {limit}"
        )
    refuse_huge_tiles(picture)


def read_photo(value: Any, file: str) -> Image.Image:
    """One cell of an image column -> RGB image."""
    picture = open_picture(value, file)
    if picture.mode.startswith("I"):
        _tell_few_bits(np.asarray(picture), file)
    try:
        return to_rgb(picture)
    except ValueError as error:
        raise InputError(f"Cannot read the picture {file}: {error}.") from error


_told: set[str] = set()  # the names of the warnings that were given


def _tell_pages(picture: Image.Image, file: str) -> None:
    """Warn, once, of a TIFF with pages of one size: a stack. (Pages of other sizes are previews.)"""
    if picture.format != "TIFF" or "pages" in _told:
        return
    pages, sizes = _pages(picture)
    if pages > 1 and sizes[0] == sizes[1]:
        _told.add("pages")
        warnings.warn(
            f"The TIFF file {file} has {pages} pages, of which only the first is read. Save each page as a file of its "
            "own to use them all.",
            stacklevel=3,
        )


def _pages(picture: Image.Image) -> tuple[int, list[tuple[int, int]]]:
    """The number of pages, and the sizes of the first two; pages after a damaged one do not count."""
    sizes = [picture.size]
    try:
        pages = getattr(picture, "n_frames", 1)
        if pages > 1:
            picture.seek(1)
            sizes.append(picture.size)
    except Exception:  # of a later page: EOFError, SyntaxError, struct.error ... The first may be whole.
        pages = len(sizes)
    picture.seek(0)
    return pages, sizes


def _tell_few_bits(values: np.ndarray, file: str) -> None:
    """Warn, once, of a photo of 10 or 12 bits that is stored with 16."""
    highest = int(values.max(initial=0))
    if 255 < highest < 4096 and "few bits" not in _told:
        _told.add("few bits")
        warnings.warn(
            f"The 16-bit photo {file} has no value above {highest} of 65535, so it is nearly black. If its camera has "
            "12 bits, multiply the values of all photos by 16 before training and prediction.",
            stacklevel=3,
        )


def read_unlabeled(row: dict) -> Image.Image:
    """A row of the unlabelled pool -> RGB image."""
    return read_photo(row["image"], row["file"])
