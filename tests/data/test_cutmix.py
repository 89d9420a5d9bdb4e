import numpy as np
import pytest

from corrmatch_hf.data.augment import random_box


def boxes(count: int, size: int = 100, probability: float = 1.0):
    rng = np.random.default_rng(0)
    return [random_box(size, probability, rng) for _ in range(count)]


def test_every_box_lies_inside_and_has_the_published_area_and_ratio():
    for box in boxes(2000, size=321):
        assert box.top >= 0 and box.top + box.height <= 321
        assert box.left >= 0 and box.left + box.width <= 321
        # int() makes each side up to one pixel smaller than drawn
        assert box.height * box.width <= 0.4 * 321**2
        assert (box.height + 1) * (box.width + 1) >= 0.02 * 321**2
        assert (box.height + 1) / box.width >= 0.3 and box.height / (box.width + 1) <= 1 / 0.3


def test_the_probability_is_that_of_a_box():
    share = np.mean([box is not None for box in boxes(4000, probability=0.5)])
    assert share == pytest.approx(0.5, abs=0.03)
    assert all(box is None for box in boxes(50, probability=0.0))
    assert all(box is not None for box in boxes(50, probability=1.0))


def test_the_distribution_is_that_of_drawing_until_it_fits():
    """Against the rejection written out: uniform area, ratio and corner, kept if the rectangle fits."""
    rng = np.random.default_rng(1)
    size, n = 200, 400_000
    area, ratio = rng.uniform(0.02, 0.4, n) * size**2, rng.uniform(0.3, 1 / 0.3, n)
    width, height = np.sqrt(area / ratio).astype(int), np.sqrt(area * ratio).astype(int)
    left, top = rng.integers(0, size, (2, n))
    fits = (left + width <= size) & (top + height <= size)
    drawn = np.array(boxes(6000, size))
    for expected, found in zip((top, left, height, width), drawn.T, strict=True):
        expected = expected[fits]
        assert found.mean() == pytest.approx(expected.mean(), rel=0.05)
        assert found.std() == pytest.approx(expected.std(), rel=0.05)


def test_a_crop_of_a_few_pixels_still_gets_a_box():
    assert all(box.height >= 1 and box.width >= 1 for box in boxes(50, size=8))
