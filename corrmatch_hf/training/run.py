"""A run: what is trained on what, how far it is, and how it is evaluated, saved and published.

`SemiSupervisedTrainer` adds the loop.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from accelerate.utils import broadcast_object_list, gather_object
from timm.layers import convert_sync_batchnorm
from torch import nn

from ..data.semi_dataset import EvaluationSet, SemiDataset
from ..data.training_set import StreamProgress
from ..distributed import succeeded_everywhere
from ..evaluation.evaluate import evaluate_segmentation
from ..evaluation.inference import default_batch_size
from ..hub.push import push_folder
from ..methods.base import Method
from ..methods.teacher import Teacher
from ..model import CorrMatchImageProcessor
from ..text import percent, presentable_values, without_tokens
from .atomic_write import replaced_files, write_text
from .checkpoint import (
    architecture,
    deciding_versions,
    load_checkpoint,
    packed_map,
    read_stream_state,
    unpacked_map,
    write_checkpoint,
)
from .config import TrainingConfig
from .log import Tracker, TrainingLog
from .non_finite import NonFiniteWatch, SkippedSteps, check_weights
from .optimizer import (
    build_optimizer,
    build_schedule,
    compile_networks,
    freeze,
    memory_format,
    without_cudnn_benchmark,
)
from .output_folder import CONFIGURATION, SaveError, write_or_rescue
from .preflight import check_run, count_steps, estimate_run_memory, make_accelerator
from .report import RunFacts, read_best, save_model, write_result


class Run:
    """The parts and the state of a training run; see `SemiSupervisedTrainer` for the arguments.

    Attributes:
        method, wrapped: the method, and the same as Accelerate wraps it for several processes.
        average: the exponential moving average of the weights, where `ema_decay` is set.
        memory_estimate: of a step and of a checkpoint.
        total_batch: labelled images of an optimiser step, over all processes.
        step, max_steps: optimiser steps taken, and to take.
        saved_step: the step of the newest checkpoint; None before the first.
        supervised: the evaluation at the end of the supervised part of a method that has one, as "step" and "mean_iou".
        supervised_maps: what the model predicted then for predictions.png; in the main process only.
        metrics, best: the newest evaluation and that of the weights in `best/`, each with its "step"; None before the
            first.
        failed_evaluation: why the evaluation after the last step failed; None where it did not.
        seconds: of training so far.
        skipped: why training images were left out, with `on_bad_sample="skip"`.
        skipped_steps: counts the steps that `on_non_finite="skip"` left out.
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
        self.accelerator = make_accelerator(config)
        device, processes = self.accelerator.device, self.accelerator.num_processes
        method = method.to(device, memory_format=memory_format(method.segmentation_model, config, device))
        features = check_run(method, data, config, processes)
        if processes > 1 and device.type == "cuda":
            method = convert_sync_batchnorm(method)  # timm's keeps the activations that its norms carry

        self.total_batch = config.per_device_batch_size * processes * config.gradient_accumulation_steps
        self.max_steps = count_steps(data, config, processes)
        method.plan(self.max_steps * config.gradient_accumulation_steps)
        freeze(method, config)
        optimizer = build_optimizer(method, config, self.total_batch)
        # Whole optimiser steps at the start that see labelled images alone.
        self.supervised_steps = method.supervised_passes // config.gradient_accumulation_steps
        restarts = [passes // config.gradient_accumulation_steps for passes in method.rate_restarts]
        self.schedule = build_schedule(optimizer, config, self.max_steps, restarts)
        costly = method.supervised_passes if self.supervised_steps < self.max_steps else 0
        self.memory_estimate = estimate_run_memory(method, config, self.accelerator, features, costly)
        if config.compile:
            compile_networks(method)
        self.method = method
        self.wrapped, self.optimizer = self.accelerator.prepare(self.method, optimizer)
        self.accelerator.register_for_checkpointing(self.schedule)
        self.average: Teacher | None = None
        if config.ema_decay is not None:
            # Not torch's AveragedModel: its counter would make the host wait for a GPU in every step.
            self.average = Teacher(self.method.segmentation_model, config.ema_decay)
            self.average.to(device)
            self.accelerator.register_for_checkpointing(self.average)

        self.step = 0
        self.saved_step: int | None = None
        self.metrics: dict[str, Any] | None = None
        self.best: dict[str, Any] | None = None
        self.supervised: dict[str, Any] | None = None
        self.supervised_maps: list[np.ndarray] | None = None
        self.failed_evaluation: str | None = None
        self.told_untaught: set[int] = set()
        self.seconds = 0.0
        self.skipped: list[str] = []
        self.skipped_steps = SkippedSteps(self.method, config.max_skipped_steps)
        self.tracker = Tracker(self.accelerator)
        self.stream_progress = StreamProgress()
        self.watch = NonFiniteWatch(device, config.logging_steps * config.gradient_accumulation_steps)

    # Evaluation

    @property
    def evaluated_model(self) -> nn.Module:
        """What is evaluated and saved: the method's model, or its average where `ema_decay` is set."""
        return self.average.network if self.average is not None else self.method.segmentation_model

    def evaluate(self, dataset: Any = None) -> dict[str, Any] | None:
        """Metrics on `dataset` (columns image and label), by default the validation split; None without one."""
        dataset = self.data.validation if dataset is None else dataset
        if dataset is None:
            return None
        config = self.config
        with without_cudnn_benchmark():
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
                batch_size=config.eval_batch_size or default_batch_size(self.accelerator.device),
                num_workers=config.num_workers or 0,  # with 0, evaluation loads ahead in a thread
                device=self.accelerator.device,
                rank=self.accelerator.process_index,
                world_size=self.accelerator.num_processes,
            )

    def check_finite(self) -> None:
        """Raise `NonFiniteLossError` rather than evaluate or save weights that are not finite."""
        self.watch.check()
        check_weights([self.method, self.evaluated_model], self.step)

    # Options

    def full_configuration(self) -> dict[str, Any]:
        """Every option of the run; as YAML it is a valid `--config` of the same run."""
        return {**self.recipe, "method": self.method.name, **self._options()}

    def _options(self) -> dict[str, Any]:
        """The options of the training and of the method."""
        return {**dataclasses.asdict(self.config), **dataclasses.asdict(self.method.options)}

    def write_configuration(self) -> None:
        """Write `training_config.yaml`, by which the folder is recognised as that of a run."""
        if self.accelerator.is_main_process:
            text = yaml.safe_dump(self.full_configuration(), sort_keys=False, allow_unicode=True)
            write_text(self.output_dir / CONFIGURATION, without_tokens(text))

    # Checkpoints

    def save_checkpoint(self) -> Path | None:
        """Write everything a resumed run needs as `checkpoints/step_...`; the oldest beyond the limit are deleted.

        Where it cannot be written (on a full disk, for instance) a warning is printed, earlier checkpoints stay as they
        are, and the result is None.
        """
        self.check_finite()
        self._gather_skipped_images()
        state = {
            "step": self.step,
            "metrics": self.metrics,
            "supervised": self.supervised,
            "supervised_maps": [packed_map(each) for each in self.supervised_maps or ()],
            "class_statistics": self.method.class_statistics.counts(),
            "seconds": self.seconds,
            "skipped": self.skipped,
            "skipped_steps": self.skipped_steps.total,
            "skipped_in_a_row": self.skipped_steps.in_a_row,
            "architecture": architecture(self.method, self.config),
            "processes": self.accelerator.num_processes,
            "config": presentable_values(self._options()),  # a checkpoint may be shared
            "data": self.data.identity,
            "versions": deciding_versions(),
        }
        folder, keep = self.output_dir / "checkpoints", self.config.max_checkpoints
        read = self.stream_progress.state(self.step * self.config.gradient_accumulation_steps)
        path = write_checkpoint(self.accelerator, folder, self.step, state, keep, read)
        if path is not None:
            self.saved_step = self.step
        return path

    def restore(self, checkpoint: Path) -> None:
        """Continue from a checkpoint that fits, as `check_resumable` finds."""
        state = load_checkpoint(self.accelerator, self.optimizer, checkpoint)
        if state["processes"] == self.accelerator.num_processes:
            self.stream_progress.resumed = read_stream_state(checkpoint, self.accelerator.process_index)
        self.step = self.saved_step = state["step"]
        self.metrics, self.seconds = state["metrics"], state["seconds"]
        self.supervised = state.get("supervised")  # absent in checkpoints of earlier versions
        # Absent, too; the counters are those of all processes, which are added up when they are read.
        counts = state.get("class_statistics") if self.accelerator.is_main_process else None
        self.method.class_statistics.restore(counts, self.accelerator.device)
        if state.get("data", {}).get("validation") != self.data.identity.get("validation"):
            self.supervised = None  # measured on other images
        maps = state.get("supervised_maps") if self.supervised else None
        self.supervised_maps = [unpacked_map(each) for each in maps] if maps else None
        folder = self.output_dir / "best"
        best = read_best(folder)
        if best is None and folder.is_dir():
            best = state.get("best")  # of an earlier version, which had the figures in the checkpoint alone
        self.best = broadcast_object_list([best])[0]
        if self.best and self.best["step"] > self.step and self.accelerator.is_main_process:
            print(
                f"Note: {folder} has the model of step {self.best['step']} (mean IoU "
                f"{percent(self.best['mean_iou'])}), later than this checkpoint; it stays until another is better."
            )
        self.skipped = state["skipped"]
        self.skipped_steps.total = state["skipped_steps"]
        self.skipped_steps.in_a_row = state["skipped_in_a_row"]

    def _gather_skipped_images(self) -> None:
        """Collect what any process had to skip."""
        self.skipped = list(dict.fromkeys(gather_object(self.skipped)))

    # The result

    def save_model(self, folder: str | Path | None = None) -> None:
        """Write weights, config and processor into `folder`, by default the output folder."""
        self.check_finite()
        if self.accelerator.is_main_process:
            folder = Path(folder or self.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            with replaced_files(folder) as temporary:
                save_model(temporary, self.evaluated_model, self.processor, self.config.save_inference_only)
        self.accelerator.wait_for_everyone()

    def write_result(self, log: TrainingLog, rescue: bool = True) -> dict[str, Any]:
        """Write the model and its report into the output folder; returns the content of `metrics.json`.

        Args:
            log: the rows of the run.
            rescue: write the model elsewhere if the output folder cannot be written.

        Raises:
            SaveError: the output folder cannot be written. The model is then in a temporary folder, or at least in the
                last checkpoint.
        """
        self.check_finite()
        self._gather_skipped_images()
        facts, device = self.facts(log), self.accelerator.device
        failure = None
        if self.accelerator.is_main_process:
            write = partial(write_result, facts=facts)
            try:
                if rescue:
                    failure = write_or_rescue(self.output_dir, write, self.saved_step == self.step)
                else:
                    write(self.output_dir)
            except Exception as error:  # raised below, when all processes know
                failure = error
        if not succeeded_everywhere(failure, device):
            raise failure or SaveError("The result could not be saved; see the main process's error.")
        return facts.result()

    def facts(self, log: TrainingLog) -> RunFacts:
        """The run as its report sees it."""
        return RunFacts(
            method=self.method.name,
            uses_unlabeled=self.method.uses_unlabeled,
            advice=self.method.advice,
            advice_for_starving=self.method.advice_for_starving,
            model=self.evaluated_model,
            processor=self.processor,
            data=self.data,
            options=self.full_configuration(),
            command=self.command,
            total_batch=self.total_batch,
            processes=self.accelerator.num_processes,
            device=self.accelerator.device,
            step=self.step,
            seconds=self.seconds,
            metrics=self.metrics,
            best=self.best,
            supervised=self.supervised,
            supervised_maps=self.supervised_maps,
            skipped=self.skipped,
            skipped_steps=self.skipped_steps.total,
            rows=log.rows,
        )

    def push_to_hub(self, repo_id: str | None = None, token: str | None = None) -> str | None:
        """Publish the output folder as it is, in one commit; returns the model's address (main process only).

        Args:
            repo_id: "user/name", by default `config.hub_model_id`.
            token: by default that of `hf auth login`, or HF_TOKEN. It is not stored.

        Raises:
            InputError: the output folder holds no model yet.
            UploadError: the Hub cannot be reached or refuses; the message names the command to try again.
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
