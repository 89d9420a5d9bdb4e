"""How a run is trained: one dataclass, read by the command line, YAML files, Python and the documentation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from accelerate.utils import LoggerType
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import unknown_name
from ..evaluation.inference import inference_problems
from ..options import LARGEST_CROP, LARGEST_SEED, MOST_WORKERS, Options, option

LARGEST_SCALE = 100


@dataclass
class TrainingConfig(Options):
    """Schedule, batch, augmentation, optimiser, evaluation, saving.

    Raises:
        InputError: from `check()`, which the trainer calls first, with all problems at once.
    """

    output_dir: str = option(
        "outputs/run", "Folder for the trained model, log, metrics and pictures.", group="Saving", common=True
    )
    overwrite: bool = option(False, "Replace the run that the output folder already holds.", group="Saving")
    resume_from_checkpoint: str | None = option(
        None,
        "Resume exactly: 'latest', or the folder of a checkpoint.",
        group="Saving",
        common=True,
    )
    seed: int = option(
        0,
        "Seed of initialisation, order, augmentation and dropout.",
        group="Schedule",
        common=True,
        at_least=0,
        at_most=LARGEST_SEED,
    )

    max_steps: int | None = option(
        None,
        "Optimiser steps. Give this or --num_epochs.",
        group="Schedule",
        common=True,
        at_least=1,
        at_most=10**9,
    )
    num_epochs: float | None = option(
        None,
        "Passes over the unlabelled images (the labelled ones are repeated), instead of --max_steps.",
        group="Schedule",
        common=True,
        above=0,
        at_most=10**6,
    )
    per_device_batch_size: int = option(
        4,
        "Labelled images per process and forward pass.",
        group="Batch",
        common=True,
        at_least=1,
        at_most=2**16,
    )
    per_device_unlabeled_batch_size: int | None = option(
        None,
        "Unlabelled images per process and forward pass; by default as many as labelled ones.",
        group="Batch",
        at_least=1,
        at_most=2**16,
    )
    gradient_accumulation_steps: int = option(
        1,
        "Forward passes per optimiser step; each is a batch of its own for losses and threshold.",
        group="Batch",
        at_least=1,
        at_most=2**16,
    )

    crop_size: int = option(
        321,
        "Side of the square training crops in pixels.",
        group="Augmentation",
        common=True,
        at_least=1,
        at_most=LARGEST_CROP,
    )
    scale_min: float = option(
        0.5, "Smallest random scale before cropping.", group="Augmentation", above=0, at_most=LARGEST_SCALE
    )
    scale_max: float = option(
        2.0, "Largest random scale before cropping.", group="Augmentation", above=0, at_most=LARGEST_SCALE
    )
    cutmix_probability: float = option(
        0.5, "Share of strong views with a CutMix box.", group="Augmentation", at_least=0, at_most=1
    )
    cutmix_partner: Literal["same_image", "batch", "reversed"] = option(
        "same_image",
        "What the CutMix box shows: a second view of the same image (as in the published runs), the next image of the "
        "total batch, or the image at the same place in the reversed batch (as in UniMatch V2).",
        group="Augmentation",
        only_with="cutmix_probability",
    )

    optimizer: Literal["sgd", "adamw"] = option("sgd", "Optimiser.", group="Optimiser")
    learning_rate: float = option(
        0.001, "Learning rate of the encoder.", group="Optimiser", common=True, above=0
    )
    head_lr_multiplier: float = option(
        10.0,
        "Learning rate of everything else, as a multiple of the encoder's.",
        group="Optimiser",
        above=0,
    )
    lr_reference_batch: int | None = option(
        None,
        "Total labelled batch that the learning rate was chosen for; if given, the rate is scaled in proportion to the "
        "actual batch.",
        group="Optimiser",
        at_least=1,
    )
    momentum: float = option(
        0.9, "Momentum of SGD.", group="Optimiser", at_least=0, below=1, only_with="optimizer=sgd"
    )
    weight_decay: float = option(1e-4, "Weight decay, on all parameters.", group="Optimiser", at_least=0)
    no_decay_norm_bias: bool = option(
        False,
        "No weight decay on biases and norms (as in CPS's published runs).",
        group="Optimiser",
        only_with="weight_decay",
    )
    lr_power: float = option(0.9, "Exponent of the polynomial decay to zero.", group="Optimiser", above=0)
    lr_restart: float = option(
        0.0,
        "For a method that begins with labelled images alone: decay the rate to zero by the end of that part, then "
        "again from this share of the rate, in each round of --soft_labels; 0: one decay over the whole run.",
        group="Optimiser",
        at_least=0,
    )
    warmup_steps: int = option(
        0, "Steps over which the learning rate rises linearly.", group="Optimiser", at_least=0
    )
    max_grad_norm: float | None = option(None, "Clip gradients to this norm.", group="Optimiser", above=0)
    mixed_precision: Literal["no", "bf16", "fp16"] = option(
        "no", "Precision of the forward passes.", group="Hardware", common=True
    )
    compile: bool = option(
        False,
        "Compile the networks with torch.compile: minutes at the start, then faster steps on a GPU.",
        group="Hardware",
    )
    tf32: bool = option(
        False,
        "On NVIDIA GPUs, multiply float32 matrices in TF32, as torch does in convolutions anyway: faster transformers, "
        "and results vary slightly.",
        group="Hardware",
    )
    cudnn_benchmark: bool = option(
        False,
        "On NVIDIA GPUs, time the algorithms for each new shape of a convolution in training and take the fastest; "
        "results then vary from run to run.",
        group="Hardware",
    )
    channels_last: bool = option(
        True,
        "Keep feature maps in channels-last memory format where that is faster: everywhere but for networks without "
        "depthwise convolutions on CPUs without AVX-512. Equal results up to rounding.",
        group="Hardware",
    )
    freeze_encoder: bool = option(
        False,
        "Do not train the encoder and keep it in evaluation mode: less memory, faster steps.",
        group="Optimiser",
    )
    layer_decay: float | None = option(
        None,
        "Multiply the learning rate by this for each encoder layer below the last, e.g. 0.75 for a transformer.",
        group="Optimiser",
        above=0,
        at_most=1,
    )
    freeze_batch_norm: bool = option(
        False,
        "Do not update BatchNorm's running statistics; a step then does not depend on the number of processes.",
        group="Optimiser",
    )
    ema_decay: float | None = option(
        None,
        "Evaluate and save an exponential moving average of the weights with this decay, e.g. 0.999. Not needed for "
        "methods that save their teacher, which is such an average already.",
        group="Optimiser",
        at_least=0,
        below=1,
    )

    eval_steps: int | None = option(
        None,
        "Evaluate every so many steps; in any case at the end.",
        group="Evaluation",
        common=True,
        at_least=1,
    )
    eval_window: int | None = option(
        None,
        "Evaluate with sliding windows of this side instead of the whole image.",
        group="Evaluation",
        at_least=1,
    )
    eval_stride: int | None = option(
        None,
        "Distance of the sliding windows; by default two thirds of the window.",
        group="Evaluation",
        at_least=1,
    )
    eval_batch_size: int | None = option(
        None,
        "Images of equal size, or windows of one image, evaluated together; by default 4 on a GPU, and 1 on a CPU, "
        "where more are slower.",
        group="Evaluation",
        at_least=1,
        at_most=2**16,
    )
    save_steps: int | None = option(
        None, "Write a checkpoint every so many steps.", group="Saving", common=True, at_least=1
    )
    max_checkpoints: int = option(
        2, "Number of checkpoints kept; older ones are deleted.", group="Saving", at_least=1
    )
    logging_steps: int = option(
        10, "Log losses and learning rate every so many steps.", group="Evaluation", at_least=1
    )
    report_to: str = option(
        "none",
        "Experiment tracker of Accelerate: tensorboard, wandb, trackio, ..., all, or none.",
        group="Evaluation",
    )
    num_workers: int | None = option(
        None,
        "Processes that load and augment images; 0 loads in the training process. By default up to 4 per GPU, and 0 on "
        "a CPU, where training needs all cores.",
        group="Hardware",
        at_least=0,
        at_most=MOST_WORKERS,
    )
    stream_order: Literal["shards", "total"] = option(
        "shards",
        "With --streaming: each process reads its own shards of the stream, and the run depends on the number of "
        "processes (shards); or every process reads all of it, as it does where there are too few shards (total).",
        group="Hardware",
    )
    on_bad_sample: Literal["error", "skip"] = option(
        "error", "At an unreadable training image: stop, or skip and count it.", group="Reliability"
    )

    on_non_finite: Literal["stop", "skip"] = option(
        "stop",
        "At a loss or gradient that is NaN or infinite: stop, or skip that step (which reads back every step's loss).",
        group="Reliability",
    )
    max_skipped_steps: int = option(
        10,
        "Stop after more than this many skipped steps in a row.",
        group="Reliability",
        at_least=1,
        only_with="on_non_finite=skip",
    )
    ddp_timeout: int = option(
        1800,
        "Stop after waiting this many seconds for another process.",
        group="Reliability",
        at_least=1,
        at_most=10**7,
    )

    save_inference_only: bool = option(
        False,
        "Save the trained model without its correlation head: equal predictions, smaller files.",
        group="Saving",
    )
    push_to_hub: bool = option(
        False,
        "Publish the output folder on the Hub, with the token of `hf auth login` or HF_TOKEN.",
        group="Hub",
        common=True,
    )
    hub_model_id: str | None = option(
        None,
        "Repository to publish to, user/name; by default the output folder's name in your namespace.",
        group="Hub",
    )
    hub_private: bool = option(False, "Make a new repository private.", group="Hub")
    hub_revision: str | None = option(None, "Branch to publish to; it is created if missing.", group="Hub")
    hub_strategy: Literal["end", "every_save"] = option(
        "end",
        "Publish at the end only, or with every checkpoint as well.",
        group="Hub",
        only_with="push_to_hub",
    )
    hub_license: str | None = option(
        None,
        "Licence of the weights for the model card, as the Hub spells it: apache-2.0, cc-by-4.0, other, ...",
        group="Hub",
    )

    @property
    def unlabeled_batch(self) -> int:
        """Unlabelled images per process and forward pass."""
        if self.per_device_unlabeled_batch_size is None:
            return self.per_device_batch_size
        return self.per_device_unlabeled_batch_size

    @property
    def hub_repository(self) -> str:
        """The repository that the model is published to."""
        return self.hub_model_id or Path(self.output_dir).resolve().name

    def problems(self) -> list[str]:
        """Values out of range, then options that contradict each other."""
        problems = super().problems()
        if self.scale_min > self.scale_max:
            problems.append(f"--scale_max is {self.scale_max}, below --scale_min {self.scale_min}")
        if self.layer_decay is not None and self.freeze_encoder:
            problems.append("--layer_decay cannot be combined with --freeze_encoder")
        if (self.max_steps is None) == (self.num_epochs is None):
            found = "neither was" if self.max_steps is None else "both were"
            problems.append(f"give one of --max_steps and --num_epochs ({found} given)")
        if all(side is None or side >= 1 for side in (self.eval_window, self.eval_stride)):
            problems += inference_problems(self.eval_window, self.eval_stride, prefix="--eval_")
        if self.resume_from_checkpoint == "":
            problems.append(
                "--resume_from_checkpoint is empty; give 'latest' or the folder of a checkpoint, or leave it out"
            )
        if self.overwrite and self.resume_from_checkpoint:
            problems.append("--overwrite cannot be combined with --resume_from_checkpoint")
        trackers = ["none", "all", *(kind.value for kind in LoggerType if kind is not LoggerType.ALL)]
        if self.report_to not in trackers:
            problems.append(str(unknown_name("tracker in --report_to", self.report_to, trackers)).rstrip("."))
        return problems + self._hub_problems()

    def _hub_problems(self) -> list[str]:
        if not self.push_to_hub:
            names = ("hub_model_id", "hub_private", "hub_revision")
            return [f"--{name} needs --push_to_hub True" for name in names if getattr(self, name)]
        problems = []
        try:
            validate_repo_id(self.hub_repository)
        except HFValidationError as error:
            problems.append(f"--hub_model_id is {self.hub_repository!r}: {str(error).rstrip('.')}")
        if self.hub_strategy == "every_save" and not self.save_steps:
            problems.append("--hub_strategy every_save needs --save_steps")
        return problems
