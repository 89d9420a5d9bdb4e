"""Mask -> polygons -> mask: what `corrmatch predict --save_as` writes is what was predicted."""

import numpy as np
import pytest
from PIL import Image

from corrmatch_hf.data.annotations.draw import fill
from corrmatch_hf.data.annotations.outlines import outlines

Y, X = np.mgrid[:120, :160]
DISC = (X - 70) ** 2 + (Y - 60) ** 2 < 45**2
BLOBS = np.random.default_rng(0).integers(0, 256, (8, 10), dtype=np.uint8)
MASKS = {
    "disc": DISC,
    "ring": DISC & ((X - 70) ** 2 + (Y - 60) ** 2 > 30**2),
    "many holes": DISC & ~((X % 7 == 0) & (Y % 7 == 0)),
    "holes in a row": DISC & ~((X % 5 < 3) & (abs(Y - 60) < 4)),
    "an island in a hole": DISC & ~(abs(X - 70) + abs(Y - 60) < 30) | (abs(X - 70) + abs(Y - 60) < 9),
    "lines of one pixel": X % 9 == 0,
    "diagonals of two pixels": (X + Y) % 11 < 2,
    "at all borders": ~DISC,
    "everything": np.ones_like(DISC),
    "single pixels": (X % 13 == 0) & (Y % 13 == 0),
    "touching corners": (X // 4 + Y // 4) % 2 == 0,
    "blobs": np.asarray(Image.fromarray(BLOBS).resize((160, 120), Image.Resampling.BICUBIC)) > 128,
    "noise": np.random.default_rng(0).random(DISC.shape) < 0.5,
}


@pytest.mark.parametrize("name", MASKS)
def test_filled_again_the_polygons_give_the_mask(name):
    mask = MASKS[name]
    polygons = outlines(mask)
    filled = fill([np.round(points, 2) for points in polygons], (0, 0), mask.shape)
    assert (filled & mask).sum() / (filled | mask).sum() > 0.999


def test_each_connected_part_is_one_polygon_of_few_points():
    assert len(outlines(MASKS["many holes"])) == 1
    assert len(outlines(MASKS["an island in a hole"])) == 2
    assert sum(len(points) for points in outlines(DISC)) < 140
    assert outlines(np.zeros((4, 4), dtype=bool)) == []


def test_the_parts_of_many_classes_meet_without_gap_or_overlap():
    ids = np.asarray(Image.fromarray(BLOBS).resize((160, 120), Image.Resampling.BICUBIC)) // 16
    sums = np.zeros(ids.shape, dtype=int)
    drawn = np.zeros_like(ids)
    for number in np.unique(ids):
        filled = fill(outlines(ids == number), (0, 0), ids.shape)
        sums += filled
        drawn[filled] = number
    assert (sums == 1).mean() > 0.999
    for number in np.unique(ids):
        union = (drawn == number) | (ids == number)
        assert ((drawn == number) & (ids == number)).sum() / union.sum() > 0.99
