"""Pictures on disk, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 4


def write_photo(path: Path, seed: int = 0, size: tuple[int, int] = (48, 36)) -> Path:
    """A random RGB photo of size (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_mask(path: Path, ids, size: tuple[int, int] = (48, 36)) -> Path:
    """A mask with vertical bands of the given ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.asarray(ids, dtype=np.uint8)
    row = ids[np.arange(size[0]) * len(ids) // size[0]]
    Image.fromarray(np.tile(row, (size[1], 1))).save(path)
    return path


def write_split(images: Path, masks: Path | None, count: int, first: int = 0) -> list[str]:
    """`count` photos called 000, 001, ... and, if there is a folder for them, their masks."""
    stems = [f"{i:03d}" for i in range(first, first + count)]
    for i, stem in enumerate(stems, first):
        write_photo(images / f"{stem}.png", i)
        if masks is not None:
            write_mask(masks / f"{stem}.png", [0, 1 + i % (CLASSES - 1), 255])
    return stems
