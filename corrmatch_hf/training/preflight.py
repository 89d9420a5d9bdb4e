"""What is checked and estimated before the first step, so that a run that cannot work fails at once."""

from __future__ import annotations

import math
import tempfile
import warnings
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from datasets import IterableDataset
from torch import nn

from ..data.check import check_dataset
from ..data.semi_dataset import SemiDataset
from ..distributed import world_size
from ..errors import InputError
from ..evaluation.inference import evaluating
from ..evaluation.optimize import bfloat16_is_slow
from ..methods.base import Method
from .checkpoint import check_resumable, clean_up, find_checkpoint
from .config import TrainingConfig
from .interruption import translate_errors
from .memory import FastShapes, MemoryEstimate, blank_batch, estimate_memory, on_meta
from .output_folder import check_output_folder, repair_output_folder
from .output_lock import OutputLock
from .publish import check_hub_access

UPLOAD_LIMIT = timedelta(hours=12)


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """Accelerate's view of the processes, refused where it is not that of torch."""
    # While one process uploads in the middle of training, the others wait.
    uploads = config.push_to_hub and config.hub_strategy == "every_save"
    timeout = UPLOAD_LIMIT if uploads else timedelta(seconds=config.ddp_timeout)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != config.mixed_precision:
        # An earlier run in this process, of another precision: only the processes and devices are kept.
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=None if config.report_to == "none" else config.report_to,
        project_dir=config.output_dir,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
    )
    if world_size() != accelerator.num_processes:
        raise InputError(
            f"There are {world_size()} processes, but Accelerate counts {accelerator.num_processes}: its state was "
            "created before the trainer. Create the trainer first, or call `Accelerator()` at the start of the script."
        )
    return accelerator


def check_run(method: Method, data: SemiDataset, config: TrainingConfig, processes: int) -> tuple[int, int]:
    """Refuse data, model, method and options that do not fit each other.

    Returns:
        `feature_size` of the run's crops.
    """
    if method.uses_unlabeled:
        if data.unlabeled is None:
            raise InputError(
                f"Method {method.name!r} needs unlabelled images and there are none; give --unlabeled_list, "
                "--extra_unlabeled or a --labeled_fraction below 1, or train with --method supervised."
            )
        method.check_batch(config.unlabeled_batch * processes)
    model = method.segmentation_model.config
    if model.num_labels != data.num_labels:
        raise InputError(
            f"The model has {model.num_labels} classes and the dataset {data.num_labels}; "
            "build the model with the dataset's id2label."
        )
    if model.ignore_index != data.ignore_index:
        raise InputError(
            f"The model ignores label {model.ignore_index} and the dataset marks ignored pixels with "
            f"{data.ignore_index}; give both the same ignore_index."
        )
    return _check_crop_size(method, config)


def _check_crop_size(method: Method, config: TrainingConfig) -> tuple[int, int]:
    """Refuse crops that the encoder cannot work on, or whose features BatchNorm cannot train on."""
    crop, model = config.crop_size, method.segmentation_model
    name, plan = model.config.encoder_name, model.encoder.plan
    if plan.only_size not in (None, (crop, crop)):
        size = "x".join(map(str, plan.only_size))
        raise InputError(
            f"--crop_size is {crop}, but encoder {name!r} accepts only images of {size} pixels; give "
            f"{plan.only_size[0]}, or change that size: --encoder_kwargs '{{\"img_size\": {crop}}}'."
        )
    if plan.plain and crop % (side := plan.size_multiple):
        lower = max(crop // side, 1) * side
        raise InputError(
            f"--crop_size is {crop}, not a multiple of {side}, the patch size of encoder {name!r}; "
            f"give {lower} or {lower + side}."
        )
    try:
        features = feature_size(method, crop)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--crop_size {crop} does not work with encoder {name!r}: {error}") from error
    labeled = config.per_device_batch_size
    smallest_batch = min(labeled, config.unlabeled_batch) if method.uses_unlabeled else labeled
    if features == (1, 1) and smallest_batch == 1 and _has_batch_norm(method):
        raise InputError(
            f"--crop_size {crop} gives a single feature of a single image, on which BatchNorm cannot train; "
            "give a larger --crop_size or --per_device_batch_size."
        )
    return features


def feature_size(method: Method, crop: int) -> tuple[int, int]:
    """Height and width of the encoder's last features of a crop."""

    def run(encoder: nn.Module, device: torch.device) -> tuple[int, int]:
        with evaluating(encoder), FastShapes():
            return tuple(encoder(torch.zeros(1, 3, crop, crop, device=device))[-1].shape[-2:])

    model = method.segmentation_model
    try:
        return run(on_meta(model.encoder), torch.device("meta"))
    except Exception:  # where it is not the meta device that fails, the next line raises the reason
        return run(model.encoder, model.device)


def count_steps(data: SemiDataset, config: TrainingConfig, processes: int) -> int:
    """Optimiser steps of the run; an epoch is a pass over the unlabelled images where there are any."""
    if config.max_steps:
        return config.max_steps
    images = data.labeled if data.unlabeled is None else data.unlabeled
    if not hasattr(images, "__len__"):
        raise InputError("A streamed dataset has no known length; give --max_steps instead of --num_epochs.")
    per_device = config.per_device_batch_size if data.unlabeled is None else config.unlabeled_batch
    batch = per_device * processes * config.gradient_accumulation_steps
    return max(1, math.ceil(config.num_epochs * len(images) / batch))


def estimate_run_memory(
    method: Method, config: TrainingConfig, accelerator: Accelerator, features: tuple[int, int], step: int
) -> MemoryEstimate:
    """Memory of a step and of a checkpoint, found with the smallest batch of the run's proportions.

    features: `feature_size` of a crop. step: the forward pass that is tried, one that keeps the most.
    """
    labeled, unlabeled = config.per_device_batch_size, config.unlabeled_batch
    times = math.gcd(labeled, unlabeled) if method.uses_unlabeled else labeled
    if features == (1, 1) and _has_batch_norm(method):
        times = 1  # BatchNorm needs more than one value
    try:
        if method.uses_unlabeled:
            method.check_batch(unlabeled // times * accelerator.num_processes)
    except InputError:  # too few images for the method, which has accepted the whole batch
        times = 1

    def estimate(device: torch.device) -> MemoryEstimate:
        batch = blank_batch(method, labeled // times, unlabeled // times, config.crop_size, device, step)
        return estimate_memory(method, config.optimizer, config.ema_decay is not None, batch, times)

    # A pass takes seconds on a CPU. The meta device has no mixed precision, and not every method runs there.
    if accelerator.device.type == "cpu" and config.mixed_precision == "no":
        with suppress(Exception):
            return estimate(torch.device("meta"))
    with translate_errors(), accelerator.autocast():
        return estimate(accelerator.device)


def prepare_output(
    method: Method,
    data: SemiDataset,
    config: TrainingConfig,
    accelerator: Accelerator,
    max_steps: int,
    estimate: MemoryEstimate,
    lock: OutputLock,
) -> Path | None:
    """Make the output folder ready, and check checkpoint, data and Hub; all processes call this together.

    Returns:
        The checkpoint to resume from, if any.
    """
    folder, main, checkpoint = Path(config.output_dir), accelerator.is_main_process, None
    if not config.resume_from_checkpoint:
        check_output_folder(folder, config.overwrite)
        accelerator.wait_for_everyone()  # before the next lines change the folder that all look at
    lock.hold(accelerator, config.ddp_timeout)
    if main:
        check_room(folder)
    if config.resume_from_checkpoint:
        if main:
            clean_up(folder / "checkpoints")
            repair_output_folder(folder)
        accelerator.wait_for_everyone()
        checkpoint = find_checkpoint(config.resume_from_checkpoint, folder / "checkpoints")
        processes = accelerator.num_processes
        changes = check_resumable(checkpoint, method, data.identity, config, max_steps, processes)
        for text in changes if main else ():
            warnings.warn(text, stacklevel=5)
    else:
        check_output_folder(folder, config.overwrite)  # again: another run may have ended in between
        accelerator.wait_for_everyone()
    if main:
        print(data.describe())
        if isinstance(data.unlabeled, IterableDataset) and config.stream_order == "shards":
            shards, processes = data.unlabeled.num_shards, accelerator.num_processes
            if shards < processes:
                print(
                    f"Note: the stream has {shards} shards for {processes} processes, so each reads all of it."
                )
        for text in (*config.idle(), *method.options.idle()):
            warnings.warn(text, stacklevel=5)
        print(estimate.summary(accelerator.device, folder, config.max_checkpoints))
        if config.mixed_precision == "bf16" and bfloat16_is_slow(accelerator.device):
            warnings.warn(
                "--mixed_precision bf16 is slower than float32 here: this CPU has neither AVX512-BF16 nor AMX. Give "
                "--mixed_precision no, unless the memory would not suffice.",
                stacklevel=5,
            )
        if config.push_to_hub:
            check_hub_access(config)
        for text in check_dataset(
            data, on_bad_sample=config.on_bad_sample, need_unlabeled=method.uses_unlabeled
        ):
            if text in data.notes:
                print(f"Note: {text}")
            else:
                warnings.warn(text, stacklevel=5)
    accelerator.wait_for_everyone()
    return checkpoint


def check_room(folder: Path) -> None:
    """Refuse an output folder that cannot take a small file, on a full disk for instance."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**16))  # as large as configuration and log
    except OSError as error:
        raise InputError(
            f"--output_dir {folder} cannot be written: {error.strerror or error}. Free some disk space there, or name "
            "another folder."
        ) from error


def _has_batch_norm(method: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in method.modules())
