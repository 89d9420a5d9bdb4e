"""Read a dataset before training on it: its contents, and everything that is wrong with it.

    python examples/check_dataset.py --data_dir photos

This is `corrmatch check` as a script. The exit status is 1 if training would stop on the dataset.
"""

import sys

from corrmatch_hf.commands import run

if __name__ == "__main__":
    sys.exit(run("check"))
