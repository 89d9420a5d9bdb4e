"""Publish a local folder of photos and masks as a dataset on the Hub.

    python examples/push_dataset.py photos user/name

This is `corrmatch push-dataset` as a script.
"""

import sys

from corrmatch_hf.commands import run

if __name__ == "__main__":
    sys.exit(run("push-dataset"))
