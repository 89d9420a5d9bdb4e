"""Which sample stands at which position of an endless stream, and the randomness that belongs to it.

Everything is a function of (seed, stream, pass, index): a run is the same for any number of workers and
processes, and one that is resumed in the middle is the run that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import datasets
import numpy as np

from ..errors import InputError
from .semi_dataset import rows_of_stream


class Stream(IntEnum):
    """What a random number is for."""

    ORDER_LABELED = 1
    ORDER_UNLABELED = 2
    LABELED = 3
    UNLABELED = 4
    PARTNER = 5
    CUTMIX = 6


def generator(seed: int, stream: Stream, number: int, index: int = 0, view: int = 0) -> np.random.Generator:
    """The random numbers of one `view` of sample `index` in pass `number` over the data, for one purpose."""
    return np.random.default_rng([seed, int(stream), number, index, view])


class Sample(NamedTuple):
    """The sample at a position: its row, undecoded, and what its randomness depends on."""

    number: int  # of the pass over the data
    index: int
    row: dict


class EndlessList:
    """A dataset, shuffled anew on every pass and never ending: `samples[position]` for any position >= 0."""

    def __init__(self, dataset: datasets.Dataset, seed: int, order: Stream):
        self.dataset, self.seed, self.order = dataset, seed, order
        self._permutations: dict[int, np.ndarray] = {}

    def __getitem__(self, position: int) -> Sample:
        number, place = divmod(position, len(self.dataset))
        if number not in self._permutations:
            while len(self._permutations) > 8:  # a batch may span several passes of a small set
                self._permutations.pop(min(self._permutations))
            rng = generator(self.seed, self.order, number)
            self._permutations[number] = rng.permutation(len(self.dataset))
        index = int(self._permutations[number][place])
        return Sample(number, index, self.dataset[index])


class EndlessStream:
    """The same for an `IterableDataset`, read forwards only: shuffled through a buffer on every pass.

    The buffer is filled before the first sample comes out, so its size is also what a start has to download.
    """

    def __init__(self, dataset: datasets.IterableDataset, seed: int, order: Stream, buffer_size: int = 256):
        self.dataset, self.seed, self.order, self.buffer_size = dataset, seed, order, buffer_size

    def from_position(self, start: int) -> Iterator[Sample]:
        """Samples from `start` on. What lies before is read but not decoded: at most one pass and a part."""
        number, skip, length = 0, start, None
        while True:
            if length is not None:  # every pass has the same length, so whole passes need no reading
                number, skip = number + skip // length, skip % length
            index = 0
            shuffle_seed = int(generator(self.seed, self.order, number).integers(2**31))
            shuffled = self.dataset.shuffle(seed=shuffle_seed, buffer_size=self.buffer_size)
            for row in rows_of_stream(shuffled):
                if index >= skip:
                    yield Sample(number, index, row)
                index += 1
            if index == 0:
                raise InputError("The stream of unlabelled images is empty.")
            number, skip, length = number + 1, max(skip - index, 0), index
