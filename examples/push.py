"""Publish a trained model on the Hub, in one commit.

    python examples/push.py outputs/run user/model

This is `corrmatch push` as a script.
"""

import sys

from corrmatch_hf.commands import run

if __name__ == "__main__":
    sys.exit(run("push"))
