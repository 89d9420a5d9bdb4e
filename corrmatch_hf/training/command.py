"""The command line that started this process, for the record."""

from __future__ import annotations

import os
import shlex
import sys


def launch_command() -> str:
    """As it would be typed again. Flags of the launcher itself are not known to the script it starts."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        launcher = ["accelerate", "launch"]
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = ["torchrun", "--nproc_per_node", os.environ.get("LOCAL_WORLD_SIZE", "1")]
    else:
        launcher = ["python"]
    return shlex.join([*launcher, *sys.argv])
