"""Endless shuffled sequences of samples, and the random numbers of each sample.

Everything is a function of (seed, stream, pass, index). Results therefore do not depend on the number of workers, and a
resumed run equals an uninterrupted one. They do not depend on the number of processes either, except with a
`ShardedStream`, of which each process reads its own part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

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


BLOCK = 256  # rows of a stream that are held and shuffled together


class ShardedStream:
    """An `IterableDataset` repeated without end, of which each process reads its own shards.

    On each pass the shards are dealt to the processes anew, one after the other; a process reads its shards one after
    the other and shuffles blocks of `block` rows. A start in the middle needs the state of its block and reads no more
    than that again.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        seed: int,
        order: Stream,
        world_size: int = 1,
        rank: int = 0,
        block: int = BLOCK,
    ):
        self.dataset, self.seed, self.order, self.block = dataset, seed, order, block
        self.world_size, self.rank = world_size, rank
        self.states: deque[dict[str, Any]] = deque(maxlen=1024)  # of the blocks read; see `state_at`

    def state_at(self, position: int) -> dict[str, Any]:
        """Where to go on from `position`, as JSON values; those of earlier positions are forgotten."""
        while len(self.states) > 1 and self.states[1]["position"] <= position:
            self.states.popleft()
        known = self.states and self.states[0]["position"] <= position
        return self.states[0] if known else {"position": 0}

    def from_position(self, start: int, state: dict[str, Any] | None = None) -> Iterator[Sample]:
        """This process's samples from its position `start` on; `state` is that of `start`, where there is one."""
        skip = start - (state or {}).get("position", 0)
        for samples in self._blocks(state or {}):
            yield from samples[max(skip, 0) :]
            skip -= len(samples)

    def _blocks(self, state: dict[str, Any]) -> Iterator[list[Sample]]:
        position, number, first = (state.get(name, 0) for name in ("position", "number", "index"))
        shards = self.dataset.num_shards
        while True:
            start = position - first  # of the pass
            dealt = generator(self.seed, self.order, number).permutation(shards)[self.rank :: self.world_size]
            rows: list[dict] = []
            where: dict[str, Any] = {}  # of the first of `rows`
            begin = state.get("shard", 0)
            for place in range(begin, len(dealt)):
                shard = self.dataset.shard(num_shards=shards, index=int(dealt[place]))
                inside = state.get("inside") if place == begin else None
                if inside is not None:
                    shard.load_state_dict(inside)
                before = inside
                for row in rows_of_stream(shard):
                    if not rows:
                        where = {"shard": place, "inside": before}
                    rows.append(row)
                    if len(rows) == self.block:
                        yield self._shuffled(rows, position, number, position - start, where)
                        position, rows, before = position + len(rows), [], shard.state_dict()
            if rows:
                yield self._shuffled(rows, position, number, position - start, where)
                position += len(rows)
            if position == start:
                raise InputError(
                    f"Process {self.rank} found no image in its shards of the stream of unlabelled images; give "
                    "--stream_order total."
                )
            state, number, first = {}, number + 1, 0

    def _shuffled(
        self, rows: list[dict], position: int, number: int, first: int, where: dict[str, Any]
    ) -> list[Sample]:
        self.states.append({"position": position, "number": number, "index": first, **where})
        # The samples of all processes have random numbers of their own.
        samples = [
            Sample(number, (first + i) * self.world_size + self.rank, row) for i, row in enumerate(rows)
        ]
        rng = generator(self.seed, self.order, number, 1 + first * self.world_size + self.rank)
        return [samples[i] for i in rng.permutation(len(samples))]
