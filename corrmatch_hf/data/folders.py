"""Datasets that are folders of pictures on this machine, images and masks matched by the name of the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from corrmatch_hf.errors import InputError, unknown_name

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages")
MASK_FOLDERS = ("masks", "mask", "labels", "annotations", "SegmentationClass")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
    "unlabeled": ("unlabeled", "unlabelled"),
}


class Pair(NamedTuple):
    """An image and, where there is one, its mask: paths."""

    image: str
    mask: str | None = None


def pictures(folder: str | os.PathLike, option: str) -> dict[str, str]:
    """Every picture below `folder`: path without suffix, relative to the folder -> path; sorted.

    Raises InputError, naming the folder and the option, where it is missing or empty, or where two pictures
    differ only in suffix.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"The folder {folder} ({option}) does not exist.")
    found: dict[str, str] = {}
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if path.suffix.lower() not in SUFFIXES or name.startswith("."):
                continue
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in found:
                raise InputError(f"{found[stem]} and {path} ({option}) have the same name: keep one of them.")
            found[stem] = str(path)
    if not found:
        raise InputError(
            f"The folder {folder} ({option}) holds no picture ({', '.join(sorted(s[1:] for s in SUFFIXES))})."
        )
    return dict(sorted(found.items()))


def match(images: str | os.PathLike, masks: str | os.PathLike | None, option: str) -> list[Pair]:
    """The pictures of two folders, paired by name. An image without a mask stays, as an unlabelled one."""
    photos = pictures(images, option)
    if masks is None:
        return [Pair(path) for path in photos.values()]
    found = pictures(masks, option)
    if not photos.keys() & found.keys():
        raise InputError(
            f"No image in {images} has a mask of the same name in {masks} ({option}): an image is called "
            f"{Path(next(iter(photos.values()))).name!r}, a mask {Path(next(iter(found.values()))).name!r}."
        )
    return [Pair(path, found.get(stem)) for stem, path in photos.items()]


class Folder:
    """A folder in one of the layouts that people use; `splits()` names what it holds.

    split/images + split/masks, images/split + masks/split, or images + masks alone (all of it the split
    "train"), each with the names of IMAGE_FOLDERS and MASK_FOLDERS; and PASCAL VOC's JPEGImages +
    SegmentationClass, with the splits of ImageSets/Segmentation/*.txt where there are any.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"The folder {self.root} (--data_dir) does not exist.")
        self._folders: dict[str, tuple[Path, Path | None]] = {}
        self._lists: dict[str, Path] = {}
        self._find()

    def _find(self) -> None:
        def first(parent: Path, names: tuple[str, ...]) -> Path | None:
            return next((parent / n for n in names if (parent / n).is_dir()), None)

        images, masks = first(self.root, IMAGE_FOLDERS), first(self.root, MASK_FOLDERS)
        for child in sorted(p for p in self.root.iterdir() if p.is_dir()):
            if inner := first(child, IMAGE_FOLDERS):
                self._folders[child.name] = (inner, first(child, MASK_FOLDERS))
        if images and not self._folders:
            for child in sorted(p for p in images.iterdir() if p.is_dir()):
                if child.name in sum(SPLIT_NAMES.values(), ()):
                    other = masks / child.name if masks else None
                    self._folders[child.name] = (child, other if other and other.is_dir() else None)
        if images and not self._folders:
            self._folders["train"] = (images, masks)
            lists = self.root / "ImageSets" / "Segmentation"
            self._lists = {p.stem: p for p in sorted(lists.glob("*.txt"))} if lists.is_dir() else {}
        for name in SPLIT_NAMES["unlabeled"]:  # pictures without a folder "images" around them
            if (self.root / name).is_dir():
                self._folders.setdefault(name, (self.root / name, None))

    def splits(self) -> list[str]:
        return list(self._lists or self._folders)

    def split(self, name: str) -> list[Pair] | None:
        """The pairs of a split by its name or a usual other one ("val" for "validation"), or None."""
        name = next((n for n in (name, *SPLIT_NAMES.get(name, ())) if n in self.splits()), None)
        if name is None:
            return None
        if name in self._lists:
            everything = {Path(p.image).stem: p for p in self._pairs("train")}
            stems = self._lists[name].read_text().split()
            for line, stem in enumerate(stems, 1):
                if stem not in everything:
                    raise InputError(f"{self._lists[name]}, line {line}: there is no image named {stem!r}.")
            return [everything[stem] for stem in stems]
        return self._pairs(name)

    def require(self, name: str, option: str) -> list[Pair]:
        """The same, or the error that names the splits there are."""
        pairs = self.split(name)
        if pairs is None:
            if not self.splits():
                raise InputError(
                    f"{self.root} (--data_dir) holds no folder of images that is understood: expected "
                    "train/images + train/masks, images + masks, or JPEGImages + SegmentationClass; else "
                    "name the folders with --train_images and --train_masks, or the pairs with "
                    "--labeled_list."
                )
            raise unknown_name(f"split ({option}) of {self.root}", name, self.splits())
        return pairs

    def _pairs(self, name: str) -> list[Pair]:
        images, masks = self._folders[name]
        return match(images, masks, "--data_dir")
