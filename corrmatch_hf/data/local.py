"""A dataset of picture files on this machine: folders, and the lists that refer to them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import datasets
import pyarrow as pa

from corrmatch_hf.data.folders import Folder, Pair, match, pictures
from corrmatch_hf.data.partition import read_list
from corrmatch_hf.errors import InputError


class LocalSource:
    """The training, validation and unlabelled pictures below `root` or in folders named one by one."""

    def __init__(
        self,
        root: str | os.PathLike | None,
        train_images: str | None,
        train_masks: str | None,
        train_split: str,
        labeled_list: str | None,
    ):
        self.folder = None if root is None else Folder(root)
        if train_images is not None:
            self.pairs = match(train_images, train_masks, "--train_images, --train_masks")
        elif self.folder is not None and labeled_list is not None:
            self.pairs = self.folder.split(train_split) or []  # a list may name everything itself
        elif self.folder is not None:
            self.pairs = self.folder.require(train_split, "--train_split")
        else:
            self.pairs = []
        self.root = None if root is None else Path(root)

    def train(self) -> datasets.Dataset:
        """Columns image, label (None where there is no mask) and file."""
        return as_dataset(self.pairs)

    def by_list(
        self, labeled_list: str, unlabeled_list: str | None
    ) -> tuple[datasets.Dataset, datasets.Dataset | None]:
        """The images of the lists; without an unlabelled list, the rest of the training images."""
        known = {os.path.splitext(os.path.basename(pair.image))[0]: pair for pair in self.pairs}
        labeled = read_list(labeled_list, self._root_of(labeled_list), known, "--labeled_list")
        if unlabeled_list is not None:
            rest = read_list(
                unlabeled_list, self._root_of(unlabeled_list), known, "--unlabeled_list", masks=False
            )
        else:
            taken = set(_real_paths(labeled))
            places = zip(self.pairs, _real_paths(self.pairs), strict=True)
            rest = [pair for pair, place in places if place not in taken]
        return as_dataset(labeled), as_dataset(rest) if rest else None

    def unlabeled(self) -> datasets.Dataset | None:
        """The pictures of a folder called "unlabeled"."""
        pairs = self.folder.split("unlabeled") if self.folder is not None else None
        return as_dataset(pairs) if pairs else None

    def validation(self, split: str | None) -> datasets.Dataset | None:
        """The named split, else the usual ones: validation, then test."""
        if self.folder is None:
            if split is not None:
                raise InputError("--validation_split needs --data_dir, the folder that holds the split.")
            return None
        if split is not None:
            return with_masks(self.folder.require(split, "--validation_split"), f"the split {split!r}")
        pairs = self.folder.split("validation") or self.folder.split("test")
        return with_masks(pairs, "the validation split") if pairs else None

    def id2label_file(self) -> str | None:
        path = None if self.root is None else self.root / "id2label.json"
        return str(path) if path is not None and path.is_file() else None

    def _root_of(self, list_file: str) -> Path:
        return self.root if self.root is not None else Path(list_file).parent


def _real_paths(pairs: Iterable[Pair]) -> list[str]:
    """`os.path.realpath` of the images, which would look at every folder on the way, at the price of one look each."""
    folders: dict[str, str] = {}
    paths = []
    for pair in pairs:
        folder, name = os.path.split(pair.image)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        is_link = os.path.islink(pair.image)
        paths.append(os.path.realpath(pair.image) if is_link else os.path.join(folders[folder], name))
    return paths


def as_dataset(pairs: Iterable[Pair]) -> datasets.Dataset:
    """Paths -> a dataset with the columns image, label and file."""
    pairs = list(pairs)
    columns = {
        "image": [pair.image for pair in pairs],
        "label": [pair.mask for pair in pairs],
        "file": [pair.image for pair in pairs],
    }
    # `from_dict` would look at every path as a picture to be encoded.
    table = pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
    dataset = datasets.Dataset(table)
    return dataset.cast_column("image", datasets.Image()).cast_column("label", datasets.Image())


def with_masks(pairs: Iterable[Pair], what: str) -> datasets.Dataset:
    """Those of the pairs that have a mask, as a dataset."""
    pairs = [pair for pair in pairs if pair.mask is not None]
    if not pairs:
        raise InputError(f"No image of {what} has a mask, so nothing can be measured on it.")
    return as_dataset(pairs)


def picture_folder(folder: str, option: str) -> datasets.Dataset:
    """Every picture below a folder, without masks."""
    return as_dataset(Pair(path) for path in pictures(folder, option).values())
