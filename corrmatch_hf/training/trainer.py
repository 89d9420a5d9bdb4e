"""The training loop, on Accelerate: one process or many, any precision, any method.

The trainer knows `Method`, not methods: it feeds batches, steps the optimiser, logs, evaluates and saves. It promises:

- The sequence of total batches depends on the seed alone, not on the number of processes or workers, nor on whether the
  run was resumed. (With shards of a stream, it depends on the number of processes, too.) Randomness inside a step
  depends on (seed, step, process).
- Losses are read back at logging steps only (with `on_non_finite="skip"`, at every step).
- Files are written to a temporary path and renamed: a process killed at any moment leaves none of them half-written.
"""

from __future__ import annotations

import math
import signal
import sys
import time
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import gather_object

from ..data.batch import SemiBatch
from ..distributed import all_reduce, succeeded_everywhere
from ..errors import InputError
from ..evaluation.evaluate import OtherProcessFailed
from ..methods.base import Logs
from ..methods.class_statistics import untaught_classes
from ..text import percent
from .batches import run_batches
from .checkpoint import checkpoint_path
from .interruption import (
    StopSignals,
    TrainingInterrupted,
    failed_evaluation,
    is_lost_connection,
    translate_errors,
)
from .log import Progress, TrainingLog, unbreakable_output
from .optimizer import gpu_settings, keep_frozen
from .output_folder import EvaluationError, SaveError, delete_run, warn_not_saved
from .output_lock import OutputLock
from .preflight import prepare_output
from .publish import publish_or_warn
from .report import effect_of_unlabeled, example_maps, predictions_picture, save_best, summary
from .run import Run


class SemiSupervisedTrainer(Run):
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
        processor: image processor saved with the model; training uses its mean and standard deviation, too.
        recipe: further options to record in `training_config.yaml` (those of the data and the model, for instance).
        command: the command line that started the run, for the model card.

    Attributes:
        step, metrics, best, ...: the state of the run; see `Run`.

    Raises:
        InputError: anything that the user gave cannot work; raised before the first step.
    """

    @translate_errors(
        "Resume from the last checkpoint with --resume_from_checkpoint latest, if there is one."
    )
    def train(self) -> dict[str, Any]:
        """Train to the end and write everything; returns the content of `metrics.json`.

        With `push_to_hub`, the result of the main process also has the model's address under "published", or None where
        the upload failed: this is only warned about, and the output folder stays.
        """
        with unbreakable_output(), OutputLock(self.output_dir) as lock:
            return self._train(lock)

    def _train(self, lock: OutputLock) -> dict[str, Any]:
        config, accelerator = self.config, self.accelerator
        checkpoint = prepare_output(
            self.method, self.data, config, accelerator, self.max_steps, self.memory_estimate, lock
        )
        if checkpoint:
            self.restore(checkpoint)
        _ = self.data.identity  # for the checkpoints; later, a file of the data may be gone
        if config.report_to != "none":
            self.tracker.start(self.full_configuration())
        if not checkpoint and accelerator.is_main_process:
            delete_run(self.output_dir)  # only after everything that may refuse the new run
        accelerator.wait_for_everyone()
        self.write_configuration()
        log = TrainingLog(self.output_dir / "training_log.jsonl", accelerator.is_main_process, self.step)
        progress = Progress(self.max_steps, self.step, accelerator.is_main_process)
        batches = run_batches(
            self.method, self.data, config, self.processor, accelerator, self.step, self.stream_progress
        )
        with StopSignals() as signals, gpu_settings(config):  # until everything is written
            try:
                self._loop(batches, signals, log, progress)
            finally:
                progress.close()
                batches.close()  # type: ignore[attr-defined]  # a generator
            result = self._write_everything(log)
            signum = signals.received_anywhere()
        return self._end(result, signum or signals.received)

    def _loop(
        self, batches: Iterator[SemiBatch], signals: StopSignals, log: TrainingLog, progress: Progress
    ) -> None:
        """From `self.step` to the last step. What is due depends on the state alone, so a resumed run does it, too.

        A step is saved before it is evaluated, so that no evaluation can lose what was trained.
        """
        config = self.config
        started = time.perf_counter() - self.seconds
        self.wrapped.train()
        keep_frozen(self.method, config)
        while True:
            self._stop_if_asked(signals)
            last = self.step == self.max_steps
            saves = bool(self.step and config.save_steps and self.step % config.save_steps == 0)
            if (saves or last) and self.saved_step != self.step:  # else the run was resumed from it
                self.save_checkpoint()
                progress.pause()
            else:
                saves = False
            if self._evaluation_is_due():
                self._stop_if_asked(signals)
                self._evaluate_and_keep_best(log, progress)
                progress.pause()
            if last:
                return
            if saves:
                self._publish_checkpoint(log, progress)
            logs = self._optimizer_step(batches, progress)
            self.step += 1
            if self.step % config.logging_steps == 0 or self.step == self.max_steps:
                self._log(logs, log, progress)
            self.seconds = time.perf_counter() - started

    def _optimizer_step(self, batches: Iterator[SemiBatch], progress: Progress) -> Logs:
        """One step; returns the means of its scalars over the accumulated forward passes."""
        accelerator, config = self.accelerator, self.config
        logs: Logs = {}
        may_skip, skipped = config.on_non_finite == "skip", False
        if may_skip:
            self.skipped_steps.remember()
        for micro in range(config.gradient_accumulation_steps):
            batch = self._next_batch(batches, first=micro == 0)
            self._note_skipped_images(batch, progress)
            # Whatever draws from the global generator (drop path, for instance) depends on (seed, step, process).
            torch.manual_seed(zlib.crc32(f"{config.seed}/{batch.step}/{accelerator.process_index}".encode()))
            with accelerator.accumulate(self.wrapped):
                batch = batch.to(accelerator.device, non_blocking=True)
                if self.method.uses_unlabeled:
                    self.method.class_statistics.observe_labeled(batch.label)
                loss, scalars = self.wrapped(batch)
                self.watch.observe(self.step + 1, loss, scalars, batch.labeled_files + batch.unlabeled_files)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    self._clip_and_watch_gradient()
                    skipped = may_skip and self.watch.found()
                if not skipped:
                    self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in {"loss": loss.detach(), **scalars}.items():
                logs[name] = logs.get(name, 0) + value / config.gradient_accumulation_steps
        if skipped:
            self._undo_step(progress)
        elif not accelerator.optimizer_step_was_skipped:  # by fp16's gradient scaler
            self.skipped_steps.in_a_row = 0
            self.method.after_step()
            self.schedule.step()
            if self.average is not None:
                self.average.update(self.method.segmentation_model)
        unlabeled = config.unlabeled_batch if self.method.uses_unlabeled else 0
        progress.advance(self.total_batch + self.total_batch // config.per_device_batch_size * unlabeled)
        return logs

    def _next_batch(self, batches: Iterator[SemiBatch], first: bool) -> SemiBatch:
        """The next batch; where an image is damaged, the steps before are saved first.

        Args:
            batches: of this process.
            first: whether this is the first batch of an optimiser step, before which a checkpoint is exact.
        """
        try:
            return next(batches)
        except InputError as error:
            # With several processes, the others are in the middle of the step.
            if not first or not self.step or self.accelerator.num_processes > 1:
                raise
            if self.saved_step != self.step and self.save_checkpoint() is None:
                raise
            raise InputError(
                f"{str(error).rstrip('.')}. Step {self.step} is saved: correct that, and resume with "
                "--resume_from_checkpoint latest."
            ) from error

    def _note_skipped_images(self, batch: SemiBatch, progress: Progress) -> None:
        for reason in batch.skipped:
            if reason not in self.skipped:
                self.skipped.append(reason)
                progress.write(f"warning: skipped: {reason}")

    def _clip_and_watch_gradient(self) -> None:
        if self.config.max_grad_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.config.max_grad_norm)
        else:
            norm = torch.nn.utils.get_total_norm(
                [p.grad for p in self.method.parameters() if p.grad is not None]
            )
        if self.accelerator.scaler is None:  # fp16's scaler handles overflows itself; they are not errors
            self.watch.observe_gradient(self.step + 1, norm)

    def _undo_step(self, progress: Progress) -> None:
        """After a step whose loss or gradient is not finite, restore everything but the schedule, which goes on."""
        description = self.watch.describe()
        self.watch.forget()
        if self.accelerator.scaler is not None and self.config.max_grad_norm is not None:
            self.accelerator.scaler.update()  # clipping had unscaled the gradient, possible once per update
        progress.write(f"warning: skipped a step: {description}")
        self.skipped_steps.undo(description)
        self.schedule.step()

    def _log(self, logs: Logs, log: TrainingLog, progress: Progress) -> None:
        """Read the step's scalars back: means over processes."""
        self.watch.check()
        stacked = all_reduce(torch.stack([value.float() for value in logs.values()]))
        values = dict(zip(logs, (stacked / self.accelerator.num_processes).tolist(), strict=True))
        # Those of a skipped step may not be finite, which JSON cannot express.
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        if self.skipped_steps.total:
            values["skipped_steps"] = self.skipped_steps.total
        values["learning_rate"] = self.schedule.get_last_lr()[0]
        values["images_per_second"] = progress.images_per_second()
        progress.show(values)
        per_class, accuracies = self.method.class_statistics.read()
        values |= accuracies
        log.add({"step": self.step, **values} | ({"per_class": per_class} if per_class else {}))
        self.tracker.log(values | self._by_class_name(per_class), self.step)
        self._warn_of_starving_classes(log, progress)
        self._warn_of_untaught_classes(per_class, log, progress)

    def _by_class_name(self, per_class: dict[str, list[float | None]]) -> dict[str, float]:
        """As a tracker shows it: "kept_ratio/road"."""
        names = self.data.id2label
        return {
            f"{figure}/{names[c]}": value
            for figure, values in per_class.items()
            for c, value in enumerate(values)
            if value is not None
        }

    def _warn_of_starving_classes(self, log: TrainingLog, progress: Progress) -> None:
        """Once a run, in the middle of the part that sees unlabelled images, when there is time to start anew."""
        middle = (self.supervised_steps + self.max_steps) // 2
        if (
            not self.accelerator.is_main_process
            or not self.step - self.config.logging_steps < middle <= self.step
        ):
            return
        if self.step < self.max_steps and (warning := self.facts(log).starving()):
            progress.write(f"warning: {warning}")

    def _warn_of_untaught_classes(self, per_class: dict, log: TrainingLog, progress: Progress) -> None:
        """When a class is left to the labelled images for the first time in this process."""
        left = set(untaught_classes([per_class]))
        if left <= self.told_untaught or not self.accelerator.is_main_process:
            return
        self.told_untaught |= left
        progress.write(f"warning: {self.facts(log).untaught()}")

    def _stop_if_asked(self, signals: StopSignals) -> None:
        """After a signal to any process: save this step, where it is not saved, and end the run."""
        signum = signals.received_anywhere()
        if not signum:
            return
        if self.saved_step != self.step:
            self.save_checkpoint()
        saved = self.saved_step == self.step
        where = checkpoint_path(self.output_dir / "checkpoints", self.step) if saved else "nothing new"
        raise TrainingInterrupted(
            f"Stopped by {signal.Signals(signum).name} after step {self.step}; saved {where}. "
            "Resume with --resume_from_checkpoint latest.",
            signum,
        )

    def _evaluation_is_due(self) -> bool:
        steps, evaluated = self.config.eval_steps, self.metrics is not None and self.metrics["step"]
        if self.data.validation is None or self.step == 0 or evaluated == self.step:
            return False
        return self.step in (self.max_steps, self.supervised_steps) or (
            steps is not None and self.step % steps == 0
        )

    def _evaluate_and_keep_best(self, log: TrainingLog, progress: Progress) -> None:
        self.check_finite()
        if (metrics := self._evaluate_or_warn()) is None:
            return
        row = {"step": self.step} | {k: metrics[k] for k in ("mean_iou", "pixel_accuracy", "mean_accuracy")}
        log.add(row)
        self.tracker.log({f"eval/{k}": v for k, v in row.items() if k != "step"}, self.step)
        if self.config.report_to != "none" and self.accelerator.is_main_process:
            self.tracker.show("eval/predictions", predictions_picture(self.facts(log)), self.step)
        if self.accelerator.is_main_process:
            progress.write(
                f"step {self.step}: mean IoU {percent(metrics['mean_iou'])}, "
                f"pixel accuracy {percent(metrics['pixel_accuracy'])}"
            )
        self.metrics = {"step": self.step, **metrics}
        self._warn_where_unlabeled_harm(progress)
        if self.step == self.supervised_steps < self.max_steps:
            self.supervised = {"step": self.step, "mean_iou": metrics["mean_iou"]}
            if self.accelerator.is_main_process:
                self.supervised_maps = example_maps(self.facts(log))
        # The mean IoU is None where no pixel of the whole split has a label.
        if self.best is None or (metrics["mean_iou"] or 0) > (self.best["mean_iou"] or 0):
            self._save_best()

    def _warn_where_unlabeled_harm(self, progress: Progress) -> None:
        """In the middle of a run; at its end, the summary says so."""
        effect = effect_of_unlabeled(self.supervised, self.metrics, self.method.advice)
        if effect is None or self.step == self.max_steps or not self.accelerator.is_main_process:
            return
        if self.metrics["mean_iou"] < self.supervised["mean_iou"]:
            progress.write(f"warning: {effect}")

    def _evaluate_or_warn(self) -> dict[str, Any] | None:
        """The metrics; None after an error, which is only warned about, so that what was trained is not lost."""
        try:
            return self.evaluate()
        except Exception as error:
            if is_lost_connection(error):
                raise
            own = None if isinstance(error, OtherProcessFailed) else failed_evaluation(error)
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        reason = next(filter(None, gather_object([own])))
        if self.step == self.max_steps:
            self.failed_evaluation = reason
        elif self.accelerator.is_main_process:
            print(
                f"\nwarning: the evaluation after step {self.step} failed: {reason}. The training goes on without it.",
                file=sys.stderr,
            )
        return None

    def _save_best(self) -> None:
        failure = None
        if self.accelerator.is_main_process:
            model, inference_only = self.evaluated_model, self.config.save_inference_only
            try:
                save_best(self.output_dir / "best", model, self.processor, inference_only, self.metrics)
            except Exception as error:  # whatever it is, the training goes on
                failure = error
                warn_not_saved("the best model so far", self.output_dir, error)
        if succeeded_everywhere(failure, self.accelerator.device):
            self.best = self.metrics

    def _write_everything(self, log: TrainingLog) -> dict[str, Any]:
        try:
            result = self.write_result(log)
        except SaveError:
            if self.metrics is not None and self.accelerator.is_main_process:
                print(f"mean IoU {percent(self.metrics['mean_iou'])} at step {self.metrics['step']}")
            raise
        if self.accelerator.is_main_process:
            print(summary(result, self.output_dir))
        self.accelerator.wait_for_everyone()
        return result

    def _end(self, result: dict[str, Any], signum: int) -> dict[str, Any]:
        """After everything is written: stop after a signal or a failed evaluation, else publish."""
        if signum:
            unpublished = ", but not published" if self.config.push_to_hub else ""
            raise TrainingInterrupted(
                f"Stopped by {signal.Signals(signum).name} after the last step; the result is complete in "
                f"{self.output_dir}{unpublished}.",
                signum,
            )
        self.tracker.end()
        if self.failed_evaluation is not None:
            unpublished = " and is not published" if self.config.push_to_hub else ""
            raise EvaluationError(
                f"The trained model is saved in {self.output_dir}{unpublished}, but it has no figures, because its "
                f"evaluation failed: {self.failed_evaluation}. Correct that and finish with --resume_from_checkpoint "
                "latest."
            )
        if not self.config.push_to_hub:
            return result
        # Last, and without the other processes: during a long upload they would run into their time limit.
        return {**result, "published": publish_or_warn(self.push_to_hub, self.config)}

    def _publish_checkpoint(self, log: TrainingLog, progress: Progress) -> None:
        """With `hub_strategy="every_save"`, upload the model of the checkpoint that was just written."""
        if self.config.push_to_hub and self.config.hub_strategy == "every_save":
            try:
                self.write_result(log, rescue=False)
                publish_or_warn(self.push_to_hub, self.config)
            except Exception as error:
                if is_lost_connection(error):
                    raise
                if self.accelerator.is_main_process:
                    print(f"\nwarning: not published: {error}", file=sys.stderr)
            self.accelerator.wait_for_everyone()
            progress.pause()
