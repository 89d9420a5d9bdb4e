"""Endless shuffled sequences of samples, and the random numbers of each sample.

Everything is a function of (seed, stream, pass, index). Results therefore do not depend on the number of workers and
processes, and a resumed run equals an uninterrupted one.
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
    """The purpose of a random number."""

    ORDER_LABELED = 1
    ORDER_UNLABELED = 2
    LABELED = 3
    UNLABELED = 4
    PARTNER = 5
    CUTMIX = 6


def generator(seed: int, stream: Stream, number: int, index: int = 0, view: int = 0) -> np.random.Generator:
    """The random numbers for one purpose of one `view` of sample `index` in pass `number` over the data."""
    return np.random.default_rng([seed, int(stream), number, index, view])


class Sample(NamedTuple):
    """The sample at a position: its undecoded row, and the pass and index that determine its random numbers."""

    number: int  # of the pass over the data
    index: int  # type: ignore[assignment]  # hides tuple.index
    row: dict


class EndlessList:
    """A dataset repeated without end, shuffled on each pass: `samples[position]` for any position >= 0."""

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
    """The same for an `IterableDataset`, which is only read forwards and shuffled through a buffer on each pass.

    The buffer is filled before the first sample is returned, so a start downloads `buffer_size` samples.
    """

    def __init__(self, dataset: datasets.IterableDataset, seed: int, order: Stream, buffer_size: int = 256):
        self.dataset, self.seed, self.order, self.buffer_size = dataset, seed, order, buffer_size

    def from_position(self, start: int) -> Iterator[Sample]:
        """Samples from `start` on. Earlier ones are read but not decoded: at most two passes of them."""
        number, skip, length = 0, start, None
        while True:
            if length is not None:  # all passes have the same length, so whole passes are skipped unread
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
