"""How a run is trained: one dataclass, so that the command line, YAML and Python are one thing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.utils import LoggerType
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..data.augment import CUTMIX_PARTNERS
from ..errors import refuse, unknown_name


def option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field with its help text, as `transformers.HfArgumentParser` reads it."""
    metadata: dict[str, Any] = {"help": help}
    if choices:
        metadata["choices"] = list(choices)
    return field(default=default, metadata=metadata)


@dataclass
class TrainingConfig:
    """Schedule, batch, augmentation, optimiser, evaluation, saving.

    Raises:
        InputError: from `check()`, which the trainer calls first, with every problem at once.
    """

    output_dir: str = option(
        "outputs/run", "Folder of the trained model, the log, the metrics and the pictures."
    )
    overwrite: bool = option(False, "Train into an output folder that already holds a run, replacing it.")
    resume_from_checkpoint: str | None = option(
        None, "'latest', or the folder of a checkpoint, to go on from exactly there."
    )
    seed: int = option(0, "Seed of initialisation, order, augmentation and dropout.")

    max_steps: int | None = option(None, "Optimiser steps. Give this or --num_epochs.")
    num_epochs: float | None = option(
        None,
        "Passes over the unlabelled images (the labelled ones are repeated), if --max_steps is not given.",
    )
    per_device_batch_size: int = option(4, "Labelled images per process and forward pass.")
    per_device_unlabeled_batch_size: int | None = option(
        None, "Unlabelled images per process and forward pass; as many as labelled ones if not given."
    )
    gradient_accumulation_steps: int = option(
        1,
        "Forward passes whose gradients make one optimiser step; each is its own batch for losses and threshold.",
    )

    crop_size: int = option(321, "Side of the square training crops in pixels.")
    scale_min: float = option(0.5, "Smallest random scale before cropping.")
    scale_max: float = option(2.0, "Largest random scale before cropping.")
    cutmix_probability: float = option(0.5, "Share of strong views with a CutMix box.")
    cutmix_partner: str = option(
        "same_image",
        "What is pasted: a second view of the same image (as in the published runs), the next image of the total "
        "batch, or that at its place in the reversed batch (as in UniMatch V2's).",
        CUTMIX_PARTNERS,
    )

    optimizer: str = option("sgd", "Optimiser.", ("sgd", "adamw"))
    learning_rate: float = option(0.001, "Learning rate of the encoder.")
    head_lr_multiplier: float = option(
        10.0, "Learning rate of everything else, as a multiple of the encoder's."
    )
    lr_reference_batch: int | None = option(
        None,
        "Total labelled batch that the learning rate was chosen for; given this, the rate is scaled linearly to the "
        "batch in use.",
    )
    momentum: float = option(0.9, "Momentum of SGD.")
    weight_decay: float = option(1e-4, "Weight decay, on all parameters.")
    no_decay_norm_bias: bool = option(
        False, "No weight decay on biases and on the gains of norms (CPS's published runs)."
    )
    lr_power: float = option(0.9, "Exponent of the polynomial decay to zero.")
    warmup_steps: int = option(0, "Steps over which the learning rate rises linearly.")
    max_grad_norm: float | None = option(None, "Clip gradients to this norm.")
    mixed_precision: str = option("no", "Precision of the forward passes.", ("no", "bf16", "fp16"))
    compile: bool = option(
        False, "Compile the networks with torch.compile: minutes at the start, faster steps on a GPU."
    )
    channels_last: bool = option(
        True,
        "Keep feature maps pixel by pixel in memory: the same results up to rounding, faster nearly everywhere.",
    )
    freeze_encoder: bool = option(
        False,
        "Leave the encoder as it is, in evaluation mode and without gradient: less memory, faster steps.",
    )
    layer_decay: float | None = option(
        None,
        "Each layer of the encoder learns at this share of the rate of the one above it, the last at --learning_rate; "
        "e.g. 0.75 for a transformer.",
    )
    freeze_batch_norm: bool = option(
        False,
        "Keep BatchNorm's running statistics as they are; then a step does not depend on the process count.",
    )
    ema_decay: float | None = option(
        None,
        "Evaluate and save an exponential average of the weights with this decay, e.g. 0.999. Methods whose teacher is "
        "saved average already.",
    )

    eval_steps: int | None = option(None, "Evaluate every so many steps; always at the end.")
    eval_window: int | None = option(
        None, "Evaluate with sliding windows of this side instead of the whole image."
    )
    eval_stride: int | None = option(
        None, "Step of the sliding windows; two thirds of the window if not given."
    )
    eval_batch_size: int = option(1, "Images of equal size evaluated together.")
    save_steps: int | None = option(None, "Write a checkpoint to resume from every so many steps.")
    max_checkpoints: int = option(2, "Checkpoints kept; the oldest goes first.")
    logging_steps: int = option(10, "Read the losses back and log them every so many steps.")
    report_to: str = option(
        "none", "Experiment tracker known to Accelerate: tensorboard, wandb, trackio, ..., all, or none."
    )
    num_workers: int | None = option(
        None,
        "Processes that load and augment images; 0 loads in the training process. By default up to 4 for each GPU, and "
        "none on a CPU, whose cores the training needs.",
    )
    cpu_threads: int | None = option(
        None,
        "Threads of each process on a CPU; torch's choice if not given (`accelerate launch` makes that 1).",
    )
    on_bad_sample: str = option(
        "error",
        "What to do with an unreadable training image: stop, or skip and count it.",
        ("error", "skip"),
    )

    on_non_finite: str = option(
        "stop",
        "When a loss or gradient is not finite: stop, or skip that step (which reads every step's loss back).",
        ("stop", "skip"),
    )
    max_skipped_steps: int = option(10, "Stop after so many skipped steps in a row.")
    ddp_timeout: int = option(
        1800, "Seconds after which a process that waits for another one in vain gives up."
    )

    save_inference_only: bool = option(
        False, "Save the trained model without its correlation head: the same predictions, smaller files."
    )
    card_pictures: bool = option(
        True, "Put evaluation photos with their predictions into the output folder and the model card."
    )
    push_to_hub: bool = option(
        False, "Publish the output folder on the Hub; the token is that of `hf auth login`, or HF_TOKEN."
    )
    hub_model_id: str | None = option(
        None, "Where to publish, user/name; the output folder's name in your namespace if not given."
    )
    hub_private: bool = option(False, "Make a new repository private.")
    hub_revision: str | None = option(None, "Branch to publish to, made if it does not exist.")
    hub_strategy: str = option(
        "end", "Publish at the end, or with every checkpoint as well.", ("end", "every_save")
    )
    hub_license: str | None = option(
        None,
        "Licence of the weights for the model card, as the Hub spells it: apache-2.0, cc-by-4.0, other, ...",
    )

    @property
    def unlabeled_batch(self) -> int:
        """Unlabelled images per process and forward pass."""
        if self.per_device_unlabeled_batch_size is None:
            return self.per_device_batch_size
        return self.per_device_unlabeled_batch_size

    @property
    def hub_repository(self) -> str:
        """Where the model is published."""
        return self.hub_model_id or Path(self.output_dir).resolve().name

    def check(self) -> None:
        """Refuse values that cannot work, all of them in one `InputError`."""
        refuse(self.problems())

    def problems(self) -> list[str]:
        """What cannot work, a sentence each without its full stop."""
        problems = []
        for name, spec in type(self).__dataclass_fields__.items():
            choices = spec.metadata.get("choices")
            if choices and getattr(self, name) not in choices:
                problems.append(f"--{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        at_least = {
            "per_device_batch_size": 1, "per_device_unlabeled_batch_size": 1, "gradient_accumulation_steps": 1,
            "crop_size": 1, "max_steps": 1, "eval_steps": 1, "eval_window": 1, "eval_stride": 1, "eval_batch_size": 1,
            "save_steps": 1, "cpu_threads": 1, "max_checkpoints": 1, "logging_steps": 1, "num_workers": 0,
            "warmup_steps": 0, "max_skipped_steps": 1, "ddp_timeout": 1, "lr_reference_batch": 1,
            "weight_decay": 0, "seed": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                problems.append(f"--{name} is {value}; it must be at least {least}")
        for name in (
            "learning_rate",
            "head_lr_multiplier",
            "num_epochs",
            "max_grad_norm",
            "scale_min",
            "scale_max",
            "lr_power",
        ):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                problems.append(f"--{name} is {value}; it must be above 0")
        if not self.scale_min <= self.scale_max:
            problems.append(f"--scale_max is {self.scale_max}, below --scale_min {self.scale_min}")
        if not 0 <= self.cutmix_probability <= 1:
            problems.append(f"--cutmix_probability is {self.cutmix_probability}; it must be in [0, 1]")
        for name in ("momentum", "ema_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                problems.append(f"--{name} is {value}; it must be in [0, 1)")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            problems.append(f"--layer_decay is {self.layer_decay}; it must be above 0 and at most 1")
        if self.layer_decay is not None and self.freeze_encoder:
            problems.append("--layer_decay says how fast the encoder learns, which --freeze_encoder forbids")
        if (self.max_steps is None) == (self.num_epochs is None):
            found = "neither was" if self.max_steps is None else "both were"
            problems.append(f"give one of --max_steps and --num_epochs ({found} given)")
        trackers = ["none", "all", *(kind.value for kind in LoggerType if kind is not LoggerType.ALL)]
        if self.report_to not in trackers:
            problems.append(str(unknown_name("tracker in --report_to", self.report_to, trackers)).rstrip("."))
        for name in ("hub_model_id", "hub_private", "hub_revision"):
            if getattr(self, name) and not self.push_to_hub:
                problems.append(f"--{name} says where to publish, but --push_to_hub is not given")
        if self.push_to_hub:
            try:
                validate_repo_id(self.hub_repository)
            except HFValidationError as error:
                problems.append(f"--hub_model_id is {self.hub_repository!r}: {str(error).rstrip('.')}")
            if self.hub_strategy == "every_save" and not self.save_steps:
                problems.append("--hub_strategy every_save needs --save_steps")
        if self.eval_stride is not None and self.eval_window is None:
            problems.append("--eval_stride needs --eval_window")
        if self.overwrite and self.resume_from_checkpoint:
            problems.append("--overwrite deletes what --resume_from_checkpoint needs; give one of them")
        return problems
