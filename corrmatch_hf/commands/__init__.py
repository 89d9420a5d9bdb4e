"""The commands: `corrmatch NAME ...`, also `python -m corrmatch_hf NAME ...`. One file each; nothing heavy up here."""

from __future__ import annotations

import importlib
import keyword
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from types import ModuleType
from typing import Any, TextIO

from ..errors import InputError, describe_system_error, unknown_name
from ..text import visible

COMMANDS = {
    "train": "Train a segmentation model from a few labelled and many unlabelled images.",
    "evaluate": "Measure a trained model: mean IoU, accuracies, and the figures of every class.",
    "predict": "Segment photos with a trained model: a mask and an overlay picture for each.",
    "suggest": "Choose the photos to label next, and prepare them for an annotation tool.",
    "check": "Read a dataset before training on it: its contents, and everything that is wrong with it.",
    "import": "Turn the export of an annotation tool into a folder of photos and masks to train on.",
    "push": "Publish a trained model on the Hub, in one commit.",
    "push-dataset": "Publish a local folder of photos and masks as a dataset on the Hub.",
    "export": "Export a trained model to ONNX or torch.export, to run without this package.",
    "demo": "Make a page that runs a trained model in the browser, and publish it as a Space.",
    "convert": "Convert checkpoints of the authors of CorrMatch and UniMatch (V1, V2) to models and back.",
}


def main(args: Sequence[str] | None = None) -> int:
    """The exit status of `corrmatch ARGS`."""
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        from .. import __version__

        print(f"corrmatch {__version__}")
        return 0
    if args[0] not in COMMANDS:
        print(f"error: {unknown_name('command', args[0], COMMANDS)}", file=sys.stderr)
        return 2
    return run(args[0], args[1:])


def run(name: str, args: Sequence[str] | None = None) -> int:
    """Run one command and turn the errors that it expects into one line each.

    Returns:
        0; 1 after an error, or where `check` finds that training would stop; 2 where the arguments are incomplete;
        129 after SIGHUP, 130 after Ctrl-C, 143 after SIGTERM, 141 where the reader of the output has ended.
    """
    with _printing_any_text():
        return _run(name, args)


def _run(name: str, args: Sequence[str] | None) -> int:
    module = f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")
    command = importlib.import_module(f".{module}", __name__)
    try:
        return 1 if command.main(sys.argv[1:] if args is None else args) is False else 0
    except SystemExit:  # as after --help, where looking up the errors below would take seconds
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has ended, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left would fail at exit
        return 141  # as of a process that SIGPIPE ends
    except _expected(command) as error:
        status = getattr(error, "exit_status", 1)
        print(_printable(f"{'' if status > 128 else 'error: '}{error}"), file=sys.stderr)
        return status
    except OSError as error:
        if error.errno is None:  # not from the system, but from a library
            raise
        print(visible(f"error: {describe_system_error(error)}"), file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = (str(error).strip() or "out of memory").splitlines()[0].rstrip(".")
        print(f"error: not enough memory: {reason}; give smaller values.", file=sys.stderr)
        return 1


LONGEST_LINE = 2000  # of an error; a file that is not what it should be may be quoted in it


def _printable(text: str) -> str:
    lines = visible(text, keep="\n").split("\n")
    return "\n".join(
        line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 305]} ... {line[-300:]}"
        for line in lines
    )


def _is_out_of_memory(error: Exception) -> bool:
    """Python and NumPy have a class for it, torch one on GPUs and a sentence on CPUs."""
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return out_of_memory or "can't allocate memory" in str(error)


@contextmanager
def _printing_any_text() -> Iterator[None]:
    """Let the terminal show class and file names that its encoding lacks, or that would steer it, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # notebooks and tests replace the streams
            stream.reconfigure(errors="backslashreplace")
    with redirect_stdout(
        _Visible(sys.stdout)
    ):  # the standard error holds progress bars, which steer the terminal
        yield


class _Visible:
    """A text stream that writes `visible` text to another."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(visible(text, keep="\n\t\r"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _expected(command: ModuleType) -> tuple[type[Exception], ...]:
    """The errors of a command that are reported in one line; looked up when one occurs, to keep `--help` fast."""
    return command.errors() if hasattr(command, "errors") else (InputError,)


def _help() -> str:
    lines = [f"  {name:<14}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: corrmatch COMMAND [options]",
            "",
            "Semi-supervised semantic segmentation, as easy as any Hugging Face model.",
            "",
            "Commands:",
            *lines,
            "",
            "  corrmatch COMMAND --help    options of a command",
            "  corrmatch --version         version of the package",
        ]
    )
