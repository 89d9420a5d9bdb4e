"""`corrmatch import`: what an annotation tool exports -> a folder of photos and masks to train on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from ..data.annotations import FORMATS, detect
from ..errors import InputError, check_writable_folder
from ..options import LARGEST_SEED, Options, option
from . import COMMANDS
from .arguments import parse

DESCRIPTION = f"""{COMMANDS["import"]} The format is detected: COCO (also of Roboflow and CVAT), LabelMe, CVAT's XML
and segmentation masks, Roboflow's semantic masks, YOLO segmentation, Label Studio JSON, Supervisely, VIA.

Photos are copied unchanged to train/images, validation/images, test/images, or, without annotation, unlabeled/images;
masks are drawn to train/masks and so on. Where nothing is annotated is the class background, with id 0; with
--id2label, it is that file's background, or ignored where it names none. Crowds are ignored (255). What cannot be used
is counted, with its reason.

It needs pycocotools: `pip install corrmatch-hf[formats]`."""
EXAMPLES = """
corrmatch import export photos
corrmatch import labelme_folder photos --validation_fraction 0.2
corrmatch import export photos --format coco
corrmatch import corrected photos2 --id2label photos/id2label.json
"""


@dataclass
class ImportOptions(Options):
    """Source, destination, and the split."""

    source: str = option(
        MISSING, "Folder with the export: its annotations and photos.", positional=True, metavar="SOURCE"
    )
    destination: str = option(MISSING, "New folder.", positional=True, metavar="DESTINATION")
    format: (
        Literal[
            "coco",
            "labelme",
            "voc_masks",
            "roboflow_masks",
            "yolo",
            "cvat",
            "label_studio",
            "supervisely",
            "via",
        ]
        | None
    ) = option(None, "Format of the annotations; by default it is detected.", common=True)
    validation_fraction: float | None = option(
        None,
        "Share of the photos with masks to use for validation, at random; for exports without a validation split.",
        common=True,
        above=0,
        below=1,
    )
    id2label: str | None = option(
        None,
        "JSON file of class names, such as id2label.json of other photos: the masks get its numbers; by default, the "
        "classes are numbered as they are found.",
        common=True,
        metavar="FILE",
    )
    seed: int = option(
        0,
        "Seed of the choice of validation photos.",
        common=True,
        at_least=0,
        at_most=LARGEST_SEED,
        only_with="validation_fraction",
    )


def main(args: Sequence[str]) -> None:
    """Read the annotations, write the folder, and print its contents and the next command."""
    (options,) = parse("import", ImportOptions, args=args, description=DESCRIPTION, examples=EXAMPLES)
    source, destination = Path(options.source), Path(options.destination)
    name = options.format or _detected(source)

    from ..data.annotations.draw import IGNORED
    from ..data.annotations.folder import check_destination, write_folder
    from ..data.annotations.form import Files, Report, require_pycocotools
    from ..data.annotations.readers import READERS
    from ..data.classes import read_names

    check_destination(source, destination)
    check_writable_folder("DESTINATION", destination)
    require_pycocotools()
    given = read_names(options.id2label, IGNORED, ignored_given=True)
    print(f"{source}: {FORMATS[name]}")
    report, files = Report(), Files(source)
    annotations = READERS[name](files, report)
    written = write_folder(
        annotations, files, destination, report, options.validation_fraction, options.seed,
        None if given is None else given.names_in_masks,
    )  # fmt: skip
    for split, count in written.labeled.items():
        chosen = split == "validation" and options.validation_fraction is not None
        note = f", chosen at random (--seed {options.seed})" if chosen else ""
        print(f"{split}: {count} photos with masks{note}")
    print(f"unlabeled: {written.unlabeled} photos without annotation")
    names = ", ".join(f"{number} {label}" for number, label in written.id2label.items())
    also = "ignored (255)" if written.uncovered == IGNORED else written.uncovered
    print(f"{len(written.id2label)} classes: {names}; where nothing is annotated is {also}")
    if report.reasons:
        print("not used, or worth a look:", *report.lines(), sep="\n  ")
    print(f"written to {destination}")
    if not {"validation", "test"} & written.labeled.keys():
        print(
            "It has no validation photos; import into a new folder with --validation_fraction 0.2 to choose some."
        )
    command = ["corrmatch", "train", "--data_dir", str(destination)]
    if not written.unlabeled:
        print(
            "It has no unlabelled photos; name a folder of them as --extra_unlabeled, or train on the labels alone:"
        )
        command += ["--method", "supervised"]
    print(f"Next:\n  {shlex.join(command)}")


def _detected(source: Path) -> str:
    """The format of the folder, or an error that says what to give."""
    if source.is_file():
        remedy = (
            "unpack it first"
            if source.suffix.lower() in (".zip", ".tar", ".gz", ".tgz")
            else "give its folder"
        )
        raise InputError(f"{source} is a file; {remedy}.")
    if not source.is_dir():
        raise InputError(f"The folder {source} does not exist.")
    name = detect(source)
    if name is None:
        known = "\n".join(f"  {key:<15} {text}" for key, text in FORMATS.items())
        raise InputError(
            f"No annotations were recognised in {source}. Name their format as --format:\n{known}"
        )
    return name
