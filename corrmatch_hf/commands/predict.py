"""`corrmatch predict`: photos -> masks and overlay pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from ..errors import InputError, check_writable_folder
from ..options import Options, option
from ..text import some
from . import COMMANDS
from .arguments import parse

DESCRIPTION = f"""{COMMANDS["predict"]}

For NAME.jpg it writes NAME_mask.png, whose pixel values are class ids (with a palette, so that viewers show colours),
and NAME_overlay.png, the photo under its classes with a legend.

--save_as also writes polygons that annotation tools open, into a folder with copies of the photos. After correcting
them, `corrmatch import` makes training data of that folder."""
EXAMPLES = """
corrmatch predict photo.jpg --model outputs/run
corrmatch predict photos/ more/*.jpg --model user/model --output_dir masks
corrmatch predict aerial.png --model user/model --window 801
corrmatch predict photos/ --model outputs/run --save_as labelme
"""


@dataclass
class PredictOptions(Options):
    """The photos, the model, and the output."""

    images: list[str] = option(MISSING, "Photos, and folders of photos.", positional=True, metavar="IMAGE")
    model: str = option(MISSING, "Folder of a trained model, or its id on the Hub.", metavar="MODEL")
    output_dir: str = option("predictions", "Folder to write to.", common=True, metavar="DIR")
    alpha: float = option(0.5, "Opacity of the colours, 0 to 1.", common=True, at_least=0, at_most=1)
    window: int | None = option(
        None, "Side of a sliding window in pixels, for large photos.", common=True, at_least=1
    )
    precision: Literal["float32", "bf16", "fp16"] = option(
        "float32",
        "Precision of the model: bf16 is faster on GPUs and recent CPUs, fp16 on GPUs.",
        common=True,
    )
    save_as: Literal["coco", "labelme"] | None = option(
        None,
        "Also write polygons for an annotation tool: coco for CVAT, Label Studio and others, to OUTPUT_DIR/coco; "
        "labelme to OUTPUT_DIR/labelme.",
        common=True,
    )
    compile: bool = option(False, "Compile the model first, for many photos of one size.", common=True)


def main(args: Sequence[str]) -> None:
    """Write a mask and an overlay for every photo; those that cannot be read are reported at the end."""
    (options,) = parse("predict", PredictOptions, args=args, description=DESCRIPTION, examples=EXAMPLES)
    paths = find_photos(options.images)
    output = Path(options.output_dir)
    check_writable_folder("--output_dir", output)

    # Heavy imports come after parsing, so that --help is fast.
    import torch

    from ..data.images import read_photo
    from ..evaluation.inference import best_device, predict_probabilities, refuse_not_finite
    from ..evaluation.optimize import PRECISIONS, optimize_for_inference
    from ..hub.load import load_saved
    from ..pictures import class_palette, mask_image, overlay

    model, processor = load_saved(options.model)
    device = best_device()
    model = optimize_for_inference(
        model.to(device), dtype=PRECISIONS[options.precision], compile=options.compile, in_place=True
    )
    id2label = model.config.id2label
    palette = class_palette(id2label, getattr(model.config, "label_colors", None))
    polygons = None
    if options.save_as is not None:
        from ..data.annotations.save import PolygonFolder

        polygons = PolygonFolder(output / options.save_as, options.save_as, id2label)
    output.mkdir(parents=True, exist_ok=True)
    unreadable = []
    for path, name in zip(paths, unique_names(paths), strict=True):
        try:
            photo = read_photo(str(path), str(path))
        except InputError as error:
            unreadable.append(str(error))
            continue
        pixel_values = processor(images=photo, return_tensors="pt")["pixel_values"].to(device)  # (1, 3, H, W)
        probabilities = predict_probabilities(model, pixel_values, window=options.window)  # (1, K, H, W)
        if probabilities.shape[-2:] != (photo.height, photo.width):  # the processor resizes
            probabilities = torch.nn.functional.interpolate(
                probabilities, size=(photo.height, photo.width), mode="bilinear", align_corners=True
            )
        highest, class_ids = probabilities[0].max(0)  # (H, W)
        refuse_not_finite(highest[None], [str(path)])
        label_map = class_ids.cpu().numpy()
        mask, picture = output / f"{name}_mask.png", output / f"{name}_overlay.png"
        mask_image(label_map, palette).save(mask)
        overlay(photo, label_map, id2label, palette, options.alpha).save(picture)
        if polygons is not None:
            polygons.add(path, name, label_map)
        print(f"{path} -> {mask}, {picture}")
    if polygons is not None:
        print(polygons.close())
    if unreadable:
        raise InputError("\n".join(unreadable))


def find_photos(names: Iterable[str]) -> list[Path]:
    """The photos named, and those directly in the folders named, in order of name."""
    from ..data.images import suffixes

    paths: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes() and p.is_file())
            written = ("_mask.png", "_overlay.png")  # by this command, perhaps to a folder below
            inner = (p for p in path.glob("*/*") if not p.name.endswith(written))
            deeper = sorted({p.parent for p in inner if p.suffix.lower() in suffixes()})
            if deeper and not found:
                raise InputError(
                    f"The folder {path} contains no picture itself, but folders below it do: name them instead, such "
                    f"as {deeper[0]}."
                )
            if deeper:
                print(
                    f"Note: photos in folders below {path} are not segmented; name these folders, too: "
                    f"{some(deeper, 3)}.",
                    file=sys.stderr,
                )
            if not found:
                raise InputError(f"The folder {path} contains no picture ({', '.join(sorted(suffixes()))}).")
            paths += found
        elif path.is_file():
            paths.append(path)
        else:
            raise InputError(f"There is no image {path}; check its name.")
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
