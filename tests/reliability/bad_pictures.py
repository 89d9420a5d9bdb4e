"""Pictures that are odd or broken, and a small dataset to put them into."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from corrmatch_hf.data import load_semi_dataset

from ..data.pictures_on_disk import write_mask, write_photo, write_split

NAMES = ["ground", "a", "b", "c"]


def write_dataset(root: Path) -> Path:
    """train: 4 pairs, unlabeled: 4 photos, validation: 2 pairs, of 48 x 36 pixels, and 4 classes."""
    write_split(root / "train/images", root / "train/masks", 4)
    write_split(root / "validation/images", root / "validation/masks", 2, first=100)
    write_split(root / "unlabeled", None, 4, first=200)
    for mask in root.glob("*/masks/*.png"):
        write_mask(mask, [0, 1, 2, 3])
    return root


def load(root: Path, **options):
    return load_semi_dataset(data_dir=str(root), id2label=NAMES, **options)


def put(path: Path, content: bytes) -> Path:
    """A file with this content in the place of the picture of the same name, whatever its suffix."""
    for other in path.parent.glob(f"{path.stem}.*"):
        other.unlink()
    path.write_bytes(content)
    return path


def cut_jpeg(path: Path) -> Path:
    """The header is whole, half of the pixels are not there."""
    whole = write_photo(path.with_suffix(".tmp.jpg"), size=(200, 100))
    content = whole.read_bytes()
    whole.unlink()
    return put(path.with_suffix(".jpg"), content[: len(content) // 2])


def bomb(path: Path, side: int) -> Path:
    """A PNG of `side` x `side` RGB pixels in a hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(3 * side + 1)))
    return put(path.with_suffix(".png"), b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))


def foreign_palette(path: Path) -> Path:
    """A palette mask, saved as the colours of its palette, which is nobody's standard."""
    mask = Image.fromarray(np.tile(np.arange(4, dtype=np.uint8), (36, 12)))
    mask.putpalette([v for i in range(256) for v in (i * 7 % 256, i * 13 % 256, (i * 29 + 5) % 256)])
    mask.convert("RGB").save(path)
    return path


def turned_photo(path: Path, mask_upright: bool) -> Path:
    """Stored 36 x 48, to be turned by 90 degrees; the mask is of the upright photo, or of the stored one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (48, 36, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    write_mask(mask_of(path), [0, 1, 2, 3], size=(48, 36) if mask_upright else (36, 48))
    return path


def mask_of(photo: Path) -> Path:
    """Of a labelled photo of the dataset."""
    return photo.parents[1] / "masks" / f"{photo.stem}.png"
