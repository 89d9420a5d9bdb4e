"""Train a segmentation model from a few labelled and many unlabelled images.

    accelerate launch examples/train_semi.py                                   # built-in synthetic data
    accelerate launch examples/train_semi.py --data_dir photos --max_steps 5000
    accelerate launch examples/train_semi.py --config pascal --data_dir VOC2012 \
        --labeled_list splits/92/labeled.txt --unlabeled_list splits/92/unlabeled.txt
    python examples/train_semi.py --method supervised                          # the baseline, without a launcher
    torchrun --nproc_per_node 4 examples/train_semi.py --config my.yaml
    accelerate launch examples/train_semi.py --data_dir photos --push_to_hub --hub_model_id user/model

This is `corrmatch train` as a script: all options are in `--help-all`, can be set in a YAML file (`--config`), and are
recorded in the output folder. `own_method.py` shows the same in Python, with a method of your own.
"""

import sys

from corrmatch_hf.commands import run

if __name__ == "__main__":
    sys.exit(run("train"))
