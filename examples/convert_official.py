"""Turn a checkpoint of the authors of CorrMatch or UniMatch (V1, V2) into a model of this package, or a model into one.

    python examples/convert_official.py corrmatch_resnet101.pth outputs/corrmatch --recipe pascal
    python examples/convert_official.py unimatch_resnet50.pth outputs/unimatch --recipe cityscapes
    python examples/convert_official.py unimatch_v2_base.pth outputs/v2 --recipe pascal --key model_ema
    python examples/convert_official.py own.pth outputs/own --output_stride 8 --id2label classes.json
    python examples/convert_official.py outputs/run run.pth                 # back: OUTPUT ends in .pth

Encoder, decoder, number of classes and correlation head are found in the checkpoint. Class names are not in it, nor is
the output stride of CorrMatch and UniMatch V1; --recipe gives those of the published ones: stride 8 for CorrMatch and
16 for UniMatch, whose first preprint alone used 8 and other dilations for Cityscapes.

UniMatch V2's files hold the student (--key model) and its moving average (--key model_ema), whose figures are the
published ones. On Cityscapes it sees windows of 798 pixels: --recipe cityscapes interpolates the position embeddings to
that size, as the authors' code does; their format has no place for such a model, so it cannot be converted back.

The weights keep their authors' licence.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

from transformers.utils import logging

from corrmatch_hf import CorrMatchForSegmentation, CorrMatchImageProcessor
from corrmatch_hf.errors import InputError
from corrmatch_hf.hub.push import load_saved
from corrmatch_hf.official.convert import from_official, official_decoder, save_official


class Recipe(NamedTuple):
    """classes: names, in the order of their ids. windows: side of the sliding window in evaluation, by decoder."""

    classes: list[str]
    windows: dict[str, int]


RECIPES = {
    "pascal": Recipe(
        [
            "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
            "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
        ],
        windows={},
    ),
    "cityscapes": Recipe(
        [
            "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
            "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
        ],
        windows={"deeplabv3plus": 801, "dpt": 798},
    ),
}  # fmt: skip


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "source", help="A checkpoint, or (to write one) a model's folder or its id on the Hub."
    )
    parser.add_argument("output", help="New folder for the model, or a new .pth file for its checkpoint.")
    parser.add_argument("--recipe", choices=list(RECIPES), help="What the checkpoint was trained on.")
    parser.add_argument(
        "--output_stride",
        type=int,
        choices=(8, 16, 32),
        help="The one it was trained with, where not as published.",
    )
    parser.add_argument(
        "--image_size",
        type=int,
        help="Of a UniMatch V2 checkpoint: side of the square images, a multiple of 14, of which its position "
        "embeddings are to be; by default 518, and 798 with --recipe cityscapes.",
    )
    parser.add_argument(
        "--id2label", metavar="FILE.json", help='Class names, {"0": "sky", ...} or ["sky", ...].'
    )
    parser.add_argument(
        "--key", help="Name of the weights in a checkpoint that holds several, such as model_ema."
    )
    parser.add_argument(
        "--data_parallel",
        action="store_true",
        help='Begin the names in the .pth with "module.", as on several GPUs.',
    )
    arguments = parser.parse_args(args)
    logging.disable_progress_bar()
    if Path(arguments.output).suffix in (".pth", ".pt"):
        to_checkpoint(arguments)
    else:
        to_model(arguments)


def to_model(arguments: argparse.Namespace) -> None:
    """A checkpoint to a folder as training writes it: weights, configuration, processor, code."""
    source, output = Path(arguments.source), Path(arguments.output)
    if source.is_dir():
        raise InputError(
            f"{source} is a folder: to write a checkpoint of its model, give OUTPUT a name with .pth."
        )
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise InputError(f"{output} exists and is not empty; nothing is overwritten: name a new folder.")
    if arguments.data_parallel:
        raise InputError("--data_parallel is for writing a checkpoint; reading one, that is found out.")
    if arguments.recipe and arguments.id2label:
        raise InputError("--recipe and --id2label both name the classes: give one of them.")
    decoder = official_decoder(source, key=arguments.key)
    if decoder == "deeplabv3plus" and not arguments.recipe and not arguments.output_stride:
        raise InputError(
            "The output stride is not in a checkpoint: give --recipe where it is a published one, else --output_stride."
        )
    recipe = RECIPES.get(arguments.recipe)
    id2label = dict(enumerate(recipe.classes)) if recipe else read_id2label(arguments.id2label)
    window = recipe.windows.get(decoder) if recipe else None
    image_size = arguments.image_size
    if image_size is None and decoder == "dpt":
        image_size = window

    model = from_official(
        source,
        key=arguments.key,
        output_stride=arguments.output_stride,
        image_size=image_size,
        id2label=id2label,
    )
    if any(weights.is_meta for weights in model.parameters()):
        raise InputError(
            f"{source} holds shapes of weights without their values: name a complete checkpoint."
        )
    model.save_pretrained(output)
    CorrMatchImageProcessor(ignore_index=model.config.ignore_index).save_pretrained(output)

    describe(model)
    option = f" --window {window}" if window else ""
    print(f"written to {output}; now")
    print(f"  python examples/predict.py photo.jpg --model {output}")
    print(f"  python examples/evaluate.py --model {output} --data_dir DATA{option}")
    print(f"  python examples/push.py {output} user/name")


def to_checkpoint(arguments: argparse.Namespace) -> None:
    """A model to a checkpoint that the authors' code reads."""
    output = Path(arguments.output)
    if Path(arguments.source).is_file():
        raise InputError(
            f"{arguments.source} is a file: name a model's folder or id to write a checkpoint, or a folder as OUTPUT "
            "to convert one."
        )
    if output.exists():
        raise InputError(f"{output} exists; nothing is overwritten: name a new file.")
    for option in ("recipe", "output_stride", "image_size", "id2label", "key"):
        if getattr(arguments, option) is not None:
            raise InputError(f"--{option} is for reading a checkpoint; {output} would be written.")
    model, _ = load_saved(arguments.source)
    if not isinstance(model, CorrMatchForSegmentation):
        raise InputError(f"{arguments.source} is a {type(model).__name__}, not a model of this package.")

    output.parent.mkdir(parents=True, exist_ok=True)
    save_official(model, output, data_parallel=arguments.data_parallel)
    describe(model)
    print(
        f"written to {output}; build the authors' network with this number of classes and these sizes to load it"
    )


def describe(model: CorrMatchForSegmentation) -> None:
    config = model.config
    names = list(config.id2label.values())
    shown = ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
    print(f"encoder           {config.encoder_name}")
    print(f"classes           {len(names)}: {shown}")
    print(f"decoder           {config.decoder}")
    print(f"correlation head  {'yes' if config.correlation_head else 'no'}")
    dilated = config.decoder == "deeplabv3plus"
    rates = f", with dilation rates {', '.join(map(str, config.aspp_rates))}" if dilated else ""
    print(f"output stride     {config.output_stride}{rates}")
    print(f"parameters        {sum(each.numel() for each in model.parameters()) / 1e6:.1f} million")


def read_id2label(path: str | None) -> dict[int, str] | None:
    if path is None:
        return None
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        return {
            int(i): str(name) for i, name in (value.items() if isinstance(value, dict) else enumerate(value))
        }
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f'--id2label {path} cannot be read as {{"0": "sky", ...}} or ["sky", ...]: {error}.'
        ) from error


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
