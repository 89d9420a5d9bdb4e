"""Segment photos with a trained model: a mask and a picture to look at for each.

    python examples/predict.py photo.jpg --model outputs/run
    python examples/predict.py photos/ more/*.jpg --model user/model --output_dir masks --window 801

For each NAME.jpg it writes NAME_mask.png, whose pixel values are class ids (with a palette, so that it shows
in colour), and NAME_overlay.png, the photo under its classes with a legend of their shares.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from corrmatch_hf.data.images import read_photo
from corrmatch_hf.data.sources.folders import SUFFIXES
from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation import predict_probabilities
from corrmatch_hf.evaluation.optimize import PRECISIONS, optimize_for_inference
from corrmatch_hf.hub.push import load_saved
from corrmatch_hf.pictures import class_palette, mask_image, overlay


def main(args: list[str] | None = None) -> None:
    # Arguments
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="Photos, and folders of photos.")
    parser.add_argument("--model", required=True, help="Folder of a trained model, or its id on the Hub.")
    parser.add_argument(
        "--output_dir", default="predictions", help="Folder to write to (default: predictions)."
    )
    parser.add_argument(
        "--alpha", type=float, default=0.5, help="Opacity of the colours, 0 to 1 (default: 0.5)."
    )
    parser.add_argument("--window", type=int, help="Side of a sliding window in pixels, for large photos.")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="Of the model: bf16 is faster on GPUs and recent CPUs, fp16 on GPUs (default: float32).",
    )
    parser.add_argument(
        "--compile", action="store_true", help="Compile the model first, for many photos of one size."
    )
    arguments = parser.parse_args(args)
    paths = find_photos(arguments.images)

    # Model
    model, processor = load_saved(arguments.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = optimize_for_inference(
        model.to(device), dtype=PRECISIONS[arguments.precision], compile=arguments.compile
    )
    id2label = model.config.id2label
    palette = class_palette(id2label)

    # Prediction
    output = Path(arguments.output_dir)
    if output.is_file():
        raise InputError(f"--output_dir {output} is a file; name a folder.")
    output.mkdir(parents=True, exist_ok=True)
    unreadable = []
    for path, name in zip(paths, unique_names(paths), strict=True):
        try:
            photo = read_photo(str(path), str(path))
        except InputError as error:
            unreadable.append(str(error))
            continue
        pixel_values = processor(images=photo, return_tensors="pt")["pixel_values"].to(device)
        probabilities = predict_probabilities(model, pixel_values, window=arguments.window)
        if probabilities.shape[-2:] != (photo.height, photo.width):  # the processor resizes
            probabilities = torch.nn.functional.interpolate(
                probabilities, size=(photo.height, photo.width), mode="bilinear", align_corners=True
            )
        label_map = probabilities[0].argmax(0).cpu().numpy()
        mask, picture = output / f"{name}_mask.png", output / f"{name}_overlay.png"
        mask_image(label_map, palette).save(mask)
        overlay(photo, label_map, id2label, palette, arguments.alpha).save(picture)
        print(f"{path} -> {mask}, {picture}")
    if unreadable:
        raise InputError("\n".join(unreadable))


def find_photos(names: Iterable[str]) -> list[Path]:
    """The photos named, and those directly in the folders named, in order of name."""
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
            if not found:
                raise InputError(f"The folder {path} holds no picture ({', '.join(sorted(SUFFIXES))}).")
            paths += found
        elif path.is_file():
            paths.append(path)
        else:
            raise InputError(f"There is no image {path}: check its name.")
    return paths


def unique_names(paths: Iterable[Path]) -> list[str]:
    """The names without suffix; a second a.png beside a.jpg, or in another folder, becomes a_2."""
    names: list[str] = []
    for path in paths:
        name, number = path.stem, 1
        while name in names:
            number += 1
            name = f"{path.stem}_{number}"
        names.append(name)
    return names


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
