"""The commands: `corrmatch NAME ...`, also `python -m corrmatch_hf NAME ...`. One file each; nothing heavy up here."""

from __future__ import annotations

import importlib
import keyword
import sys
from collections.abc import Sequence
from types import ModuleType

from ..errors import InputError, unknown_name

COMMANDS = {
    "train": "Train a segmentation model from a few labelled and many unlabelled images.",
    "evaluate": "Measure a trained model: mean IoU, accuracies, and the figures of every class.",
    "predict": "Segment photos with a trained model: a mask and an overlay picture for each.",
    "check": "Read a dataset before training on it: its contents, and everything that is wrong with it.",
    "import": "Turn the export of an annotation tool into a folder of photos and masks to train on.",
    "push": "Publish a trained model on the Hub, in one commit.",
    "push-dataset": "Publish a local folder of photos and masks as a dataset on the Hub.",
    "export": "Export a trained model to ONNX or torch.export, to run without this package.",
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
        130 after Ctrl-C, 143 after SIGTERM.
    """
    _print_any_text()
    module = f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")
    command = importlib.import_module(f".{module}", __name__)
    try:
        return 1 if command.main(sys.argv[1:] if args is None else args) is False else 0
    except SystemExit:  # as after --help, where looking up the errors below would take seconds
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except _expected(command) as error:
        status = getattr(error, "exit_status", 1)
        print(f"{'' if status > 128 else 'error: '}{error}", file=sys.stderr)
        return status


def _print_any_text() -> None:
    """Let the terminal show class and file names that its encoding lacks as escapes, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # notebooks and tests replace the streams
            stream.reconfigure(errors="backslashreplace")


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
