"""Measure a trained model: mean IoU, accuracies, and the figures of every class.

    python examples/evaluate.py --model outputs/run --data_dir photos
    torchrun --nproc_per_node 4 examples/evaluate.py --model outputs/run --data_dir photos    # on 4 GPUs

This is `corrmatch evaluate` as a script.
"""

import sys

from corrmatch_hf.commands import run

if __name__ == "__main__":
    sys.exit(run("evaluate"))
