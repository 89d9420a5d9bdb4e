"""`corrmatch push-dataset`: a folder of photos and masks -> a dataset on the Hub."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import MISSING, dataclass

from ..options import Options, option
from . import COMMANDS
from .arguments import parse
from .push import errors

__all__ = ["errors", "main"]

DESCRIPTION = f"""{COMMANDS["push-dataset"]}

The folder contains split/images + split/masks, images/split + masks/split, images + masks, or JPEGImages +
SegmentationClass; the splits are train, validation, test and unlabeled. Every picture is read before anything is
uploaded. Afterwards, `corrmatch train --dataset_name user/name` needs no option about the meaning of the masks.

An existing dataset is replaced, with its card. What cameras wrote into photos (EXIF, such as the place) is left out;
their pixels stay as they are. The token is that of `hf auth login`, or HF_TOKEN."""
EXAMPLES = """
corrmatch push-dataset photos user/name
corrmatch push-dataset photos user/name --license cc-by-4.0 --private
corrmatch push-dataset VOC2012 user/name --id2label voc.json
corrmatch push-dataset photos user/name --label_colors colors.json
"""


@dataclass
class PushDatasetOptions(Options):
    """What is published, where, and what the masks mean."""

    folder: str = option(MISSING, "Folder of photos and masks.", positional=True, metavar="FOLDER")
    repo_id: str = option(
        MISSING,
        "user/name on the Hub; a name alone is taken in your namespace.",
        positional=True,
        metavar="REPO_ID",
    )
    private: bool = option(False, "Make a new repository private.", common=True)
    revision: str | None = option(None, "Branch to commit to, created if it does not exist.", common=True)
    license: str | None = option(
        None, "Licence of the data, as the Hub spells it, such as cc-by-4.0.", common=True
    )
    id2label: str | None = option(
        None,
        'JSON file with the class names, {"0": "road", ...}; by default id2label.json in the folder.',
        common=True,
        metavar="FILE",
    )
    label_colors: str | None = option(
        None,
        "JSON file with the class colours [[r, g, b], ...], for RGB-coded masks.",
        common=True,
        metavar="FILE",
    )
    reduce_labels: bool = option(
        False, "Mask value 0 is ignored and the classes start at 1 (ADE20K).", common=True
    )
    ignore_index: int | None = option(
        None,
        "Mask value of the pixels to ignore; by default 255.",
        common=True,
        at_least=-(2**31),
        at_most=2**31 - 1,
    )
    keep_metadata: bool = option(
        False, "Also publish what cameras wrote into the photos: EXIF, such as the place.", common=True
    )


def main(args: Sequence[str]) -> None:
    """Read the folder, publish it, and print its address."""
    (options,) = parse(
        "push-dataset", PushDatasetOptions, args=args, description=DESCRIPTION, examples=EXAMPLES
    )
    import datasets

    from ..hub.dataset import push_dataset
    from ..hub.dataset_export import export_folder
    from ..hub.upload import check_repo_id

    check_repo_id(options.repo_id)
    datasets.disable_progress_bars()  # the upload has its own
    datasets.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as aside:
        data = export_folder(
            options.folder,
            aside,
            id2label=options.id2label,
            label_colors=options.label_colors,
            reduce_labels=options.reduce_labels,
            ignore_index=options.ignore_index,
            keep_metadata=options.keep_metadata,
        )
        for name, split in data.splits.items():
            print(f"{name}: {len(split)} images, {data.masks[name]} of them with a mask")
        names = ", ".join(data.id2label.values())
        print(f"{len(data.id2label)} classes: {names}; {data.rewritten} masks written anew")
        if data.stripped:
            print(
                f"{data.stripped} photos without their metadata (EXIF and the like; --keep_metadata keeps it)"
            )
        if data.left_out:
            print(f"left out, since datasets have no such splits: {', '.join(data.left_out)}")
        url = push_dataset(
            data,
            options.repo_id,
            license=options.license,
            private=options.private,
            revision=options.revision,
            retry=shlex.join(["corrmatch", "push-dataset", *args]),
        )
    print(f"published: {url}")
