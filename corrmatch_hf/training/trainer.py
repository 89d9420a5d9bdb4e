"""The training loop, on Accelerate: one process or many, any precision, any method.

The trainer knows `Method`, not methods: it feeds batches, steps the optimiser, logs, evaluates, saves. Its
promises:

- The sequence of total batches depends on the seed alone, not on the number of processes or workers, nor on being
  resumed; randomness inside a step depends on (seed, step, process).
- Losses are read back at logging steps only (with `on_non_finite="skip"`, at every step).
- Whatever is written is written aside and renamed: a process killed at any moment leaves nothing half there.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
import warnings
import zlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, gather_object
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from timm.layers import convert_sync_batchnorm
from torch import nn

from ..data.augment import Augmentation
from ..data.batch import SemiBatch
from ..data.check import check_dataset
from ..data.semi_dataset import EvaluationSet, SemiDataset
from ..data.training_set import training_batches
from ..distributed import all_reduce, world_size
from ..errors import InputError
from ..evaluation.evaluate import evaluate_segmentation
from ..evaluation.inference import evaluating
from ..hub.push import UploadError, open_repository, push_folder, retry_command, upload_errors
from ..methods.base import Logs, Method
from ..methods.teacher import Teacher
from ..model.image_processing_corrmatch import CorrMatchImageProcessor
from ..text import percent, without_tokens
from . import checkpoint as ckpt
from .atomic_write import (
    WRITE_ERRORS,
    publish_folder,
    recover_folder,
    replaced_files,
    replaced_folder,
    write_text,
)
from .config import TrainingConfig
from .interruption import StopSignals, TrainingInterrupted, explained
from .log import Progress, TrainingLog
from .memory import Needs, blank_batch, needs
from .non_finite import REMEDY, NonFiniteLossError, NonFiniteWatch, SkippedSteps
from .optimizer import build_optimizer, build_schedule, compile_networks, freeze, keep_frozen
from .report import summary, write_report

OWN_FILES = (
    "checkpoints", "best", "model.safetensors", "config.json", "preprocessor_config.json", "metrics.json",
    "training_log.jsonl", "training_config.yaml", "curves.png", "predictions.png", "samples", "run.json", "README.md",
    "handler.py", "requirements.txt",
)  # fmt: skip

UPLOAD_LIMIT = timedelta(hours=12)


class SaveError(RuntimeError):
    """The run is over, and its result is not in the output folder; the message says where it is, and what to do."""


class SemiSupervisedTrainer:
    """Trains a method on a dataset.

    ```python
    data = load_semi_dataset("path/to/data", labeled_fraction=0.1)
    model = CorrMatchForSegmentation.from_encoder_pretrained(CorrMatchConfig(encoder_name="resnet50", ...))
    trainer = SemiSupervisedTrainer(CorrMatch(model), data, TrainingConfig(max_steps=1000))
    trainer.train()
    ```

    Args:
        method: a `Method` around the model.
        data: from `load_semi_dataset`.
        config: the `TrainingConfig`.
        processor: image processor saved with the model, whose mean and standard deviation training uses too.
        recipe: further options to record in `training_config.yaml` (the command line's, for instance).
        command: the command line that started the run, for the model card.

    Raises:
        InputError: for anything the user gave that cannot work, before the first step.
    """

    def __init__(
        self,
        method: Method,
        data: SemiDataset,
        config: TrainingConfig,
        processor: CorrMatchImageProcessor | None = None,
        recipe: dict[str, Any] | None = None,
        command: str | None = None,
    ):
        config.check()
        self.config, self.data = config, data
        self.processor = processor or CorrMatchImageProcessor()
        self.recipe, self.command = recipe or {}, command
        self.output_dir = Path(config.output_dir)
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=config.gradient_accumulation_steps, sync_with_dataloader=False
            ),
            log_with=None if config.report_to == "none" else config.report_to,
            project_dir=self.output_dir,
            step_scheduler_with_optimizer=False,
            # The other processes wait while one uploads in the middle of training.
            kwargs_handlers=[
                InitProcessGroupKwargs(
                    timeout=UPLOAD_LIMIT
                    if config.push_to_hub and config.hub_strategy == "every_save"
                    else timedelta(seconds=config.ddp_timeout)
                )
            ],
        )
        if config.cpu_threads and self.accelerator.device.type == "cpu":
            torch.set_num_threads(config.cpu_threads)
        if world_size() != self.accelerator.num_processes:
            raise InputError(
                f"There are {world_size()} processes, but Accelerate counts {self.accelerator.num_processes}: "
                "something made its state before the trainer. Make the trainer first, or `Accelerator()` at the start."
            )
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        method = method.to(self.accelerator.device, memory_format=layout)
        grid = self._check(method)
        if self.accelerator.num_processes > 1 and self.accelerator.device.type == "cuda":
            method = convert_sync_batchnorm(method)  # timm's keeps the activations that its norms carry

        self.total_batch = (
            config.per_device_batch_size * self.accelerator.num_processes * config.gradient_accumulation_steps
        )
        self.max_steps = config.max_steps or self._steps_of_epochs(method)
        method.plan(self.max_steps * config.gradient_accumulation_steps)
        freeze(method, config)
        optimizer = build_optimizer(method, config, self.total_batch)
        self.schedule = build_schedule(optimizer, config, self.max_steps)
        self.needs = self._estimate_needs(method, grid)
        if config.compile:
            compile_networks(method)
        self.method = method
        self.wrapped, self.optimizer = self.accelerator.prepare(self.method, optimizer)
        self.accelerator.register_for_checkpointing(self.schedule)
        self.average: Teacher | None = None
        if config.ema_decay is not None:
            # torch's AveragedModel stops a GPU in every step, for its counter.
            self.average = Teacher(self.method.segmentation_model, config.ema_decay)
            self.average.to(self.accelerator.device)
            self.accelerator.register_for_checkpointing(self.average)

        self.step = 0
        self.saved_step: int | None = None  # of the newest checkpoint
        self.metrics: dict[str, Any] | None = None  # of the newest evaluation, with its step
        self.best: dict[str, Any] | None = None
        self.seconds = 0.0
        self.skipped: list[str] = []
        self.skipped_steps = SkippedSteps(self.method, config.max_skipped_steps)

    # ------------------------------------------------------------------------------------------------ checks

    def _check(self, method: Method) -> tuple[int, int]:
        """Refuse what cannot work; returns height and width of a crop's features."""
        config, data, model = self.config, self.data, method.segmentation_model
        if method.uses_unlabeled and data.unlabeled is None:
            raise InputError(
                f"Method {method.name!r} needs unlabelled images and there are none; give --unlabeled_list, "
                "--extra_unlabeled or a --labeled_fraction below 1, or train with --method supervised."
            )
        if method.uses_unlabeled:
            method.check_batch(config.unlabeled_batch * self.accelerator.num_processes)
        if model.config.num_labels != data.num_labels:
            raise InputError(
                f"The model has {model.config.num_labels} classes and the dataset {data.num_labels}; "
                "build the model with the dataset's id2label."
            )
        if model.config.ignore_index != data.ignore_index:
            raise InputError(
                f"The model ignores label {model.config.ignore_index} and the dataset marks ignored pixels with "
                f"{data.ignore_index}; give both the same ignore_index."
            )
        plan, crop = model.encoder.plan, config.crop_size
        if plan.only_size not in (None, (crop, crop)):
            size = "x".join(map(str, plan.only_size))
            raise InputError(
                f"--crop_size is {crop}, but encoder {model.config.encoder_name!r} takes images of {size} pixels "
                f"alone; give {plan.only_size[0]}, or its size: --encoder_kwargs '{{\"img_size\": {crop}}}'."
            )
        if plan.plain and crop % (side := plan.size_multiple):
            lower = max(crop // side, 1) * side
            raise InputError(
                f"--crop_size {crop} is no multiple of {side}, the side of the patches of encoder "
                f"{model.config.encoder_name!r}; give {lower} or {lower + side}."
            )
        try:
            with evaluating(model):
                crop = torch.zeros(1, 3, config.crop_size, config.crop_size, device=model.device)
                grid = tuple(model.encode(crop).high.shape[-2:])
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"--crop_size {config.crop_size} does not work with encoder {model.config.encoder_name!r}: {error}"
            ) from error
        smallest = min(
            config.per_device_batch_size,
            config.unlabeled_batch if method.uses_unlabeled else config.per_device_batch_size,
        )
        if grid == (1, 1) and smallest == 1 and _has_batch_norm(method):
            raise InputError(
                f"--crop_size {config.crop_size} leaves a single feature of a single image, which BatchNorm cannot "
                "train on; give a larger --crop_size or --per_device_batch_size."
            )
        return grid

    def _estimate_needs(self, method: Method, grid: tuple[int, int]) -> Needs:
        config = self.config
        labeled, unlabeled = config.per_device_batch_size, config.unlabeled_batch
        times = math.gcd(labeled, unlabeled) if method.uses_unlabeled else labeled
        if grid == (1, 1) and _has_batch_norm(method):
            times = 1  # BatchNorm needs more than one value
        try:
            if method.uses_unlabeled:
                method.check_batch(unlabeled // times * self.accelerator.num_processes)
        except InputError:  # what has passed `_check` is the whole batch
            times = 1
        device = self.accelerator.device
        batch = blank_batch(method, labeled // times, unlabeled // times, config.crop_size, device)
        with explained(""), self.accelerator.autocast():
            return needs(method, config.optimizer, config.ema_decay is not None, batch, times)

    def _steps_of_epochs(self, method: Method) -> int:
        images = self.data.unlabeled if self.data.unlabeled is not None else self.data.labeled
        if not hasattr(images, "__len__"):
            raise InputError(
                "A streamed dataset has no known length; give --max_steps instead of --num_epochs."
            )
        per_device = (
            self.config.unlabeled_batch
            if self.data.unlabeled is not None
            else self.config.per_device_batch_size
        )
        batch = per_device * self.accelerator.num_processes * self.config.gradient_accumulation_steps
        return max(1, math.ceil(self.config.num_epochs * len(images) / batch))

    def _prepare_output(self) -> Path | None:
        """Make the output folder ready; the checkpoint to resume from, if any."""
        config, folder = self.config, self.output_dir
        if config.resume_from_checkpoint:
            if self.accelerator.is_main_process:
                ckpt.clean_up(folder / "checkpoints")
                recover_folder(folder / "best")
                shutil.rmtree(folder / ".writing", ignore_errors=True)
                folder.mkdir(parents=True, exist_ok=True)
            self.accelerator.wait_for_everyone()
            path = ckpt.find_checkpoint(config.resume_from_checkpoint, folder / "checkpoints")
            saved = ckpt.read_state(path)
            if saved["step"] > self.max_steps:
                raise InputError(
                    f"The checkpoint {path} is of step {saved['step']}, and the run ends at step {self.max_steps}: "
                    "give more steps, or an earlier checkpoint."
                )
            current = self._architecture()
            # What earlier versions did not record: there was one decoder, and of the rest nothing is known.
            ckpt.check_same_architecture(
                current | {"decoder": "deeplabv3plus"} | saved["architecture"], current, path
            )
            if self.accelerator.is_main_process:
                for text in ckpt.changes(saved, self._options(), self.accelerator.num_processes):
                    warnings.warn(text, stacklevel=3)
            return path
        if folder.is_file():
            raise InputError(f"--output_dir {folder} is a file; name a folder.")
        if folder.is_dir() and any(folder.iterdir()):
            if not (folder / "training_config.yaml").exists():
                raise InputError(
                    f"--output_dir {folder} is not empty and holds no run of this package; choose another folder."
                )
            if not config.overwrite:
                raise InputError(
                    f"--output_dir {folder} already holds a run; choose another folder, go on with "
                    "--resume_from_checkpoint latest, or replace it with --overwrite True."
                )
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        return None

    def _empty_output(self) -> None:
        """Remove what an earlier run left; last the file by which its folder is known."""
        for name in sorted(OWN_FILES, key="training_config.yaml".__eq__):
            path = self.output_dir / name
            if path.is_symlink() or path.is_file():
                path.unlink()
            elif path.is_dir():
                shutil.rmtree(path)

    def _architecture(self) -> dict[str, Any]:
        config = self.method.segmentation_model.config
        names = (
            "encoder_name", "encoder_kwargs", "out_indices", "decoder", "pyramid_channels", "output_stride",
            "num_labels", "aspp_channels", "low_level_channels", "decoder_channels", "correlation_head",
            "correlation_position",
        )  # fmt: skip
        return {
            "method": self.method.name,
            "ema": self.average is not None,
            # what decides which weights are trained, and so what the optimiser holds
            "freeze_encoder": self.config.freeze_encoder,
            "layer_decay": self.config.layer_decay,
            "teacher": getattr(self.method.options, "teacher", None),
            **{n: getattr(config, n) for n in names},
        }

    # ---------------------------------------------------------------------------------------------- training

    @explained("Go on from the last checkpoint with --resume_from_checkpoint latest, if there is one.")
    def train(self) -> dict[str, Any]:
        """Train to the end and write everything; returns the metrics that `metrics.json` holds.

        With `push_to_hub` the main process's result also says under "published" where the model is now, or None where
        the upload failed; a failed upload is said on stderr, and the output folder stays.
        """
        config, accelerator = self.config, self.accelerator
        resumed = self._prepare_output()
        if accelerator.is_main_process:
            print(self.data.describe())
            print(self.needs.sentence(accelerator.device, self.output_dir, config.max_checkpoints))
            if config.push_to_hub:
                self._open_repository()
            for warning in check_dataset(
                self.data, on_bad_sample=config.on_bad_sample, need_unlabeled=self.method.uses_unlabeled
            ):
                warnings.warn(warning, stacklevel=2)
            if not resumed:
                self._empty_output()  # nothing before this can fail on account of the data or the Hub
        accelerator.wait_for_everyone()
        if resumed:
            self._load(resumed)
        self._write_configuration()
        log = TrainingLog(self.output_dir / "training_log.jsonl", accelerator.is_main_process, self.step)
        if config.report_to != "none":
            accelerator.init_trackers("corrmatch", config=_flat(self.full_configuration()))
        progress = Progress(self.max_steps, self.step, accelerator.is_main_process)
        self.watch = NonFiniteWatch(
            accelerator.device, config.logging_steps * config.gradient_accumulation_steps
        )
        batches = self._batches()
        try:
            with StopSignals() as signals:
                self._loop(batches, signals, log, progress)
        finally:
            progress.close()
            batches.close()
        return self._finish(log)

    def _loop(self, batches, signals: StopSignals, log: TrainingLog, progress: Progress) -> None:
        """From `self.step` to the last step. What is due depends on the state alone, so a resumed run does it, too."""
        config = self.config
        started = time.perf_counter() - self.seconds
        self.wrapped.train()
        keep_frozen(self.method, config)
        while True:
            if signum := signals.agreed():
                self._interrupt(signum)
            if self._evaluation_is_due():
                self._evaluate_and_keep_best(log, progress)
                progress.pause()
            if self.step == self.max_steps:
                return
            if self.step and config.save_steps and self.step % config.save_steps == 0:
                self._save_and_publish(log, progress)
            logs = self._optimizer_step(batches, progress)
            self.step += 1
            if self.step % config.logging_steps == 0 or self.step == self.max_steps:
                self._log(logs, log, progress)
            self.seconds = time.perf_counter() - started

    def _evaluation_is_due(self) -> bool:
        steps, evaluated = self.config.eval_steps, self.metrics is not None and self.metrics["step"]
        if self.data.validation is None or self.step == 0 or evaluated == self.step:
            return False
        return self.step == self.max_steps or (steps is not None and self.step % steps == 0)

    def _save_and_publish(self, log: TrainingLog, progress: Progress) -> None:
        if self.saved_step == self.step:
            return  # resumed from it
        self.save_checkpoint()
        if self.config.push_to_hub and self.config.hub_strategy == "every_save":
            try:
                self._write_result(log)
                self._publish()
            except SaveError as error:
                print(f"\nwarning: not published: {error}", file=sys.stderr)
            self.accelerator.wait_for_everyone()
            progress.pause()

    def _interrupt(self, signum: int) -> None:
        if self.saved_step != self.step:
            self.save_checkpoint()
        saved = self.saved_step == self.step
        where = ckpt.checkpoint_path(self.output_dir / "checkpoints", self.step) if saved else "nothing new"
        raise TrainingInterrupted(
            f"Stopped by {signal.Signals(signum).name} after step {self.step}; saved {where}. "
            "Go on with --resume_from_checkpoint latest.",
            signum,
        )

    def _batches(self):
        config = self.config
        augmentation = Augmentation(
            crop_size=config.crop_size,
            scale_min=config.scale_min,
            scale_max=config.scale_max,
            strong_views=self.method.strong_views,
            cutmix_probability=config.cutmix_probability,
            cutmix_partner=config.cutmix_partner,
            image_mean=tuple(self.processor.image_mean),
            image_std=tuple(self.processor.image_std),
        )
        return training_batches(
            self.data,
            augmentation,
            labeled_batch=config.per_device_batch_size,
            unlabeled_batch=config.unlabeled_batch if self.method.uses_unlabeled else 0,
            world_size=self.accelerator.num_processes,
            rank=self.accelerator.process_index,
            start_step=self.step * config.gradient_accumulation_steps,
            seed=config.seed,
            num_workers=self._workers(),
            pin_memory=self.accelerator.device.type == "cuda",
            on_bad_sample=config.on_bad_sample,
        )

    def _workers(self) -> int:
        """Processes that load images for this one."""
        if self.config.num_workers is not None:
            return self.config.num_workers
        # Where processes are not forked, a user's script without `if __name__ == "__main__"` would run again in each.
        if self.accelerator.device.type != "cuda" or multiprocessing.get_all_start_methods()[0] != "fork":
            return 0
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", self.accelerator.num_processes))
        return max(min(_cores() // processes - 1, 4), 0)

    def _optimizer_step(self, batches, progress: Progress) -> Logs:
        accelerator, config = self.accelerator, self.config
        total: Logs = {}
        skips, skipped = config.on_non_finite == "skip", False
        if skips:
            self.skipped_steps.remember()
        for _ in range(config.gradient_accumulation_steps):
            batch: SemiBatch = next(batches)
            for reason in batch.skipped:
                if reason not in self.skipped:
                    self.skipped.append(reason)
                    progress.write(f"warning: skipped: {reason}")
            # Whatever draws from the global generator (drop path, for instance) does so by (seed, step, process).
            torch.manual_seed(zlib.crc32(f"{config.seed}/{batch.step}/{accelerator.process_index}".encode()))
            with accelerator.accumulate(self.wrapped):
                batch = batch.to(accelerator.device, non_blocking=True)
                loss, logs = self.wrapped(batch)
                self.watch.observe(self.step + 1, loss, logs, batch.labeled_files + batch.unlabeled_files)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    self._watch_gradient()
                    skipped = skips and self.watch.found()
                if not skipped:
                    self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in {"loss": loss.detach(), **logs}.items():
                total[name] = total.get(name, 0) + value / config.gradient_accumulation_steps
        if skipped:
            self._undo_step(progress)
        elif not accelerator.optimizer_step_was_skipped:  # by fp16's gradient scaler
            self.skipped_steps.in_a_row = 0
            self.method.after_step()
            self.schedule.step()
            if self.average is not None:
                self.average.update(self.method.segmentation_model)
        progress.advance(self.total_batch + self._unlabeled_total())
        return total

    def _watch_gradient(self) -> None:
        """Clip, if asked to, and look whether the gradient is finite."""
        if self.config.max_grad_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.config.max_grad_norm)
        else:
            norm = torch.nn.utils.get_total_norm(
                [p.grad for p in self.method.parameters() if p.grad is not None]
            )
        if self.accelerator.scaler is None:  # else an overflow is the scaler's business, and no error
            self.watch.observe_gradient(self.step + 1, norm)

    def _undo_step(self, progress: Progress) -> None:
        """After a step with a loss or gradient that is not finite: everything is as before it, and the run goes on."""
        what = self.watch.describe()
        self.watch.forget()
        if self.accelerator.scaler is not None and self.config.max_grad_norm is not None:
            self.accelerator.scaler.update()  # clipping had unscaled, which it does once an update
        progress.write(f"warning: skipped a step: {what}")
        self.skipped_steps.undo(what)
        self.schedule.step()

    def _unlabeled_total(self) -> int:
        if not self.method.uses_unlabeled:
            return 0
        return (
            self.config.unlabeled_batch
            * self.accelerator.num_processes
            * self.config.gradient_accumulation_steps
        )

    def _log(self, logs: Logs, log: TrainingLog, progress: Progress) -> None:
        """Read the step's scalars back: means over processes."""
        self.watch.check()
        stacked = all_reduce(torch.stack([value.float() for value in logs.values()]))
        values = dict(zip(logs, (stacked / self.accelerator.num_processes).tolist(), strict=True))
        values = {
            name: value for name, value in values.items() if math.isfinite(value)
        }  # a step that was skipped
        if self.skipped_steps.total:
            values["skipped_steps"] = self.skipped_steps.total
        values["learning_rate"] = self.schedule.get_last_lr()[0]
        values["images_per_second"] = progress.images_per_second()
        progress.show(values)
        log.add({"step": self.step, **values})
        self.accelerator.log(values, step=self.step)

    # -------------------------------------------------------------------------------------------- evaluation

    @property
    def evaluated_model(self) -> nn.Module:
        """What is evaluated and saved: the method's model, or its average where `ema_decay` is set."""
        return self.average.network if self.average is not None else self.method.segmentation_model

    def evaluate(self, dataset: Any = None) -> dict[str, Any] | None:
        """Metrics on `dataset` (columns image and label), by default the validation split; None where there is none."""
        dataset = self.data.validation if dataset is None else dataset
        if dataset is None:
            return None
        config = self.config
        return evaluate_segmentation(
            self.evaluated_model,
            EvaluationSet(dataset, self.data),
            num_labels=self.data.num_labels,
            id2label=self.data.id2label,
            ignore_index=self.data.ignore_index,
            image_mean=self.processor.image_mean,
            image_std=self.processor.image_std,
            window=config.eval_window,
            stride=config.eval_stride,
            batch_size=config.eval_batch_size,
            num_workers=config.num_workers or 0,  # by default none: evaluation loads ahead in a thread
            device=self.accelerator.device,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )

    def _evaluate_and_keep_best(self, log: TrainingLog, progress: Progress) -> None:
        self.watch.check()
        self._check_weights()
        metrics = self.evaluate()
        row = {"step": self.step} | {k: metrics[k] for k in ("mean_iou", "pixel_accuracy", "mean_accuracy")}
        log.add(row)
        self.accelerator.log({f"eval/{k}": v for k, v in row.items() if k != "step"}, step=self.step)
        if self.accelerator.is_main_process:
            progress.write(
                f"step {self.step}: mean IoU {percent(metrics['mean_iou'])}, "
                f"pixel accuracy {percent(metrics['pixel_accuracy'])}"
            )
        # None where no pixel of the whole split has a label.
        if self.best is None or (metrics["mean_iou"] or 0) > (self.best["mean_iou"] or 0):
            self.best = {"step": self.step, **metrics}
            if self.accelerator.is_main_process:
                try:
                    with replaced_folder(self.output_dir / "best") as folder:
                        self._save_model(folder)
                except WRITE_ERRORS as error:
                    self._warn_not_saved("the best model so far", error)
        self.metrics = {"step": self.step, **metrics}

    # ------------------------------------------------------------------------------------------------ saving

    def _save_model(self, folder: Path) -> None:
        self.evaluated_model.save_pretrained(folder, inference_only=self.config.save_inference_only)
        self.processor.save_pretrained(folder)

    def save_checkpoint(self) -> Path | None:
        """Write everything a resumed run needs, as `checkpoints/step_...`; the oldest beyond the limit go.

        Where it cannot be written (a full disk, for instance) this is said on stderr, the checkpoints before stay as
        they are, and the result is None.
        """
        self.watch.check()
        self._check_weights()
        folder = self.output_dir / "checkpoints"
        path = ckpt.checkpoint_path(folder, self.step)
        aside = folder / f".{path.name}.writing"
        main = self.accelerator.is_main_process
        if main:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            self.accelerator.save_state(str(aside))
            failure = None
        except WRITE_ERRORS as error:
            failure = error
        self._share_skipped()
        if self._all_well(failure) and main:
            try:
                text = without_tokens(json.dumps(self._state(), indent=2))
                (aside / ckpt.STATE_FILE).write_text(text, encoding="utf-8")
                ckpt.write_checksums(aside)
                publish_folder(aside, path)
                ckpt.rotate(folder, self.config.max_checkpoints, path)
            except WRITE_ERRORS as error:
                failure = error
        if self._all_well(failure):
            self.saved_step = self.step
            return path
        if main:
            shutil.rmtree(aside, ignore_errors=True)
        if failure is not None:
            self._warn_not_saved(f"the checkpoint of step {self.step}", failure)
        self.accelerator.wait_for_everyone()
        return None

    def _state(self) -> dict[str, Any]:
        """What `trainer_state.json` holds."""
        return {
            "step": self.step,
            "metrics": self.metrics,
            "best": self.best,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "skipped_steps": self.skipped_steps.total,
            "skipped_in_a_row": self.skipped_steps.in_a_row,
            "architecture": self._architecture(),
            "processes": self.accelerator.num_processes,
            "config": self._options(),
        }

    def _share_skipped(self) -> None:
        """What any process had to skip is known to all."""
        self.skipped = list(dict.fromkeys(gather_object(self.skipped)))

    def _all_well(self, failure: Exception | None) -> bool:
        """Whether nothing failed on any process; all wait for each other."""
        return not bool(
            all_reduce(torch.tensor(failure is not None, device=self.accelerator.device).int(), "max")
        )

    def _warn_not_saved(self, what: str, error: Exception) -> None:
        print(
            f"\nwarning: could not save {what} in {self.output_dir}: {reason(error)}. {room(self.output_dir)} are free "
            "there. What was saved before is untouched, and the training goes on.",
            file=sys.stderr,
        )

    def _check_weights(self) -> None:
        """A gradient can be infinite where the loss is not; such weights must not replace a good checkpoint."""
        tensors = [*self.method.state_dict().values(), *self.evaluated_model.state_dict().values()]
        sums = torch.stack([t.detach().float().sum() for t in tensors])
        if not bool(sums.isfinite().all()):
            raise NonFiniteLossError(f"The weights are not finite after step {self.step}. {REMEDY}")

    def _load(self, path: Path) -> None:
        try:
            self.accelerator.load_state(str(path))
        except (
            RuntimeError,
            ValueError,
            KeyError,
        ) as error:  # weights are not there, or of another shape or number
            raise InputError(
                f"The checkpoint {path} does not fit the options of the method; resume with those it was started with."
            ) from error
        # The fused step walks flat memory: its state must lie as the weights do, whatever --channels_last was before.
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state = ckpt.read_state(path)
        self.step, self.best, self.seconds = state["step"], state["best"], state["seconds"]
        self.saved_step, self.metrics, self.skipped = self.step, state["metrics"], state["skipped"]
        self.skipped_steps.total, self.skipped_steps.in_a_row = (
            state["skipped_steps"],
            state["skipped_in_a_row"],
        )

    def save_model(self, folder: str | Path | None = None) -> None:
        """Write weights, config and processor into `folder`, by default the output folder."""
        self._check_weights()
        if self.accelerator.is_main_process:
            folder = Path(folder or self.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            with replaced_files(folder) as aside:
                self._save_model(aside)
        self.accelerator.wait_for_everyone()

    def full_configuration(self) -> dict[str, Any]:
        """Every option of the run; as YAML it is a valid `--config` of the same run."""
        return {
            **self.recipe,
            "method": self.method.name,
            **self._options(),
        }

    def _options(self) -> dict[str, Any]:
        """Those of the training and those of the method."""
        return {**dataclasses.asdict(self.config), **dataclasses.asdict(self.method.options)}

    def _write_configuration(self) -> None:
        if not self.accelerator.is_main_process:
            return
        self.output_dir.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(self.full_configuration(), sort_keys=False, allow_unicode=True)
        write_text(self.output_dir / "training_config.yaml", without_tokens(text))

    def _finish(self, log: TrainingLog) -> dict[str, Any]:
        if self.saved_step != self.step:
            self.save_checkpoint()
        try:
            result = self._write_result(log)
        except SaveError:
            if self.metrics is not None and self.accelerator.is_main_process:
                print(f"mean IoU {percent(self.metrics['mean_iou'])} at step {self.metrics['step']}")
            raise
        if self.accelerator.is_main_process:
            print(summary(self, result))
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        # Last, and without the other processes, which a long upload would let run into their time limit.
        return {**result, "published": self._publish()} if self.config.push_to_hub else result

    def _write_result(self, log: TrainingLog) -> dict[str, Any]:
        """Write the model and all that describes it; returns what `metrics.json` holds.

        Raises:
            SaveError: the output folder does not take them. The model is in a temporary folder then, or at least in the
                checkpoint.
        """
        self._check_weights()
        self._share_skipped()
        result = {
            "method": self.method.name,
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "images_per_second": _median([row["images_per_second"] for row in log.rows if "loss" in row]),
            # those of these very weights, if they were evaluated
            "final": self.metrics if self.metrics and self.metrics["step"] == self.step else None,
            "best": self.best,
            "skipped": self.skipped,
            "skipped_steps": self.skipped_steps.total,
        }
        if self.accelerator.device.type == "cuda":
            result["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated() // 2**20
        failure = None
        if self.accelerator.is_main_process:
            try:
                self._write_result_into(self.output_dir, result, log)
            except (OSError, SafetensorError) as error:
                failure = SaveError(self._rescue(error, result, log))
        if not self._all_well(failure):
            raise failure or SaveError("The result could not be saved; the main process says where it is.")
        return result

    def _write_result_into(self, folder: Path, result: dict[str, Any], log: TrainingLog) -> None:
        with replaced_files(folder) as aside:
            self._save_model(aside)
        write_text(folder / "metrics.json", json.dumps(result, indent=2))
        write_report(self, folder, result, log.rows)

    def _rescue(self, error: Exception, result: dict[str, Any], log: TrainingLog) -> str:
        """Write the result somewhere else; returns a sentence on what happened."""
        failed = f"The output folder {self.output_dir} did not take the result: {reason(error)}"
        kept = (
            " The last checkpoint holds everything, too: make room, and finish with --resume_from_checkpoint latest."
            if self.saved_step == self.step
            else ""
        )
        try:
            folder = Path(tempfile.mkdtemp(prefix="corrmatch_hf_"))
            self._write_result_into(folder, result, log)
        except (OSError, SafetensorError) as second:
            return f"{failed}; nor did {tempfile.gettempdir()}: {reason(second)}.{kept}"
        return f"{failed}. The trained model is in {folder} instead; move it from there.{kept}"

    # ------------------------------------------------------------------------------------------------ the Hub

    def push_to_hub(self, repo_id: str | None = None, token: str | None = None) -> str | None:
        """Publish the output folder as it is, in one commit; returns the model's address (main process only).

        Args:
            repo_id: "user/name", by default `config.hub_model_id`.
            token: by default that of `hf auth login`, or HF_TOKEN. It is not kept.

        Raises:
            InputError: the output folder holds no model yet.
            UploadError: the Hub cannot be reached or refuses; the message says how to try again.
        """
        if not self.accelerator.is_main_process:
            return None
        config = self.config
        return push_folder(
            self.output_dir,
            repo_id or config.hub_repository,
            private=config.hub_private,
            revision=config.hub_revision,
            token=token,
            message=f"{self.method.name} on {self.data.name}, {self.step} steps",
        )

    def _open_repository(self) -> None:
        """Before hours of training, find out whether their result can be published."""
        config = self.config
        try:
            with upload_errors(f"open {config.hub_repository}"):
                if config.hub_license:
                    ModelCard(f"---\nlicense: {config.hub_license}\n---\n").validate()
                open_repository(
                    config.hub_repository, private=config.hub_private, revision=config.hub_revision
                )
        except UploadError as error:
            raise InputError(
                f"--push_to_hub will fail: {error} Or train without it, and publish later: {self._retry_command()}"
            ) from None

    def _retry_command(self) -> str:
        config = self.config
        return retry_command(
            self.output_dir, config.hub_repository, private=config.hub_private, revision=config.hub_revision
        )

    def _publish(self) -> str | None:
        """Push; a failure is said and no more, for the training must not be lost over it."""
        try:
            url = self.push_to_hub()
        except UploadError as error:
            print(f"warning: {error} The model is kept in {self.output_dir}.", file=sys.stderr)
            return None
        except (InputError, KeyboardInterrupt) as error:
            reason = without_tokens(str(error)) or "interrupted."
            print(f"warning: not published: {reason} Try again: {self._retry_command()}", file=sys.stderr)
            if isinstance(error, KeyboardInterrupt):
                raise
            return None
        if url is not None:
            print(f"published: {url}")
        return url


def _has_batch_norm(method: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in method.modules())


def reason(error: Exception) -> str:
    """The first line of a message, without its full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def room(folder: Path) -> str:
    """The free space where `folder` is, for people."""
    return f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB"


def _median(values: list[float]) -> float | None:
    return round(statistics.median(values), 2) if values else None


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Values that every tracker accepts, none of them a secret."""
    return {k: v if isinstance(v, int | float | bool) else without_tokens(str(v)) for k, v in values.items()}
