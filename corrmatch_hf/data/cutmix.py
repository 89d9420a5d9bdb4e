"""The CutMix rectangle of the UniMatch family, which CorrMatch shares."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

AREA = (0.02, 0.4)  # of the crop
RATIO = (0.3, 1 / 0.3)  # height / width


class Box(NamedTuple):
    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def random_box(size: int, probability: float, rng: np.random.Generator) -> Box | None:
    """A rectangle inside a `size` x `size` crop, or None (no mixing) with probability 1 - `probability`.

    The area is uniform in 2-40 % of the crop, height / width uniform in 0.3-3.33, the corner uniform over the
    whole crop, all drawn again until the rectangle fits. That favours small rectangles: the published runs
    had it so. A crop of a single pixel has no part of that size, and gets None.
    """
    if rng.random() >= probability or size == 1:
        return None
    while True:
        area, ratio = rng.uniform(*AREA) * size * size, rng.uniform(*RATIO)
        width, height = int(math.sqrt(area / ratio)), int(math.sqrt(area * ratio))
        left, top = (int(v) for v in rng.integers(0, size, 2))
        if width and height and left + width <= size and top + height <= size:
            return Box(top, left, height, width)
