"""The endless sequence of training batches.

One item of the data set is one whole micro batch, made from its step number alone. A `DataLoader` worker
therefore shares no state with the others, starting in the middle costs nothing, and one photo that serves
several rows of a batch (as itself and as a CutMix partner) is read and augmented once.
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
from ..errors import InputError
from .augment import Augmentation, Box, Recoloring, random_box
from .batch import SemiBatch
from .device_color import StrongView, UncoloredViews
from .endless import EndlessList, EndlessStream, Sample, Stream, generator
from .images import read_unlabeled
from .semi_dataset import SemiDataset, undecoded

REPLACEMENTS = 8  # how many samples in a row may be unreadable before "skip" gives up

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
    recolor_on_device: bool = False,
) -> Iterator[SemiBatch]:
    """The batches of process `rank`, from micro-step `start_step` on, without end.

    `labeled_batch` and `unlabeled_batch` count images per process; with unlabeled_batch=0 there are only
    labelled ones. The rows of all processes together, process after process, are the same for any
    `world_size` with the same total batch. Both sets are endless streams, shuffled on each pass; a set
    smaller than the batch appears more than once in it, each time in another view. `on_bad_sample="skip"`
    puts the next sample of the stream in the place of one that cannot be read and says so in the batch's
    `skipped`; "error" raises InputError. With `recolor_on_device` the strong views are only drawn here; the
    batch's `recolored` makes them, with the same result.
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
        recolor_on_device=recolor_on_device,
    )
    loader = DataLoader(
        training_set,
        batch_size=None,
        sampler=StepSampler(training_set, start_step),
        num_workers=num_workers,  # torch gives each worker one thread
        worker_init_fn=leave_signals_to_the_trainer,
        prefetch_factor=2 if num_workers else None,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else it would draw from the global one
    )
    for item in loader:
        if isinstance(item, InputError):
            raise item
        yield item


class StepSampler(Sampler):
    """Endless keys of a `TrainingSet`: the step and, for a stream, the undecoded unlabelled rows it needs.

    It runs in the main process, so a stream is read once per process and in order, whatever workers decode.
    """

    def __init__(self, training_set: TrainingSet, start_step: int):
        self.training_set, self.start_step = training_set, start_step

    def __iter__(self) -> Iterator[tuple[int, dict[int, Sample] | None]]:
        owner = self.training_set
        if owner.stream is None:
            yield from ((step, None) for step in count(self.start_step))
        total = owner.unlabeled_batch * owner.world_size
        positions = count(self.start_step * total)
        rows = zip(positions, owner.stream.from_position(self.start_step * total), strict=False)
        window: dict[int, Sample] = {}
        for step in count(self.start_step):
            first = step * total
            window = {p: s for p, s in window.items() if p >= first}
            while len(window) < total + owner.replacements:
                position, sample = next(rows)
                window[position] = sample
            yield step, {p: window[p] for p in owner.needed_positions(step)}


class TrainingSet(Dataset):
    """`training_set[key]` is the SemiBatch of one step of one process, or the InputError that prevented it.

    See `training_batches` for the arguments.
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
        recolor_on_device: bool = False,
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
        if len(semi.labeled) == 0:
            raise InputError(f"{semi.name} has no labelled images: give at least one image with a mask.")
        self.semi, self.augmentation, self.seed = semi, augmentation, seed
        self.labeled_batch, self.unlabeled_batch = labeled_batch, unlabeled_batch
        self.world_size, self.rank = world_size, rank
        self.recolor_on_device = recolor_on_device
        self.replacements = REPLACEMENTS if on_bad_sample == "skip" else 0

        self.labeled = EndlessList(undecoded(semi.labeled), seed, Stream.ORDER_LABELED)
        self.unlabeled: EndlessList | None = None
        self.stream: EndlessStream | None = None
        if unlabeled_batch:
            if semi.unlabeled is None:
                raise InputError(
                    f"{semi.name} has no unlabelled images: give --labeled_fraction, --labeled_count, an "
                    "--unlabeled_list or --extra_unlabeled."
                )
            pool = undecoded(semi.unlabeled)
            if isinstance(pool, datasets.IterableDataset):
                self.stream = EndlessStream(pool, seed, Stream.ORDER_UNLABELED)
            elif len(pool) == 0:
                raise InputError(f"{semi.name} has no unlabelled images: every image is labelled.")
            else:
                self.unlabeled = EndlessList(pool, seed, Stream.ORDER_UNLABELED)

    def __getitem__(self, key: tuple[int, dict[int, Sample] | None]) -> SemiBatch | InputError:
        step, window = key
        try:
            skipped: dict[str, str] = {}  # file -> reason; a bad file may be met twice in a batch
            batch = SemiBatch(step, **self._labeled_fields(step, skipped))
            if self.unlabeled_batch:
                views = _Views(self, self.unlabeled if window is None else window, skipped)
                for name, value in self._unlabeled_fields(step, views).items():
                    setattr(batch, name, value)
            batch.skipped = list(skipped.values())
            return batch
        except InputError as error:  # returned: raised in a worker it would arrive as a traceback in a string
            return error

    def needed_positions(self, step: int) -> set[int]:
        """Positions in the stream of unlabelled images that this process reads for `step`."""
        needed = {p for own in self._positions(step) for p in (own, self._partner_position(step, own))}
        return {p + extra for p in needed for extra in range(self.replacements + 1)}

    def _positions(self, step: int) -> range:
        first = (step * self.world_size + self.rank) * self.unlabeled_batch
        return range(first, first + self.unlabeled_batch)

    def _partner_position(self, step: int, position: int) -> int:
        """The position of the total batch whose image may be pasted: the next one, cyclic, or that as far from its end.

        Reversed, the middle one of an odd number is its own partner, as an image alone is.
        """
        total = self.world_size * self.unlabeled_batch
        place = position - step * total
        if self.augmentation.cutmix_partner == "reversed":
            return step * total + total - 1 - place
        return step * total + (place + 1) % total

    def _partner(self, step: int, position: int) -> tuple[int, Stream]:
        """Whose view is pasted into that of `position`."""
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
        size, count = augmentation.crop_size, augmentation.strong_views
        weak = np.stack([views.weak(p, Stream.UNLABELED) for p in positions])
        fields = {
            "valid": torch.stack([views.valid(p, Stream.UNLABELED) for p in positions]),
            "unlabeled_files": [views.file(p) for p in positions],
        }
        partners = [self._partner(step, p) for p in positions]
        boxes = [[views.box(p, view) for view in range(count)] for p in positions]
        boxed = [row for row, own in enumerate(boxes) if any(own)]
        pasted = [views.weak(*partners[row]) for row in boxed]
        pasted = np.array(pasted, np.uint8).reshape(-1, size, size, 3)
        if count:
            fields["box"] = torch.zeros(len(positions), count, size, size, dtype=torch.bool)
            for row, own in enumerate(boxes):
                for view, box in enumerate(own):
                    if box:
                        fields["box"][row, view][box.slices] = True
            valid = [views.valid(*partners[row]) for row in boxed]
            fields["partner_rows"] = boxed
            fields["partner_places"] = [
                positions.index(position) if stream == Stream.UNLABELED and position in positions else -1
                for position, stream in (partners[row] for row in boxed)
            ]
            fields["partner_valid"] = (
                torch.stack(valid) if valid else torch.empty(0, size, size, dtype=torch.bool)
            )
        if self.recolor_on_device:
            crops = torch.from_numpy(np.concatenate([weak, pasted]))
            drawn = self._drawn(positions, partners, boxes, views)
            normalizing = (tuple(v.tolist()) for v in augmentation.scale_and_offset)
            return fields | {"uncolored": UncoloredViews(crops, drawn, *normalizing)}
        fields["weak"] = augmentation.normalize(weak)
        if count:
            fields["strong"] = augmentation.normalize(self._strong(positions, partners, boxes, views))
            fields["partner_weak"] = augmentation.normalize(pasted)
        return fields

    def _drawn(
        self,
        positions: range,
        partners: list[tuple[int, Stream]],
        boxes: list[list[Box | None]],
        views: _Views,
    ) -> list[list[StrongView]]:
        """What makes the strong views, [rows][views]."""
        return [
            [
                StrongView(
                    views.recoloring(position, Stream.UNLABELED, view),
                    views.recoloring(*partner, view) if box else None,
                )
                for view, box in enumerate(own)
            ]
            for position, partner, own in zip(positions, partners, boxes, strict=True)
        ]

    def _strong(
        self,
        positions: range,
        partners: list[tuple[int, Stream]],
        boxes: list[list[Box | None]],
        views: _Views,
    ) -> np.ndarray:
        """(rows, views, H, W, 3) uint8, the boxes pasted."""
        size = self.augmentation.crop_size
        strong = np.empty((len(positions), self.augmentation.strong_views, size, size, 3), np.uint8)
        for row, (position, partner) in enumerate(zip(positions, partners, strict=True)):
            a_row = partner[0] in positions and partner[1] == Stream.UNLABELED  # which needs its view whole
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
        """`reader(row)` and the row's file, for the row at `position` or, if allowed, the next good one."""
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
    """The views of unlabelled images that one step needs, each made once, on demand."""

    def __init__(self, owner: TrainingSet, samples: Samples, skipped: dict[str, str]):
        self.owner, self.samples, self.skipped = owner, samples, skipped
        self._cache: dict[tuple, object] = {}

    def rng(self, position: int, stream: Stream, view: int):
        sample = self._once(("sample", position), lambda: self.samples[position])
        return generator(self.owner.seed, stream, sample.number, sample.index, view)

    def file(self, position: int) -> str:
        return self._photo(position)[1]

    def weak(self, position: int, stream: Stream) -> np.ndarray:
        """(H, W, 3) uint8"""
        return np.asarray(self._crop(position, stream)[0])

    def valid(self, position: int, stream: Stream) -> BoolTensor:
        """(H, W)"""
        return self._crop(position, stream)[1]

    def strong(self, position: int, stream: Stream, view: int) -> np.ndarray:
        """(H, W, 3) uint8, not yet mixed"""
        key = ("strong", position, stream, view)
        return self._once(key, lambda: self.strong_part(position, stream, view, None))

    def strong_part(self, position: int, stream: Stream, view: int, box: Box | None) -> np.ndarray:
        """The pixels of it that lie inside `box`."""
        return np.asarray(self.recoloring(position, stream, view)(self._crop(position, stream)[0], box))

    def recoloring(self, position: int, stream: Stream, view: int) -> Recoloring:
        """What makes the strong view of the weak one."""
        return self.owner.augmentation.draw_recoloring(self.rng(position, stream, 1 + view))

    def box(self, position: int, view: int) -> Box | None:
        """Where the strong view shows the partner."""
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
