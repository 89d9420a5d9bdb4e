"""`corrmatch train` on several devices: flags of `accelerate launch` among the options start Accelerate's launcher."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence

from ..errors import InputError
from .arguments import UsageError

# Flags that would replace the script or its arguments, which are ours.
NOT_OURS_TO_PASS = ("help", "module", "no_python", "training_script", "training_script_args")


def split_launcher_flags(args: Sequence[str], own: set[str]) -> tuple[list[str], list[str]]:
    """`args` -> (flags of `accelerate launch`, the rest). Options in `own` and those for help are never the launcher's.

    `--mixed_precision`, for example, is an option of both; it goes to the training alone, which is enough.
    """
    own = own | {"config", "help", "help_all"}
    if all(_name(arg) in own for arg in args if arg.startswith("--")):
        return [], list(args)
    from accelerate.commands.launch import launch_command_parser

    actions = {
        _name(flag): action
        for action in launch_command_parser()._actions
        if action.dest not in NOT_OURS_TO_PASS
        for flag in action.option_strings
        if flag.startswith("--")
    }
    flags, rest = [], []
    i = 0
    while i < len(args):
        arg = args[i]
        action = actions.get(_name(arg)) if arg.startswith("--") and _name(arg) not in own else None
        # A flag takes the next argument as its value, unless it is a switch or holds the value: --num_processes=2.
        count = 2 if action is not None and action.nargs is None and "=" not in arg else 1
        (rest if action is None else flags).extend(args[i : i + count])
        i += count
    return flags, rest


def launch(command: str, flags: Sequence[str], args: Sequence[str]) -> int:
    """Start `corrmatch COMMAND ARGS` in as many processes as `flags` ask for; the exit status.

    The first process that fails decides the status, and has printed the reason.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parser = launch_command_parser()
    parser.error = _usage_error
    options = parser.parse_args([*flags, "--module", "corrmatch_hf", command, *args])
    if options.cpu and (options.num_processes or 1) > 1:
        # Accelerate starts several processes on CPUs by MPI only; its launcher for GPUs works as well without GPUs.
        os.environ["ACCELERATE_USE_CPU"] = "true"
        options.cpu, options.multi_gpu = False, True
    os.environ["CORRMATCH_COMMAND"] = shlex.join(["corrmatch", command, *flags, *args])
    try:
        launch_command(options)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except subprocess.CalledProcessError as error:
        return error.returncode if error.returncode > 0 else 128 - error.returncode
    except SignalException as error:
        print(f"stopped by {error.sigval.name}", file=sys.stderr)
        return 128 + error.sigval
    except (ValueError, ConnectionError) as error:  # flags that exclude each other, a busy port
        raise InputError(f"accelerate launch: {error}") from error
    return 0


def _usage_error(message: str) -> None:
    raise UsageError(f"accelerate launch: {message}; see accelerate launch --help")


def _name(flag: str) -> str:
    return flag.split("=")[0].lstrip("-").replace("-", "_")
