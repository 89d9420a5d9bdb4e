"""The batches of a run: what the training options mean to the data."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator

from accelerate import Accelerator

from ..data.augment import Augmentation
from ..data.batch import SemiBatch
from ..data.semi_dataset import SemiDataset
from ..data.training_set import StreamProgress, training_batches
from ..methods.base import Method
from ..model import CorrMatchImageProcessor
from .config import TrainingConfig


def run_batches(
    method: Method,
    data: SemiDataset,
    config: TrainingConfig,
    processor: CorrMatchImageProcessor,
    accelerator: Accelerator,
    step: int,
    stream_progress: StreamProgress | None = None,
) -> Iterator[SemiBatch]:
    """The batches of this process from optimiser step `step` on, without end.

    `stream_progress`: see `training_batches`.
    """
    augmentation = Augmentation(
        crop_size=config.crop_size,
        scale_min=config.scale_min,
        scale_max=config.scale_max,
        strong_views=method.strong_views,
        cutmix_probability=config.cutmix_probability,
        cutmix_partner=config.cutmix_partner,
        image_mean=tuple(processor.image_mean),
        image_std=tuple(processor.image_std),
    )
    on_gpu = accelerator.device.type == "cuda"
    num_workers = config.num_workers
    if num_workers is None:
        num_workers = _default_workers(accelerator.num_processes) if on_gpu else 0
    return training_batches(
        data,
        augmentation,
        labeled_batch=config.per_device_batch_size,
        unlabeled_batch=config.unlabeled_batch if method.uses_unlabeled else 0,
        world_size=accelerator.num_processes,
        rank=accelerator.process_index,
        start_step=step * config.gradient_accumulation_steps,
        seed=config.seed,
        num_workers=num_workers,
        pin_memory=on_gpu,
        on_bad_sample=config.on_bad_sample,
        stream_order=config.stream_order,
        stream_progress=stream_progress,
    )


def _default_workers(processes: int) -> int:
    """How many processes load images for each training process on a GPU."""
    # Without forking, a user's script without `if __name__ == "__main__"` would run again in each of them.
    if multiprocessing.get_all_start_methods()[0] != "fork":
        return 0
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    return max(min(cores // processes_here - 1, 4), 0)
