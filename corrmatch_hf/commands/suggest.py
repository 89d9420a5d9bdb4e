"""`corrmatch suggest`: unlabelled photos -> those to label next, with prefilled polygons."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InputError, check_writable_folder
from ..options import LARGEST_SEED, Options, option
from . import COMMANDS
from .arguments import parse
from .predict import find_photos, unique_names

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ..evaluation.suggest import PhotoScores

DESCRIPTION = f"""{COMMANDS["suggest"]}

It ranks photos by how unsure the model is of their pixels and by the rare classes that it sees in them, and takes one
photo for each kind of scene, so that twenty frames of one scene are not chosen. Into --output_dir it writes

list.txt, the chosen photos, the most worthwhile first, as --labeled_list and --extra_unlabeled read them;

contact_sheet.jpg, each with its prediction and a map of where the model is unsure;

coco/ or labelme/, copies of the photos with the predicted polygons, to correct in the annotation tool. Afterwards,
`corrmatch import` makes training data of that folder.

It needs `pip install corrmatch-hf[quality]` (scikit-learn)."""
EXAMPLES = """
corrmatch suggest --model outputs/run --photos photos --count 20
corrmatch suggest --model outputs/run --photos photos --labeled labeled.txt
corrmatch suggest --model user/model --photos day1 day2 --save_as coco
"""


@dataclass
class SuggestOptions(Options):
    """The model, the photos, and how they are chosen."""

    model: str = option(MISSING, "Folder of a trained model, or its id on the Hub.", metavar="MODEL")
    photos: list[str] = option(MISSING, "Folders of photos, and photos.", metavar="FOLDER")
    count: int = option(20, "How many photos to choose.", common=True, at_least=1)
    labeled: str | None = option(
        None,
        "Photos that are labelled already, to be left out: a list file, or a folder of photos or masks of their names.",
        common=True,
        metavar="PATH",
    )
    output_dir: str = option("suggested", "Folder to write to.", common=True, metavar="DIR")
    save_as: Literal["labelme", "coco", "none"] = option(
        "labelme",
        "Polygons for an annotation tool: labelme; coco for CVAT, Label Studio and others; or none.",
        common=True,
    )
    measure: Literal["entropy", "margin"] = option(
        "entropy", "How unsure: the entropy of the classes, or the margin between the two most probable ones."
    )
    rare_power: float = option(
        0.5,
        "Pixels predicted as a rare class count more: weight (frequency of the most frequent class / its own)^POWER; "
        "0: all alike.",
        at_least=0,
        at_most=2,
    )
    scales: list[float] = option(
        default_factory=lambda: [1.0, 0.75],
        help="Image scales to average the predictions of; where they disagree, the model is unsure.",
        above=0,
        at_most=4,
    )
    flip: bool = option(True, "Also average with the mirrored image.")
    largest_side: int = option(
        1024, "Larger photos are shrunk to this length before they are ranked; polygons are not.", at_least=32
    )
    seed: int = option(0, "Seed of the clustering.", at_least=0, at_most=LARGEST_SEED)

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.scales:
            found.append("--scales is empty; give one or more positive factors, such as 1.0 0.75")
        return found


def main(args: Sequence[str]) -> None:
    """Rank the photos, write list, contact sheet and polygons; photos that cannot be read are told at the end."""
    (options,) = parse("suggest", SuggestOptions, args=args, description=DESCRIPTION, examples=EXAMPLES)
    output = Path(options.output_dir)
    check_writable_folder("--output_dir", output)
    photos = find_photos(options.photos)
    photos = list({photo.resolve(): photo for photo in photos}.values())  # a folder and one of its photos

    # Heavy imports come after parsing, so that --help is fast.
    from ..data.annotations.save import PolygonFolder
    from ..evaluation.suggest import choose, require_scikit_learn

    require_scikit_learn()
    labeled = labeled_photos(options.labeled, photos)
    if len(labeled) == len(photos):
        raise InputError(
            f"All {len(photos)} photos of --photos are labelled by --labeled {options.labeled}; give other photos."
        )
    looking = Looking(options)
    polygons = None
    if options.save_as != "none":  # refused now, not after an hour
        polygons = PolygonFolder(output / options.save_as, options.save_as, looking.model.config.id2label)
    candidates, scores, labeled_features = looking.rank(photos, labeled)
    if not candidates:
        raise InputError("\n".join(looking.unreadable))
    score = scores.score(options.rare_power)
    count = min(options.count, len(candidates))
    chosen = choose(score, scores.features, labeled_features, count, options.seed)

    output.mkdir(parents=True, exist_ok=True)
    rows = looking.write(output, [(candidates[i], score[i]) for i in chosen], polygons)
    print(
        f"{len(candidates)} photos looked at"
        + (f", {len(labeled)} labelled ones left out" if options.labeled else "")
        + (f"; --count {options.count} is more than there are" if options.count > count else "")
    )
    print("\n".join(rows))
    print(f"written: {output / LIST}, {output / SHEET}")
    if polygons is not None:
        print(polygons.close())
    if looking.unreadable:
        raise InputError("\n".join(looking.unreadable))


LIST, SHEET = "list.txt", "contact_sheet.jpg"


def labeled_photos(labeled: str | None, photos: Sequence[Path]) -> set[int]:
    """The numbers of the photos that --labeled names."""
    if labeled is None:
        return set()
    from ..data.images import suffixes
    from ..data.sources.lists import files_in_list
    from ..data.sources.pairing import pair

    path = Path(labeled)
    if path.is_dir():
        files = {
            str(p.relative_to(path).with_suffix("")): str(p)
            for p in sorted(path.rglob("*"))
            if p.suffix.lower() in suffixes() | {".npy"}
        }
        if not files:
            raise InputError(
                f"The folder {path} (--labeled) contains no picture; name the one with the masks."
            )
        masks = {Path(stem).name: file for stem, file in files.items()}
        by_stem: dict[str, list[int]] = {}
        for number, photo in enumerate(photos):
            by_stem.setdefault(photo.stem, []).append(number)
        pairs = pair({stem: stem for stem in by_stem}, masks).pairs
        found = {number for one in pairs if one.mask for number in by_stem[one.image]}
    else:
        found = files_in_list(path, [str(photo.absolute()) for photo in photos], "--labeled")
    if not found:
        print(f"Note: --labeled {labeled} names none of the photos; check it.", file=sys.stderr)
    return found


class Looking:
    """The model and what is asked of it.

    Attributes:
        unreadable: a sentence for each photo that cannot be read.
    """

    def __init__(self, options: SuggestOptions):
        from ..evaluation.inference import best_device
        from ..hub.load import load_saved

        self.options = options
        self.device = best_device()
        model, self.processor = load_saved(options.model)
        self.model = model.to(self.device)
        self.unreadable: list[str] = []

    def rank(self, photos: Sequence[Path], labeled: set[int]) -> tuple[list[Path], PhotoScores, Any]:
        """The readable photos to choose from, what is kept of them, and the features (M, C) of the labelled ones."""
        import numpy as np
        from tqdm.auto import tqdm

        from ..evaluation.suggest import PhotoScores, look_at, pooled_features

        o = self.options
        candidates, unsure, shares, features, known = [], [], [], [], []
        for number, path in enumerate(tqdm(photos, desc="suggest", unit="photo", disable=None)):
            if (photo := self.read(path)) is None:
                continue
            photo.thumbnail((o.largest_side, o.largest_side))
            pixel_values = self.prepared(photo)
            if number in labeled:
                known.append(pooled_features(self.model, pixel_values))
                continue
            sums, share = look_at(
                self.model, pixel_values, str(path), measure=o.measure, scales=o.scales, flip=o.flip
            )
            candidates.append(path)
            unsure.append(sums)
            shares.append(share)
            features.append(pooled_features(self.model, pixel_values))
        scores = PhotoScores(np.array(unsure), np.array(shares), np.array(features))
        return candidates, scores, np.array(known)

    def write(self, output: Path, chosen: Sequence[tuple[Path, float]], polygons: Any) -> list[str]:
        """Write list, contact sheet and polygons of the chosen photos with their scores; a printed row for each."""
        from ..evaluation.inference import predict_probabilities
        from ..evaluation.suggest import enlarged_label_map, uncertainty_map
        from ..pictures import class_palette
        from ..pictures.contact_sheet import SheetRow, contact_sheet, small_row
        from ..training.atomic_write import write_text

        rows, printed = [], []
        names = unique_names(path for path, _ in chosen)
        for rank, ((path, score), name) in enumerate(zip(chosen, names, strict=True), 1):
            photo = small = self.read(path)
            if max(photo.size) > self.options.largest_side:
                small = photo.copy()
                small.thumbnail((self.options.largest_side, self.options.largest_side))
            probabilities = predict_probabilities(
                self.model, self.prepared(small), scales=self.options.scales, flip=self.options.flip
            )  # (1, K, h, w)
            unsure, _ = uncertainty_map(probabilities, self.options.measure, str(path))
            label_map = enlarged_label_map(probabilities, (photo.height, photo.width)).cpu().numpy()
            if polygons is not None:
                polygons.add(path, name, label_map)
            printed.append(f"{rank:>4}  {score:.3f}  {path}")
            rows.append(
                small_row(
                    SheetRow(photo, label_map, unsure.cpu().numpy(), f"{rank}. score {score:.3f}  {path}")
                )
            )
        write_text(output / LIST, "".join(f"{path.absolute()}\n" for path, _ in chosen))
        id2label = self.model.config.id2label
        palette = class_palette(id2label, getattr(self.model.config, "label_colors", None))
        contact_sheet(rows, id2label, palette).save(output / SHEET, quality=88)
        return printed

    def read(self, path: Path) -> Image.Image | None:
        from ..data.images import read_photo

        try:
            return read_photo(str(path), str(path))
        except InputError as error:
            self.unreadable.append(str(error))
            return None

    def prepared(self, photo: Image.Image) -> Tensor:
        """(1, 3, H, W), normalised."""
        return self.processor(images=photo, return_tensors="pt")["pixel_values"].to(self.device)
