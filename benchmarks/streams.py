"""Rows of a stream that processes read: each the whole of it, against each its own shards; and again after resuming."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice

import datasets

from corrmatch_hf.data import Augmentation, training_batches
from corrmatch_hf.data.sources.synthetic import synthetic_semi_dataset
from corrmatch_hf.data.training_set import StreamProgress

from .measure import Row

PROCESSES, SHARDS, ROWS, STEPS, BATCH = 4, 16, 2400, 256, 4


def rows(device: str) -> Iterator[Row]:
    """Counts, the same on every device."""
    if device != "cpu":
        return
    few, seen = synthetic_semi_dataset(labeled=4, unlabeled=1, validation=0, image_size=32), []
    picture = few.unlabeled[0]["image"]

    def read(shards: list[int]) -> Iterator[dict]:
        for shard in shards:
            for place in range(ROWS // SHARDS):
                seen.append(place)
                yield {"image": picture, "file": f"{shard}-{place}.png"}

    pool = datasets.IterableDataset.from_generator(
        read, gen_kwargs={"shards": list(range(SHARDS))}, features=few.unlabeled.features
    )
    semi = dataclasses.replace(few, unlabeled=pool)

    def rows_read(order: str, start: int = 0, progress: StreamProgress | None = None) -> int:
        seen.clear()
        batches = training_batches(
            semi, Augmentation(crop_size=32, strong_views=1), labeled_batch=1, unlabeled_batch=BATCH, seed=0,
            world_size=PROCESSES, rank=1, start_step=start, stream_order=order, stream_progress=progress,
        )  # fmt: skip
        for _ in islice(batches, STEPS - start):
            pass
        return len(seen)

    what = f"rows of a stream of {ROWS} read by each of {PROCESSES} processes"
    progress = StreamProgress()
    pair = rows_read("total"), rows_read("shards", progress=progress)
    yield Row(f"{what}, {STEPS} steps of {BATCH} images", *pair, "rows", None, 2)
    last = STEPS - 4
    progress.resumed = progress.state(last)
    pair = rows_read("total", last), rows_read("shards", last, progress)
    yield Row(f"{what}, resumed at step {last}, to step {STEPS}", *pair, "rows", None, 2)
