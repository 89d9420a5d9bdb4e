"""`corrmatch train`: options -> dataset, model, method, trainer."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from ..data.options import DataOptions
from ..errors import InputError, check_writable_folder
from ..training.config import TrainingConfig
from . import COMMANDS
from .arguments import MethodChoice, default_config, option_names, parse, typed_command
from .launch import launch, split_launcher_flags
from .model_options import ModelOptions

EXAMPLES = """
corrmatch train                                      # built-in synthetic data
corrmatch train --data_dir photos --max_steps 5000
corrmatch train --config pascal --data_dir VOC2012 \\
    --labeled_list 92/labeled.txt --unlabeled_list 92/unlabeled.txt
corrmatch train --method supervised                  # the baseline
corrmatch train --num_processes 4 --config my.yaml   # 4 GPUs, by Accelerate
corrmatch train --data_dir photos --push_to_hub --hub_model_id user/model
"""
PHOTOS_RECIPE = "photos"
GROUPS = (MethodChoice, DataOptions, ModelOptions, TrainingConfig)


def main(args: Sequence[str]) -> None:
    """Train; with flags of `accelerate launch` among `args`, in as many processes as they ask for."""
    flags, args = split_launcher_flags(args, option_names(*GROUPS))
    if flags:
        sys.exit(launch("train", flags, args))

    # Arguments
    choice, data_options, model_options, config, method_class, options = parse(
        "train",
        *GROUPS,
        args=args,
        default_recipe="synthetic",
        photos_recipe=PHOTOS_RECIPE,
        description=COMMANDS["train"],
        examples=EXAMPLES,
    )
    # Heavy imports come after parsing, so that --help is fast.
    from accelerate.utils import set_seed
    from transformers.utils import logging

    from ..data.load import load_semi_dataset
    from ..training.output_folder import check_output_folder
    from ..training.trainer import SemiSupervisedTrainer

    if not config.resume_from_checkpoint:
        check_writable_folder("--output_dir", config.output_dir)  # before a download
        check_output_folder(Path(config.output_dir), config.overwrite)
    logging.disable_progress_bar()  # the bars of transformers for saving would break that of the training
    set_seed(config.seed)

    # Dataset
    data = load_semi_dataset(data_options)

    # Model and method
    model, processor = model_options.build(
        data, correlation_head=method_class.needs_correlation_head(options)
    )
    method = method_class(model, options, seed=config.seed)

    # Training
    recipe = {
        name: value for part in (choice, data_options, model_options) for name, value in vars(part).items()
    }
    trainer = SemiSupervisedTrainer(
        method, data, config, processor, recipe, command=typed_command("train", args)
    )
    if trainer.accelerator.is_main_process:
        if default_config(args, None, PHOTOS_RECIPE):
            print(
                "recipe: photos (supervised first, then with unlabelled photos); --config paper is CorrMatch's"
            )
        for text in model_options.idle():
            warnings.warn(text, stacklevel=1)
    result = trainer.train()
    if trainer.accelerator.is_main_process and "published" in result and result["published"] is None:
        sys.exit("error: the model is trained and saved, but not published; see above.")


def errors() -> tuple[type[Exception], ...]:
    """What ends a training with one line instead of a traceback."""
    from .. import training

    return (
        InputError,
        training.EvaluationError,
        training.NonFiniteLossError,
        training.ProcessLostError,
        training.SaveError,
        training.TrainingInterrupted,
    )
