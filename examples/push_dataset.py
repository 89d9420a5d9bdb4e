"""Publish a local folder of photos and masks as a dataset on the Hub.

    python examples/push_dataset.py photos user/name
    python examples/push_dataset.py photos user/name --id2label names.json --license cc-by-4.0 --private
    python examples/push_dataset.py VOC2012 user/name --id2label voc.json
    python examples/push_dataset.py photos user/name --label_colors colors.json       # masks in colours

The folder holds split/images + split/masks, images/split + masks/split, images + masks, or JPEGImages +
SegmentationClass; the splits are train, validation, test and unlabeled. Every picture is read before anything is
uploaded. Afterwards `train_semi.py --dataset_name user/name` needs no option that says what the masks mean. A
dataset that is there already is replaced, with its card. Photos go as they are, with what their camera wrote into them
(EXIF: the place, for instance). The token is the one of `hf auth login`, or HF_TOKEN.
"""

import argparse
import shlex
import sys
import tempfile

import datasets

from corrmatch_hf.errors import InputError
from corrmatch_hf.hub.dataset import check_repo_id, export_folder, push_dataset
from corrmatch_hf.hub.push import UploadError


def main(args: list[str] | None = None) -> None:
    # Arguments
    args = sys.argv[1:] if args is None else args
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("folder", help="Folder of photos and masks.")
    parser.add_argument("repo_id", help="user/name on the Hub; a name alone is taken in your namespace.")
    parser.add_argument("--private", action="store_true", help="Make a new repository private.")
    parser.add_argument("--revision", help="Branch to commit to, made if it does not exist.")
    parser.add_argument("--license", help="Licence of the data, as the Hub writes it, such as cc-by-4.0.")
    parser.add_argument(
        "--id2label",
        help='JSON file with the classes\' names, {"0": "road", ...}; by default id2label.json in the folder.',
    )
    parser.add_argument(
        "--label_colors", help="JSON file with the classes' colours [[r, g, b], ...] for RGB-coded masks."
    )
    parser.add_argument(
        "--reduce_labels", action="store_true", help="Mask value 0 means ignored, and classes start at 1."
    )
    parser.add_argument(
        "--ignore_index", type=int, default=255, help="Mask value of pixels that do not count (default: 255)."
    )
    arguments = parser.parse_args(args)
    check_repo_id(arguments.repo_id)
    datasets.disable_progress_bars()  # the upload has its own
    datasets.logging.set_verbosity_error()

    with tempfile.TemporaryDirectory() as aside:
        # Dataset
        data = export_folder(
            arguments.folder,
            aside,
            id2label=arguments.id2label,
            label_colors=arguments.label_colors,
            reduce_labels=arguments.reduce_labels,
            ignore_index=arguments.ignore_index,
        )
        for name, split in data.splits.items():
            print(f"{name}: {len(split)} images, {data.masks[name]} of them with a mask")
        names = ", ".join(data.id2label.values())
        print(f"{len(data.id2label)} classes: {names}; {data.rewritten} masks written anew")
        if data.left_out:
            print(f"left out, for datasets have no such splits: {', '.join(data.left_out)}")

        # Upload
        url = push_dataset(
            data.splits,
            arguments.repo_id,
            id2label=data.id2label,
            masks=data.masks,
            pixels=data.pixels,
            license=arguments.license,
            private=arguments.private,
            revision=arguments.revision,
            retry=shlex.join(["python", "examples/push_dataset.py", *args]),
        )
    print(f"published: {url}")


if __name__ == "__main__":
    try:
        main()
    except (InputError, UploadError) as error:
        sys.exit(f"error: {error}")
