"""Pictures of every mode as 8-bit RGB: the one conversion that training, evaluation and the image processor share."""

import numpy as np
from PIL import Image, ImageOps

# 65535 = 255 * 257: a 16-bit value divided by 257 is the 8-bit value of the same brightness.
SIXTEEN_TO_EIGHT = 257
MAX_TILE_PIXELS = 4096 * 4096  # of a TIFF that is itself smaller


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any PIL mode -> 8-bit RGB.

    Gray is repeated, palettes are looked up, transparency is dropped. 16-bit values (modes I;16 and I) are divided by
    257 and rounded. Floats (mode F) are 0 to 1, or 0 to 255.

    Raises:
        ValueError: floats that are not finite, or outside of 0 to 255; 32-bit integers outside of 0 to 65535.
    """
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I"):  # I, I;16, I;16B: PIL's own conversion clips at 255
        values = np.asarray(picture).astype(np.int64)
        _refuse_outside(values, 65535)
        picture = Image.fromarray(sixteen_to_eight(values))
    elif picture.mode == "F":
        values = np.asarray(picture)
        _refuse_outside(values, 255)
        values = values * 255 if values.max(initial=0) <= 1 else values
        picture = Image.fromarray(np.rint(values).astype(np.uint8))
    elif picture.mode in ("P", "PA"):  # transparent palettes make PIL warn if converted to RGB directly
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def sixteen_to_eight(values: np.ndarray) -> np.ndarray:
    """16-bit values of any integer type -> uint8."""
    return ((values.astype(np.uint32) + SIXTEEN_TO_EIGHT // 2) // SIXTEEN_TO_EIGHT).astype(np.uint8)


def _refuse_outside(values: np.ndarray, highest: int) -> None:
    if values.size and not (values.min() >= 0 and values.max() <= highest):  # also if a value is NaN
        raise ValueError(
            f"its values go from {values.min():.6g} to {values.max():.6g}, but must lie between 0 and {highest}: "
            "scale them, or save the picture with 8 bits per channel"
        )


def upright(picture: Image.Image | str) -> Image.Image:
    """A picture, or the file of one, turned by its EXIF orientation.

    Raises:
        ValueError: a TIFF whose tiles are far larger than the picture.
    """
    if isinstance(picture, str):
        picture = Image.open(picture)
    refuse_huge_tiles(picture)
    return ImageOps.exif_transpose(picture)


def refuse_huge_tiles(picture: Image.Image) -> None:
    """Raises ValueError for a TIFF whose tiles would take gigabytes; call it before the picture is decoded."""
    if tile_pixels(picture) > max(MAX_TILE_PIXELS, 4 * picture.width * picture.height):
        raise ValueError(
            f"it is a TIFF of {picture.width} x {picture.height} pixels with tiles of {tile_pixels(picture)} pixels: "
            "save it without tiles, or as PNG"
        )


def tile_pixels(picture: Image.Image) -> int:
    """Pixels of a tile of an opened TIFF file, 0 for other files. Tiles are always decoded as a whole."""
    tags = getattr(picture, "tag_v2", None) or {}
    width, height = (tags.get(name, 0) for name in (322, 323))  # TileWidth, TileLength
    return width * height if isinstance(width, int) and isinstance(height, int) else 0
