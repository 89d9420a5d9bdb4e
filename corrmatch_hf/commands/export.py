"""`corrmatch export`: a trained model -> one ONNX or torch.export file."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from ..errors import InputError, check_writable_file
from ..options import Options, option
from . import COMMANDS
from .arguments import parse

DESCRIPTION = f"""{COMMANDS["export"]}

The file accepts images of any size (of one size for encoders such as BEiT). Before the command ends, the file is loaded
again and compared with the model. Its metadata hold class names and normalisation. ONNX needs
`pip install corrmatch-hf[onnx]`."""
EXAMPLES = """
corrmatch export --model outputs/run --output model.onnx
corrmatch export --model user/model --format torch --output model.pt2
"""


@dataclass
class ExportOptions(Options):
    """The model and the file."""

    model: str = option(MISSING, "Folder of a trained model, or its id on the Hub.", metavar="MODEL")
    format: Literal["onnx", "torch"] = option("onnx", "Kind of file.", common=True)
    output: str | None = option(
        None, "File to write; by default model.onnx, or model.pt2 for torch.", common=True, metavar="FILE"
    )


def main(args: Sequence[str]) -> None:
    """Write the file; print how far its results are from those of the model."""
    (options,) = parse("export", ExportOptions, args=args, description=DESCRIPTION, examples=EXAMPLES)
    if options.format == "torch" and options.output and not options.output.endswith(".pt2"):
        raise InputError(f"--output {options.output}: torch.export only reads files whose names end in .pt2.")
    output = Path(options.output or {"onnx": "model.onnx", "torch": "model.pt2"}[options.format])
    check_writable_file("--output", output, ".onnx", ".pt2")
    if options.format == "onnx":
        check_onnx()

    # Heavy imports come after parsing, so that --help is fast.
    from ..evaluation.export import export_model
    from ..hub.load import load_saved
    from ..model import CorrMatchForSegmentation

    model, processor = load_saved(options.model)
    if not isinstance(model, CorrMatchForSegmentation):
        raise InputError(f"{options.model} is a {type(model).__name__}; only CorrMatch models are exported.")
    for line in export_model(model, processor, output, options.format, name=options.model):
        print(line)
    print(f"written to {output} ({output.stat().st_size / 2**20:.1f} MiB)")


def check_onnx() -> None:
    """Raises InputError where a package that ONNX files need is missing."""
    missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(n) is None]
    if missing:
        raise InputError(f"{', '.join(missing)} cannot be imported; run: pip install corrmatch-hf[onnx]")
