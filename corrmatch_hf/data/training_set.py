"""The endless sequence of training batches.

One item of the dataset is a whole micro-batch, computed from its step number only. The workers of a `DataLoader`
therefore share no state, resuming at any step costs nothing, and a photo that is used by several rows of a batch (as
itself and as a CutMix partner) is read and augmented once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

import datasets
import numpy as np
import torch
from PIL import Image
from torch import BoolTensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..distributed import leave_signals_to_the_trainer
from ..errors import InputError, refuse
from .augment import Augmentation, Box, random_box
from .batch import SemiBatch
from .endless import EndlessList, EndlessStream, Sample, ShardedStream, Stream, generator
from .images import read_unlabeled
from .semi_dataset import SemiDataset, undecoded

UNKNOWN = -1  # true class, for diagnosis
REPLACEMENTS = 8  # "skip" fails after so many further unreadable samples in a row

Samples = EndlessList | Mapping[int, Sample]


def training_batches(
    semi: SemiDataset,
    augmentation: Augmentation,
    *,
    labeled_batch: int,
    unlabeled_batch: int,
    seed: int,
    world_size: int = 1,
    rank: int = 0,
    start_step: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
    on_bad_sample: str = "error",
    stream_order: str = "total",
    stream_progress: StreamProgress | None = None,
) -> Iterator[SemiBatch]:
    """The batches of process `rank`, from micro-step `start_step` on, without end.

    The rows of all processes together, process after process, are the same for any `world_size` with the same total
    batch. Both sets are endless and shuffled on each pass; a set smaller than the batch appears several times in it,
    each time in another view.

    Args:
        labeled_batch, unlabeled_batch: images per process; unlabeled_batch=0 leaves the unlabelled ones out.
        on_bad_sample: "skip" replaces an unreadable sample by the next one and lists it in the batch's `skipped`;
            "error" raises InputError.
        stream_order: "shards" lets each process read its own shards of a stream, if it has enough; the batches then
            depend on `world_size`.
        stream_progress: keeps how far such a stream is read, and says where a resumed run goes on.
    """
    training_set = TrainingSet(
        semi,
        augmentation,
        labeled_batch=labeled_batch,
        unlabeled_batch=unlabeled_batch,
        seed=seed,
        world_size=world_size,
        rank=rank,
        on_bad_sample=on_bad_sample,
        stream_order=stream_order,
    )
    loader = DataLoader(
        training_set,
        batch_size=None,
        sampler=StepSampler(training_set, start_step, stream_progress),
        num_workers=num_workers,  # torch runs each with one thread
        worker_init_fn=leave_signals_to_the_trainer,
        prefetch_factor=2 if num_workers else None,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # the default is the global one, whose state must not change
    )
    for item in loader:
        if isinstance(item, InputError):
            raise item
        yield item


class StreamProgress:
    """How far this process has read its shards of a stream; what a checkpoint keeps of it.

    Attributes:
        resumed: what `state` gave at the first step of a resumed run.
    """

    def __init__(self):
        self.stream: ShardedStream | None = None
        self.rows_per_step = 0
        self.resumed: dict | None = None

    def state(self, step: int) -> dict | None:
        """Where a run that begins at micro-step `step` goes on, as JSON values; None without such a stream."""
        return None if self.stream is None else self.stream.state_at(step * self.rows_per_step)


class StepSampler(Sampler):
    """Endless keys of a `TrainingSet`: the step and, for a stream, the undecoded unlabelled rows that it needs.

    It runs in the main process, so that a stream is read once per process and in order.
    """

    def __init__(self, training_set: TrainingSet, start_step: int, progress: StreamProgress | None = None):
        self.training_set, self.start_step, self.progress = training_set, start_step, progress

    def __iter__(self) -> Iterator[tuple[int, dict[int, Sample] | None]]:
        owner = self.training_set
        if owner.stream is None:
            yield from ((step, None) for step in count(self.start_step))
        total = owner.unlabeled_batch * owner.sharers
        start = self.start_step * total
        if isinstance(owner.stream, ShardedStream):
            progress = self.progress or StreamProgress()
            progress.stream, progress.rows_per_step = owner.stream, total
            samples = owner.stream.from_position(start, progress.resumed)
        else:
            samples = owner.stream.from_position(start)
        rows = zip(count(start), samples, strict=False)
        window: dict[int, Sample] = {}
        for step in count(self.start_step):
            first = step * total
            window = {p: s for p, s in window.items() if p >= first}
            while len(window) < total + owner.replacements:
                position, sample = next(rows)
                window[position] = sample
            yield step, {p: window[p] for p in owner.needed_positions(step)}


def reads_shards(pool: datasets.IterableDataset, stream_order: str, world_size: int) -> bool:
    """Whether each process reads its own shards: it is asked for, and there are enough."""
    return stream_order == "shards" and pool.num_shards >= world_size


class TrainingSet(Dataset):
    """`training_set[key]` is the SemiBatch of one step of one process, or the InputError that prevented it.

    Arguments: see `training_batches`.
    """

    def __init__(
        self,
        semi: SemiDataset,
        augmentation: Augmentation,
        *,
        labeled_batch: int,
        unlabeled_batch: int,
        seed: int,
        world_size: int = 1,
        rank: int = 0,
        on_bad_sample: str = "error",
        stream_order: str = "total",
    ):
        if not 0 <= rank < world_size:
            raise InputError(
                f"rank is {rank}, but with {world_size} processes it must be 0 to {world_size - 1}."
            )
        if labeled_batch < 1 or unlabeled_batch < 0 or seed < 0:
            raise InputError(
                f"labeled_batch {labeled_batch} must be at least 1, unlabeled_batch {unlabeled_batch} and "
                f"seed {seed} at least 0."
            )
        if on_bad_sample not in ("error", "skip"):
            raise InputError(f"on_bad_sample is {on_bad_sample!r}: choose 'error' or 'skip'.")
        refuse(semi.missing_images(need_unlabeled=unlabeled_batch > 0))
        self.semi, self.augmentation, self.seed = semi, augmentation, seed
        self.labeled_batch, self.unlabeled_batch = labeled_batch, unlabeled_batch
        self.world_size, self.rank = world_size, rank
        self.replacements = REPLACEMENTS if on_bad_sample == "skip" else 0

        self.labeled = EndlessList(undecoded(semi.labeled), seed, Stream.ORDER_LABELED)
        # file -> row of the unlabelled images whose masks are known
        self.known_masks: dict[str, int] | None = None
        if semi.diagnosis is not None and unlabeled_batch:
            self.diagnosis = undecoded(semi.diagnosis)
            self.known_masks = {file: row for row, file in enumerate(self.diagnosis["file"][:])}
        self.unlabeled: EndlessList | None = None
        self.stream: EndlessStream | ShardedStream | None = None
        # Processes among which the unlabelled positions are counted: with shards of its own, each counts for itself.
        self.sharers, self.place = world_size, rank
        if unlabeled_batch:
            pool = undecoded(semi.unlabeled)
            if isinstance(pool, datasets.IterableDataset) and reads_shards(pool, stream_order, world_size):
                self.stream = ShardedStream(pool, seed, Stream.ORDER_UNLABELED, world_size, rank)
                self.sharers, self.place = 1, 0
            elif isinstance(pool, datasets.IterableDataset):
                self.stream = EndlessStream(pool, seed, Stream.ORDER_UNLABELED)
            else:
                self.unlabeled = EndlessList(pool, seed, Stream.ORDER_UNLABELED)

    def __getitem__(self, key: tuple[int, dict[int, Sample] | None]) -> SemiBatch | InputError:
        step, window = key
        try:
            skipped: dict[str, str] = {}  # file -> reason; a bad file may be drawn twice in a batch
            batch = SemiBatch(step, **self._labeled_fields(step, skipped))
            if self.unlabeled_batch:
                views = _Views(self, self.unlabeled if window is None else window, skipped)
                for name, value in self._unlabeled_fields(step, views).items():
                    setattr(batch, name, value)
            batch.skipped = list(skipped.values())
            return batch
        except InputError as error:  # returned, since a DataLoader would wrap it into a worker's traceback
            return error

    def needed_positions(self, step: int) -> set[int]:
        """Positions in the stream of unlabelled images that this process reads for `step`."""
        needed = {p for own in self._positions(step) for p in (own, self._partner_position(step, own))}
        return {p + extra for p in needed for extra in range(self.replacements + 1)}

    def _positions(self, step: int) -> range:
        first = (step * self.sharers + self.place) * self.unlabeled_batch
        return range(first, first + self.unlabeled_batch)

    def _partner_position(self, step: int, position: int) -> int:
        """The position of the image in the total batch that may be pasted: the next one, cyclic, or the mirrored one.

        With shards of its own, in the batch of this process.

        A single image and, if reversed, the middle one of an odd number are their own partners.
        """
        total = self.sharers * self.unlabeled_batch
        place = position - step * total
        if self.augmentation.cutmix_partner == "reversed":
            return step * total + total - 1 - place
        return step * total + (place + 1) % total

    def _partner(self, step: int, position: int) -> tuple[int, Stream]:
        """The position and stream of the view that is pasted into the one of `position`."""
        other = self._partner_position(step, position)
        if self.augmentation.cutmix_partner == "same_image" or other == position:
            return position, Stream.PARTNER
        return other, Stream.UNLABELED

    def _labeled_fields(self, step: int, skipped: dict[str, str]) -> dict:
        first = (step * self.world_size + self.rank) * self.labeled_batch
        images, labels, files = [], [], []
        for position in range(first, first + self.labeled_batch):
            sample = self.labeled[position]
            (image, mask), file = self.read(self.labeled, position, self.semi.read_labeled, skipped)
            rng = generator(self.seed, Stream.LABELED, sample.number, sample.index)
            geometry = self.augmentation.draw_geometry(image.width, image.height, rng)
            images.append(np.asarray(geometry.crop_image(image)))
            labels.append(torch.from_numpy(geometry.crop_mask(mask, fill=self.semi.ignore_index)))
            files.append(file)
        image = self.augmentation.normalize(np.stack(images))
        return {"image": image, "label": torch.stack(labels), "labeled_files": files}

    def _unlabeled_fields(self, step: int, views: _Views) -> dict:
        augmentation, positions = self.augmentation, self._positions(step)
        view_count, size = augmentation.strong_views, augmentation.crop_size
        weak = np.stack([views.weak(p, Stream.UNLABELED) for p in positions])
        fields = {
            "unlabeled_truth": None
            if self.known_masks is None
            else torch.stack([views.truth(p, Stream.UNLABELED) for p in positions]),
            "weak": augmentation.normalize(weak),
            "valid": torch.stack([views.valid(p, Stream.UNLABELED) for p in positions]),
            "unlabeled_files": [views.file(p) for p in positions],
        }
        if not view_count:
            return fields
        partners = [self._partner(step, p) for p in positions]
        boxes = [[views.box(p, view) for view in range(view_count)] for p in positions]  # [B_u][S]
        boxed = [row for row, own in enumerate(boxes) if any(own)]
        pasted = np.array([views.weak(*partners[row]) for row in boxed], np.uint8)
        valid = [views.valid(*partners[row]) for row in boxed]
        box_mask = torch.zeros(len(positions), view_count, size, size, dtype=torch.bool)
        for row, own in enumerate(boxes):
            for view, box in enumerate(own):
                if box:
                    box_mask[row, view][box.slices] = True
        return fields | {
            "strong": augmentation.normalize(self._strong(positions, partners, boxes, views)),
            "box": box_mask,
            "partner_rows": boxed,
            "partner_places": [
                positions.index(position) if stream == Stream.UNLABELED and position in positions else -1
                for position, stream in (partners[row] for row in boxed)
            ],
            "partner_weak": augmentation.normalize(pasted.reshape(-1, size, size, 3)),
            "partner_valid": torch.stack(valid) if valid else torch.empty(0, size, size, dtype=torch.bool),
        }

    def _strong(
        self,
        positions: range,
        partners: list[tuple[int, Stream]],
        boxes: list[list[Box | None]],
        views: _Views,
    ) -> np.ndarray:
        """(B_u, S, H, W, 3) uint8, with the partners pasted into the boxes."""
        size = self.augmentation.crop_size
        strong = np.empty((len(positions), self.augmentation.strong_views, size, size, 3), np.uint8)
        for row, (position, partner) in enumerate(zip(positions, partners, strict=True)):
            # The whole strong view of a partner that is a row of this batch is needed anyway.
            a_row = partner[0] in positions and partner[1] == Stream.UNLABELED
            for view, box in enumerate(boxes[row]):
                strong[row, view] = views.strong(position, Stream.UNLABELED, view)
                if box:
                    strong[row, view][box.slices] = (
                        views.strong(*partner, view)[box.slices]
                        if a_row
                        else views.strong_part(*partner, view, box)
                    )
        return strong

    def read(self, samples: Samples, position: int, reader, skipped: dict[str, str]):
        """`reader(row)` and the file of the row at `position` or, with "skip", of the next readable one."""
        for attempt in range(self.replacements + 1):
            row = samples[position + attempt].row
            try:
                return reader(row), row["file"]
            except InputError as error:
                if not self.replacements:
                    raise
                skipped.setdefault(row["file"], str(error))
                last = error
        raise InputError(f"{self.replacements + 1} samples in a row cannot be used; the last one: {last}")


class _Views:
    """The views of unlabelled images for one step, each computed once, on demand."""

    def __init__(self, owner: TrainingSet, samples: Samples, skipped: dict[str, str]):
        self.owner, self.samples, self.skipped = owner, samples, skipped
        self._cache: dict[tuple, object] = {}

    def rng(self, position: int, stream: Stream, view: int):
        sample = self._once(("sample", position), lambda: self.samples[position])
        return generator(self.owner.seed, stream, sample.number, sample.index, view)

    def file(self, position: int) -> str:
        return self._photo(position)[1]

    def weak(self, position: int, stream: Stream) -> np.ndarray:
        """(H, W, 3) uint8, the weak crop."""
        return np.asarray(self._crop(position, stream)[0])

    def valid(self, position: int, stream: Stream) -> BoolTensor:
        """(H, W), False on the padding of the weak crop."""
        return self._crop(position, stream)[1]

    def truth(self, position: int, stream: Stream) -> torch.Tensor:
        """(H, W) int64, the true classes of the weak crop; `UNKNOWN` where they are not known. For diagnosis alone."""
        (image, file), owner = self._photo(position), self.owner
        mask = np.full((image.height, image.width), UNKNOWN, dtype=np.int64)
        if (number := owner.known_masks.get(file)) is not None:
            try:
                known = owner.semi.read_labeled(owner.diagnosis[number])[1].astype(np.int64)
                mask = np.where(known == owner.semi.ignore_index, UNKNOWN, known)
            except InputError:
                if not owner.replacements:
                    raise
        rng = self.rng(position, stream, 0)
        geometry = owner.augmentation.draw_geometry(image.width, image.height, rng)
        return torch.from_numpy(geometry.crop_mask(mask, fill=UNKNOWN))

    def strong(self, position: int, stream: Stream, view: int) -> np.ndarray:
        """(H, W, 3) uint8, without CutMix."""
        key = ("strong", position, stream, view)
        return self._once(key, lambda: self.strong_part(position, stream, view, None))

    def strong_part(self, position: int, stream: Stream, view: int, box: Box | None) -> np.ndarray:
        """(h, w, 3) uint8, only the pixels inside `box`."""
        crop, rng = self._crop(position, stream)[0], self.rng(position, stream, 1 + view)
        return np.asarray(self.owner.augmentation.strong(crop, rng, box))

    def box(self, position: int, view: int) -> Box | None:
        """Where the strong view shows the partner; None for no CutMix."""
        augmentation = self.owner.augmentation
        rng = self.rng(position, Stream.CUTMIX, view)
        return random_box(augmentation.crop_size, augmentation.cutmix_probability, rng)

    def _crop(self, position: int, stream: Stream) -> tuple[Image.Image, BoolTensor]:
        def make() -> tuple[Image.Image, BoolTensor]:
            image = self._photo(position)[0]
            rng = self.rng(position, stream, 0)
            geometry = self.owner.augmentation.draw_geometry(image.width, image.height, rng)
            return geometry.crop_image(image), geometry.valid()

        return self._once(("crop", position, stream), make)

    def _photo(self, position: int) -> tuple[Image.Image, str]:
        def make() -> tuple[Image.Image, str]:
            return self.owner.read(self.samples, position, read_unlabeled, self.skipped)

        return self._once(("photo", position), make)

    def _once(self, key: tuple, make):
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]
