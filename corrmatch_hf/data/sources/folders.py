"""Local folders of pictures, with images and masks matched by file name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa

from ...errors import InputError, unknown_name
from .lists import Pair, read_lines, read_list

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages")
MASK_FOLDERS = ("masks", "mask", "labels", "annotations", "SegmentationClass")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
    "unlabeled": ("unlabeled", "unlabelled"),
}


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
            self.pairs = self.folder.split(train_split) or []  # the list may name all images itself
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
        """The images of the lists; without an unlabelled list, the remaining training images are unlabelled."""
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
        """The pictures of a folder named "unlabeled"."""
        pairs = self.folder.split("unlabeled") if self.folder is not None else None
        return as_dataset(pairs) if pairs else None

    def validation(self, split: str | None) -> datasets.Dataset | None:
        """The split of this name, by default validation or test."""
        if self.folder is None:
            if split is not None:
                raise InputError("--validation_split needs --data_dir, the folder with the split.")
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
    """`os.path.realpath` of the images, resolving each folder only once."""
    folders: dict[str, str] = {}
    paths = []
    for pair in pairs:
        folder, name = os.path.split(pair.image)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        is_link = os.path.islink(pair.image)
        paths.append(os.path.realpath(pair.image) if is_link else os.path.join(folders[folder], name))
    return paths


class Folder:
    """A folder in one of the usual layouts.

    split/images + split/masks, images/split + masks/split, or images + masks (all of it the split "train"), with the
    names in IMAGE_FOLDERS and MASK_FOLDERS; and PASCAL VOC's JPEGImages + SegmentationClass, with the splits of
    ImageSets/Segmentation/*.txt if there are any.
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
        for child in _subfolders(self.root):
            if inner := first(child, IMAGE_FOLDERS):
                self._folders[child.name] = (inner, first(child, MASK_FOLDERS))
        if images and not self._folders:
            for child in _subfolders(images):
                if child.name in sum(SPLIT_NAMES.values(), ()):
                    other = masks / child.name if masks else None
                    self._folders[child.name] = (child, other if other and other.is_dir() else None)
        if images and not self._folders:
            self._folders["train"] = (images, masks)
            lists = self.root / "ImageSets" / "Segmentation"
            self._lists = {p.stem: p for p in sorted(lists.glob("*.txt"))} if lists.is_dir() else {}
        for name in SPLIT_NAMES["unlabeled"]:  # pictures directly in the folder of the split
            if (self.root / name).is_dir():
                self._folders.setdefault(name, (self.root / name, None))

    def splits(self) -> list[str]:
        return list(self._lists or self._folders)

    def split(self, name: str) -> list[Pair] | None:
        """The pairs of a split by its name or a usual alternative ("val" for "validation"); None if there is none."""
        name = next((n for n in (name, *SPLIT_NAMES.get(name, ())) if n in self.splits()), None)
        if name is None:
            return None
        if name in self._lists:
            everything = {Path(p.image).stem: p for p in self._pairs("train")}
            stems = []
            for line, text in read_lines(self._lists[name], "ImageSets"):
                for stem in text.split():
                    if stem not in everything:
                        raise InputError(
                            f"{self._lists[name]}, line {line}: there is no image named {stem!r}."
                        )
                    stems.append(stem)
            return [everything[stem] for stem in stems]
        return self._pairs(name)

    def require(self, name: str, option: str) -> list[Pair]:
        """The pairs of a split; the error lists the existing splits."""
        pairs = self.split(name)
        if pairs is None:
            if not self.splits():
                raise InputError(
                    f"{self.root} (--data_dir) contains no known layout of images: expected "
                    "train/images + train/masks, images + masks, or JPEGImages + SegmentationClass. Otherwise "
                    "give the folders as --train_images and --train_masks, or the pairs as "
                    "--labeled_list."
                )
            raise unknown_name(f"split ({option}) of {self.root}", name, self.splits())
        return pairs

    def _pairs(self, name: str) -> list[Pair]:
        images, masks = self._folders[name]
        return match(images, masks, "--data_dir")


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise InputError(f"The folder {folder} (--data_dir) cannot be read: {error.strerror}.") from error


def pictures(folder: str | os.PathLike, option: str) -> dict[str, str]:
    """All pictures below `folder`: {path without suffix, relative to the folder: path}, sorted.

    Links are followed, but no folder is entered twice. Raises InputError, naming the folder and the option, if the
    folder is missing, empty or unreadable, or if two pictures differ only in their suffix.
    """
    folder = str(Path(folder))
    if not os.path.isdir(folder):
        raise InputError(f"The folder {folder} ({option}) does not exist.")
    found: dict[str, str] = {}
    for parent, files in _walk(folder, option):
        inner = os.path.relpath(parent, folder).replace(os.sep, "/")
        inner = "" if inner == "." else f"{inner}/"
        for name in sorted(files):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in SUFFIXES or name.startswith("."):
                continue
            stem, path = inner + stem, os.path.join(parent, name)
            if stem in found:
                raise InputError(f"{found[stem]} and {path} ({option}) have the same name: keep one of them.")
            found[stem] = path
    if not found:
        raise InputError(
            f"The folder {folder} ({option}) contains no pictures ({', '.join(sorted(s[1:] for s in SUFFIXES))})."
        )
    for path in found.values():
        if not path.isascii() and not _is_text(path):
            raise InputError(f"The name of the picture {path!r} ({option}) is not UTF-8 text: rename it.")
    return dict(sorted(found.items()))


def _walk(folder: str, option: str) -> Iterator[tuple[str, list[str]]]:
    """`folder` and all folders below it that are not hidden, with the names of the files in each.

    Links are followed after all real folders, and no real folder is entered twice, so circular links end.
    """

    def refuse(error: OSError):
        raise InputError(f"The folder {error.filename} ({option}) cannot be read: {error.strerror}.")

    seen: set[str] = set()
    waiting = [folder]
    for start in waiting:  # grows while it is read
        for parent, folders, files in os.walk(start, onerror=refuse):
            real = os.path.realpath(parent)
            folders[:] = [] if real in seen else sorted(f for f in folders if not f.startswith("."))
            if real not in seen:
                seen.add(real)
                waiting += (path for f in folders if os.path.islink(path := os.path.join(parent, f)))
                yield parent, files


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # the system could not decode its bytes
        return False
    return True


def match(images: str | os.PathLike, masks: str | os.PathLike | None, option: str) -> list[Pair]:
    """The pictures of two folders, paired by name. Images without a mask are kept as unlabelled ones."""
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


def as_dataset(pairs: Iterable[Pair]) -> datasets.Dataset:
    """Paths -> a dataset with the columns image, label and file."""
    pairs = list(pairs)
    columns = {
        "image": [pair.image for pair in pairs],
        "label": [pair.mask for pair in pairs],
        "file": [pair.image for pair in pairs],
    }
    # `from_dict` would try to encode every path as a picture.
    table = pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
    dataset = datasets.Dataset(table)
    return dataset.cast_column("image", datasets.Image()).cast_column("label", datasets.Image())


def with_masks(pairs: Iterable[Pair], what: str) -> datasets.Dataset:
    """The pairs with a mask, as a dataset."""
    pairs = [pair for pair in pairs if pair.mask is not None]
    if not pairs:
        raise InputError(f"No image of {what} has a mask, so it cannot be used for evaluation.")
    return as_dataset(pairs)


def picture_folder(folder: str, option: str) -> datasets.Dataset:
    """All pictures below a folder, without masks."""
    return as_dataset(Pair(path) for path in pictures(folder, option).values())
