"""Train a segmentation model from a few labelled and many unlabelled images.

    accelerate launch examples/train_semi.py                                   # built-in synthetic data
    accelerate launch examples/train_semi.py --data_dir photos --labeled_fraction 0.1 --max_steps 5000
    accelerate launch examples/train_semi.py --config examples/configs/pascal.yaml --data_dir VOC2012 \
        --labeled_list splits/92/labeled.txt --unlabeled_list splits/92/unlabeled.txt
    python examples/train_semi.py --method supervised                          # the baseline, without a launcher
    torchrun --nproc_per_node 4 examples/train_semi.py --config my.yaml
    accelerate launch examples/train_semi.py --data_dir photos --push_to_hub True --hub_model_id user/model

Every option stands in `--help`, may stand in a YAML file (`--config`), and is recorded in the output folder.
"""

import dataclasses
import sys
from pathlib import Path

from accelerate.utils import set_seed
from transformers.utils import logging

from corrmatch_hf.commands.arguments import (
    DataArguments,
    MethodArguments,
    ModelArguments,
    launch_command,
    parse,
)
from corrmatch_hf.errors import InputError
from corrmatch_hf.training import (
    NonFiniteLossError,
    ProcessLostError,
    SaveError,
    SemiSupervisedTrainer,
    TrainingConfig,
    TrainingInterrupted,
)


def main() -> None:
    # Arguments
    synthetic = Path(__file__).parent / "configs" / "synthetic.yaml"
    method_args, data_args, model_args, config, method_class, options = parse(
        MethodArguments, DataArguments, ModelArguments, TrainingConfig,
        default_config=synthetic, description=__doc__,
    )  # fmt: skip
    logging.disable_progress_bar()  # transformers' bars for saving would break the training's
    set_seed(config.seed)

    # Dataset
    data = data_args.load()

    # Model and method
    model, processor = model_args.build(data, correlation_head=method_class.uses_correlation_head)
    method = method_class(model, options, seed=config.seed)

    # Training
    recipe = {**vars(method_args), **dataclasses.asdict(data_args), **dataclasses.asdict(model_args)}
    trainer = SemiSupervisedTrainer(method, data, config, processor, recipe, command=launch_command())
    result = trainer.train()
    if trainer.accelerator.is_main_process and "published" in result and result["published"] is None:
        sys.exit("error: the model is trained and saved, but not published; see above.")


if __name__ == "__main__":
    try:
        main()
    except TrainingInterrupted as stop:  # 130 after Ctrl-C, 143 after SIGTERM
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_status)
    except (InputError, NonFiniteLossError, ProcessLostError, SaveError) as error:
        sys.exit(f"error: {error}")
