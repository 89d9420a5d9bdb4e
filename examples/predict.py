"""Segment photos with a trained model: a mask and an overlay picture for each.

    python examples/predict.py photo.jpg --model outputs/run

This is `corrmatch predict` as a script.
"""

import sys

from corrmatch_hf.commands import run

if __name__ == "__main__":
    sys.exit(run("predict"))
