"""Where the images come from, which of them are labelled, and what the masks mean: one declaration per option."""

from __future__ import annotations

from dataclasses import dataclass

from ..options import LARGEST_SEED, Options, option

SOURCES = (
    "dataset_name",
    "data_dir",
    "train_images",
    "labeled_list",
)  # any of them replaces the synthetic set

NOT_FOR_SYNTHETIC = (
    *SOURCES[1:], "labeled_fraction", "hold_out", "validation_images", "validation_list", "id2label", "num_labels",
    "label_colors",
)  # fmt: skip


@dataclass
class DataOptions(Options):
    """A dataset with few labels. Without `dataset_name`, `data_dir`, `train_images` or `labeled_list`, it is the
    built-in synthetic one."""

    dataset_name: str | None = option(
        None,
        "Hub id, or anything that `datasets.load_dataset` reads; 'synthetic' is the built-in set.",
        group="Data",
        metavar="NAME",
        common=True,
    )
    dataset_config_name: str | None = option(
        None, "Configuration of the Hub dataset.", group="Data", metavar="NAME"
    )
    dataset_revision: str | None = option(
        None, "Branch, tag or commit of the Hub dataset.", group="Data", metavar="NAME"
    )
    data_dir: str | None = option(
        None,
        "Local folder: train/images + train/masks, images/train + masks/train, or JPEGImages + SegmentationClass. "
        "Paths in the list files are relative to it.",
        group="Data",
        metavar="DIR",
        common=True,
    )
    train_images: str | None = option(
        None,
        "Folder of training images, for layouts that --data_dir does not know.",
        group="Data",
        metavar="DIR",
    )
    train_masks: str | None = option(
        None, "Folder of training masks, matched by file name to --train_images.", group="Data", metavar="DIR"
    )
    validation_images: str | None = option(None, "Folder of validation images.", group="Data", metavar="DIR")
    validation_masks: str | None = option(
        None,
        "Folder of validation masks, matched by file name to --validation_images.",
        group="Data",
        metavar="DIR",
    )
    labeled_fraction: float | None = option(
        None,
        "Fraction of the training images to use with their masks, such as 0.1; the rest is used without.",
        group="Data",
        common=True,
        above=0,
        at_most=1,
    )
    labeled_count: int | None = option(
        None,
        "Number of training images to use with their masks; the rest is used without.",
        group="Data",
        common=True,
        at_least=1,
    )
    labeled_list: str | None = option(
        None,
        "Text file that lists the labelled images, one per line: 'image mask' or 'image'.",
        group="Data",
        metavar="FILE",
        common=True,
    )
    unlabeled_list: str | None = option(
        None,
        "Text file that lists the unlabelled images in the same format; masks in it are not read.",
        group="Data",
        metavar="FILE",
        common=True,
    )
    validation_list: str | None = option(
        None, "Text file that lists the validation images in the same format.", group="Data", metavar="FILE"
    )
    hold_out: float | None = option(
        None,
        "Share of the labelled images that is kept out of training and evaluated on, where there are no validation "
        "images, such as 0.2.",
        group="Data",
        above=0,
        below=1,
    )
    split_seed: int = option(
        0,
        "Seed of the random choices of labelled images.",
        group="Data",
        at_least=0,
        at_most=LARGEST_SEED,
        only_with=("labeled_fraction", "labeled_count", "hold_out", "synthetic"),
    )
    extra_unlabeled: str | None = option(
        None,
        "Folder, list file or dataset with more images, used without masks.",
        group="Data",
        metavar="PATH",
        common=True,
    )
    diagnose_with_masks: bool = option(
        False,
        "Where unlabelled photos have masks: log how many of their pseudo-labels are right. Training never uses them.",
        group="Data",
    )
    streaming: bool = option(
        False, "Stream the unlabelled images instead of downloading and listing them first.", group="Data"
    )
    train_split: str = option("train", "Name of the training split.", group="Data", metavar="NAME")
    validation_split: str | None = option(
        None,
        "Name of the split to evaluate on; by default validation, val or test.",
        group="Data",
        metavar="NAME",
    )
    image_column: str | None = option(
        None,
        "Column with the images; detected from the column types by default.",
        group="Data",
        metavar="NAME",
    )
    label_column: str | None = option(
        None,
        "Column with the masks; detected from the column types by default.",
        group="Data",
        metavar="NAME",
    )
    id2label: str | None = option(
        None,
        'Names of the ids in the masks: a JSON file, or JSON such as \'{"7": "road", "26": "car", "0": null}\' (null: '
        "ignored); by default id2label.json of the dataset.",
        group="Data",
        metavar="JSON",
        common=True,
    )
    num_labels: int | None = option(
        None,
        "Number of classes, if no file names them; by default that of the ids in the masks.",
        group="Data",
        at_least=1,
        at_most=2**16,
    )
    reduce_labels: bool = option(
        False, "Mask value 0 is ignored and the classes start at 1 (ADE20K).", group="Data"
    )
    ignore_index: int | None = option(
        None,
        "Mask value of the pixels to ignore; by default 255, unless the masks hold 0 and 255 alone.",
        group="Data",
        at_least=-(2**31),
        at_most=2**31 - 1,
    )
    label_colors: str | None = option(
        None,
        "Class colours [[r, g, b], ...] of masks in colours: JSON, or a JSON file.",
        group="Data",
        metavar="JSON",
    )
    allow_unused_files: bool = option(
        False,
        "Go on although more than a few files of a folder of photos or masks fit nothing.",
        group="Data",
    )

    @property
    def synthetic(self) -> bool:
        """Whether the built-in synthetic dataset is used."""
        return self.dataset_name == "synthetic" or all(getattr(self, name) is None for name in SOURCES)

    def problems(self) -> list[str]:
        problems = super().problems()
        if sum(v is not None for v in (self.labeled_list, self.labeled_fraction, self.labeled_count)) > 1:
            problems.append(
                "--labeled_list, --labeled_fraction and --labeled_count exclude each other; give one"
            )
        if self.unlabeled_list is not None and self.labeled_list is None:
            problems.append("--unlabeled_list needs --labeled_list, the list of the images with masks")
        if self.train_masks is not None and self.train_images is None:
            problems.append("--train_masks needs --train_images, the folder with the images of these masks")
        if (self.validation_images is None) != (self.validation_masks is None):
            problems.append("--validation_images and --validation_masks must be given together")
        if self.diagnose_with_masks and self.streaming:
            problems.append(
                "--diagnose_with_masks cannot be combined with --streaming, which reads no masks; leave out one of them"
            )
        given = [name for name in NOT_FOR_SYNTHETIC if getattr(self, name) is not None]
        if self.synthetic and given:
            problems.append(
                f"the built-in synthetic dataset does not accept {', '.join(f'--{name}' for name in given)}; leave "
                "that out, or name a dataset with --dataset_name or --data_dir"
            )
        return problems
