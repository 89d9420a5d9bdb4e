"""`corrmatch convert`: a checkpoint of the authors -> a model of this package, or back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import InputError, check_writable_file, check_writable_folder
from ..options import Options, option
from ..text import read_small_text
from . import COMMANDS
from .arguments import parse

if TYPE_CHECKING:
    from ..model import CorrMatchForSegmentation

DESCRIPTION = f"""{COMMANDS["convert"]} Encoder, decoder, number of classes and correlation head are detected. A
checkpoint contains neither class names nor the output stride of CorrMatch and UniMatch V1; --recipe gives those of the
published ones: stride 8 for CorrMatch and 16 for UniMatch (whose first preprint used 8 and other dilations for
Cityscapes).

Checkpoints of UniMatch V2 contain the student (--key model) and its moving average (--key model_ema); the published
figures are those of the average. On Cityscapes, it sees windows of 798 pixels: --recipe cityscapes interpolates
the position embeddings to that size, as the authors' code does. Such a model cannot be converted back.

The weights keep their authors' licence."""
EXAMPLES = """
corrmatch convert corrmatch_resnet101.pth outputs/corrmatch --recipe pascal
corrmatch convert unimatch_resnet50.pth outputs/unimatch --recipe cityscapes
corrmatch convert unimatch_v2.pth outputs/v2 --recipe pascal --key model_ema
corrmatch convert own.pth outputs/own --output_stride 8 --id2label names.json
corrmatch convert outputs/run run.pth          # back: OUTPUT ends in .pth
"""


@dataclass
class ConvertOptions(Options):
    """Source, output, and what a checkpoint does not contain."""

    source: str = option(
        MISSING,
        "A checkpoint; or, to write one, the folder of a model or its id on the Hub.",
        positional=True,
        metavar="SOURCE",
    )
    output: str = option(
        MISSING,
        "New folder for the model, or new .pth file for the checkpoint.",
        positional=True,
        metavar="OUTPUT",
    )
    recipe: Literal["pascal", "cityscapes"] | None = option(
        None, "Dataset that the published checkpoint was trained on.", common=True
    )
    output_stride: Literal[8, 16, 32] | None = option(
        None, "Output stride it was trained with, if not the published one.", common=True
    )
    image_size: int | None = option(
        None,
        "Of a UniMatch V2 checkpoint: side of the square images for its position embeddings, a multiple of 14; by "
        "default 518, and 798 with --recipe cityscapes.",
        common=True,
    )
    id2label: str | None = option(
        None,
        'JSON file with the class names, {"0": "sky", ...} or ["sky", ...].',
        common=True,
        metavar="FILE",
    )
    key: str | None = option(
        None, "Name of the weights in a checkpoint that contains several, such as model_ema.", common=True
    )
    data_parallel: bool = option(
        False, 'Write names that start with "module.", as from training on several GPUs.', common=True
    )


def main(args: Sequence[str]) -> None:
    """Convert in the direction that the name of OUTPUT asks for."""
    (options,) = parse("convert", ConvertOptions, args=args, description=DESCRIPTION, examples=EXAMPLES)
    from transformers.utils import logging

    logging.disable_progress_bar()
    if Path(options.output).suffix in (".pth", ".pt"):
        to_checkpoint(options)
    else:
        to_model(options)


def to_model(options: ConvertOptions) -> None:
    """A checkpoint to a folder as training writes it: weights, configuration, processor, code."""
    from ..model import CorrMatchImageProcessor
    from ..official.convert import from_official, official_decoder
    from ..official.published import PUBLISHED

    source, output = Path(options.source), Path(options.output)
    if source.is_dir():
        raise InputError(
            f"{source} is a folder; to write a checkpoint of its model, give OUTPUT a name that ends in .pth."
        )
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise InputError(f"{output} exists and is not empty; nothing is overwritten. Name a new folder.")
    check_writable_folder("OUTPUT", output)
    if options.data_parallel:
        raise InputError("--data_parallel is for writing a checkpoint; when reading one, this is detected.")
    if options.recipe and options.id2label:
        raise InputError("--recipe and --id2label both name the classes; give one of them.")
    decoder = official_decoder(source, key=options.key)
    if decoder == "deeplabv3plus" and not options.recipe and not options.output_stride:
        raise InputError(
            "The output stride is not in a checkpoint; give --recipe for a published one, else --output_stride."
        )
    published = PUBLISHED.get(options.recipe)
    id2label = dict(enumerate(published.classes)) if published else read_id2label(options.id2label)
    window = published.windows.get(decoder) if published else None
    image_size = options.image_size
    if image_size is None and decoder == "dpt":
        image_size = window

    model = from_official(
        source,
        key=options.key,
        output_stride=options.output_stride,
        image_size=image_size,
        id2label=id2label,
    )
    if any(weights.is_meta for weights in model.parameters()):
        raise InputError(f"{source} contains shapes of weights without values; name a complete checkpoint.")
    model.save_pretrained(output)
    CorrMatchImageProcessor(ignore_index=model.config.ignore_index).save_pretrained(output)

    describe(model)
    option = f" --window {window}" if window else ""
    print(f"written to {output}; next steps:")
    print(f"  corrmatch predict photo.jpg --model {output}")
    print(f"  corrmatch evaluate --model {output} --data_dir DATA{option}")
    print(f"  corrmatch push {output} user/name")


def to_checkpoint(options: ConvertOptions) -> None:
    """A model to a checkpoint that the authors' code reads."""
    from ..hub.load import load_saved
    from ..model import CorrMatchForSegmentation
    from ..official.convert import save_official

    output = Path(options.output)
    if Path(options.source).is_file():
        raise InputError(
            f"{options.source} is a file; to write a checkpoint, name the folder or id of a model, or to convert a "
            "checkpoint, name a folder as OUTPUT."
        )
    if output.exists():
        raise InputError(f"{output} exists; nothing is overwritten. Name a new file.")
    check_writable_file("OUTPUT", output)
    for name in ("recipe", "output_stride", "image_size", "id2label", "key"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name} is for reading a checkpoint, but {output} would be written.")
    model, _ = load_saved(options.source)
    if not isinstance(model, CorrMatchForSegmentation):
        raise InputError(f"{options.source} is a {type(model).__name__}, not a model of this package.")

    output.parent.mkdir(parents=True, exist_ok=True)
    save_official(model, output, data_parallel=options.data_parallel)
    describe(model)
    print(
        f"written to {output}; build the authors' network with this number of classes and these sizes to load it"
    )


def describe(model: CorrMatchForSegmentation) -> None:
    """Print encoder, classes, decoder and sizes."""
    config = model.config
    names = list(config.id2label.values())
    shown = ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
    print(f"encoder           {config.encoder_name}")
    print(f"classes           {len(names)}: {shown}")
    print(f"decoder           {config.decoder_type}")
    print(f"correlation head  {'yes' if config.correlation_head else 'no'}")
    dilated = config.decoder_type == "deeplabv3plus"
    rates = f", with dilation rates {', '.join(map(str, config.aspp_rates))}" if dilated else ""
    print(f"output stride     {config.output_stride}{rates}")
    print(f"parameters        {sum(each.numel() for each in model.parameters()) / 1e6:.1f} million")


def read_id2label(path: str | None) -> dict[int, str] | None:
    """The class names of a JSON file."""
    if path is None:
        return None
    try:
        value = json.loads(read_small_text(path))
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        return {int(i): str(name) for i, name in entries}
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f'--id2label {path} cannot be read as {{"0": "sky", ...}} or ["sky", ...]: {error}.'
        ) from error
