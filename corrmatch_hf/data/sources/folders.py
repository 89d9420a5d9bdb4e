"""Local folders of pictures, with images and masks matched by file name."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow as pa

from ...errors import InputError, unknown_name
from ...text import some
from ..images import suffixes
from .lists import Pair, read_lines, read_list
from .pairing import Pairing, beside, pair

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "photos", "JPEGImages", "leftImg8bit")
MASK_FOLDERS = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "SegmentationClass", "SegmentationClassPNG",
    "gt", "gtFine", "groundtruth", "ground_truth", "segmentation", "segmentations", "masks_machine",
)  # fmt: skip
# Masks of the pictures in the folder "train" of the same parent: trainannot, train_labels ...
MASK_ENDINGS = ("annot", "_annot", "_labels", "_label", "_masks", "_mask", "_gt", "masks", "labels")
SPLIT_NAMES = {  # CVAT calls its only split "default", Supervisely "ds0", and COCO adds the year: train2017
    "train": ("train", "training", "default", "ds0"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
    "unlabeled": ("unlabeled", "unlabelled"),
}
# Suffixes of pictures that Pillow may not read: their files are counted, not passed over.
OTHER_PICTURES = {
    ".heic", ".heif", ".jxl", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".psd", ".svg", ".exr",
    ".hdr", ".npy", ".npz", ".mat", ".dcm", ".nii", ".pdf", ".eps", ".jp2", ".j2k", ".avif", ".tga", ".webp", ".ico",
}  # fmt: skip
CLASS_FILES = ("id2label.json", "labelmap.txt", "_classes.csv")
SHOWN = 3  # files in a message
ALLOWED_SHARE = 0.05  # of the files of a folder that may be unused


class EmptyFolderError(InputError):
    """A folder without a single picture."""


class LocalSource:
    """The training, validation and unlabelled pictures below `root` or in folders named one by one.

    `notes` tells how names were paired and which files are not used.
    """

    def __init__(
        self,
        root: str | os.PathLike | None,
        train_images: str | None,
        train_masks: str | None,
        train_split: str,
        labeled_list: str | None,
        allow_unused: bool = False,
    ):
        self.notes: list[str] = []
        self.allow_unused, self.train_split = allow_unused, train_split
        self.folder = None if root is None else Folder(root)
        if train_images is not None:
            self.pairs = self._used(match(train_images, train_masks, "--train_images, --train_masks"))
        elif self.folder is not None and labeled_list is not None:
            # The list may name all images itself.
            self.pairs = self._used(self.folder.split(train_split)) or []
        elif self.folder is not None:
            self.pairs = self._used(self.folder.require(train_split, "--train_split"))
        else:
            self.pairs = []
        self.root = None if root is None else Path(root)

    def train(self) -> datasets.Dataset:
        """Columns image, label (None where there is no mask) and file."""
        return as_dataset(self.pairs)

    def by_list(
        self, labeled_list: str, unlabeled_list: str | None, diagnose: bool = False
    ) -> tuple[datasets.Dataset, datasets.Dataset | None]:
        """The images of the lists; without an unlabelled list, the remaining training images are unlabelled.

        `diagnose`: read the masks of the unlabelled list, too, where there are any.
        """
        known = _by_name(self.pairs)
        labeled = read_list(labeled_list, self._root_of(labeled_list), known, "--labeled_list")
        if unlabeled_list is not None:
            root, masks = self._root_of(unlabeled_list), None if diagnose else False
            rest = read_list(unlabeled_list, root, known, "--unlabeled_list", masks)
        else:
            taken = set(_real_paths(labeled))
            places = zip(self.pairs, _real_paths(self.pairs), strict=True)
            rest = [pair for pair, place in places if place not in taken]
        return as_dataset(labeled), as_dataset(rest) if rest else None

    def unlabeled(self) -> datasets.Dataset | None:
        """The pictures of a folder named "unlabeled"."""
        pairs = self._used(self._unless_empty("unlabeled")) if self.folder is not None else None
        return as_dataset(pairs) if pairs else None

    def _unless_empty(self, split: str) -> Matched | None:
        """A split that nobody named: without a single picture, it is told and left out."""
        try:
            return self.folder.split(split)
        except EmptyFolderError as error:
            self.notes.append(f"The split {split!r} is left out: {error}")
            return None

    def validation(self, split: str | None) -> datasets.Dataset | None:
        """The split of this name, by default validation or test."""
        if self.folder is None:
            if split is not None:
                raise InputError("--validation_split needs --data_dir, the folder with the split.")
            return None
        if split is not None:
            found = self.folder.require(split, "--validation_split")
            return with_masks(found, f"the split {split!r}", self.notes, self.allow_unused)
        for name in ("validation", "test"):
            if (found := self._unless_empty(name)) is None:
                continue
            if any(pair.mask for pair in found.pairs):
                return with_masks(found, f"the {name} split", self.notes, self.allow_unused)
            self.notes.append(f"The split {name!r} is left out: none of its photos has a mask.")
        others = [
            name for name in self.folder.splits() if split_kind(name) is None and name != self.train_split
        ]
        if others:
            self.notes.append(unused_splits(others, str(self.folder.root)))
        return None

    def class_file(self) -> str | None:
        """The file in the folder that names the classes."""
        if self.folder is None:
            return None
        places = [self.folder.root, *self.folder.photo_folders()]
        found = (place / name for name in CLASS_FILES for place in places)
        return next((str(path) for path in found if path.is_file()), None)

    def _used(self, found: Matched | None) -> list[Pair] | None:
        return None if found is None else used(found, self.notes, self.allow_unused)

    def _root_of(self, list_file: str) -> Path:
        return self.root if self.root is not None else Path(list_file).parent


def _by_name(pairs: Iterable[Pair]) -> dict[str, Pair]:
    """Pairs by the path of the photo, and by its bare name with and without suffix if no other photo has it."""
    known: dict[str, Pair | None] = {}
    for found in pairs:
        known[os.path.normpath(found.image)] = found
        name = os.path.basename(found.image)
        for key in {name, os.path.splitext(name)[0]}:
            known[key] = None if key in known else found
    return {name: found for name, found in known.items() if found is not None}


def _real_paths(pairs: Iterable[Pair]) -> list[str]:
    """`os.path.realpath` of the images, resolving each folder only once."""
    folders: dict[str, str] = {}
    paths = []
    for found in pairs:
        folder, name = os.path.split(found.image)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        is_link = os.path.islink(found.image)
        paths.append(os.path.realpath(found.image) if is_link else os.path.join(folders[folder], name))
    return paths


class Matched(NamedTuple):
    """The pairs of a split, and what of its folders is not among them."""

    pairs: list[Pair]
    notes: list[str]
    unused: dict[str, list[str]]  # reason -> files
    total: int  # files in the folders
    place: str  # the folders


def used(found: Matched, notes: list[str], allow_unused: bool) -> list[Pair]:
    """The pairs; what is to be told about them is added to `notes`.

    Raises InputError if more than a few files fit nothing, unless `allow_unused`.
    """
    told = list(found.notes)
    for reason, files in found.unused.items():
        told.append(
            f"{len(files)} of the {found.total} files of {found.place} {'are' if len(files) > 1 else 'is'} not used, "
            f"since {reason}: {some(map(os.path.basename, files), SHOWN)}."
        )
    unused = sum(len(files) for files in found.unused.values())
    if unused > max(1, ALLOWED_SHARE * found.total) and not allow_unused:
        raise InputError(
            f"{' '.join(told)} Rename or remove them, or go on without them by --allow_unused_files."
        )
    notes += [note for note in told if note not in notes]
    return found.pairs


def with_masks(found: Matched, what: str, notes: list[str], allow_unused: bool) -> datasets.Dataset:
    """The pairs with a mask, as a dataset; photos without one count as unused files."""
    without = [pair.image for pair in found.pairs if pair.mask is None]
    pairs = [pair for pair in found.pairs if pair.mask is not None]
    if not pairs:
        raise InputError(f"No image of {what} has a mask, so it cannot be used for evaluation.")
    unused = found.unused | ({"no mask has their name": without} if without else {})
    return as_dataset(used(found._replace(pairs=pairs, unused=unused), notes, allow_unused))


class Folder:
    """A folder in one of the usual layouts, with the names in IMAGE_FOLDERS, MASK_FOLDERS and SPLIT_NAMES.

    split/images + split/masks; images/split + masks/split; images + masks (all of it the split "train"); PASCAL VOC's
    JPEGImages + SegmentationClass, with the splits of ImageSets/Segmentation/*.txt if there are any; split +
    annotations/split, or splitannot, or the masks beside the photos in `split`; or everything in one folder.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"The folder {self.root} (--data_dir) does not exist.")
        self._folders: dict[
            str, tuple[Path, Path | None]
        ] = {}  # the same folder twice: masks beside the photos
        self._lists: dict[str, Path] = {}
        self._find()

    def _find(self) -> None:
        root = self.root
        children = _subfolders(root)
        images, masks = _first(root, IMAGE_FOLDERS), _first(root, MASK_FOLDERS)
        for child in children:
            if (inner := _first(child, IMAGE_FOLDERS)) and child not in (images, masks):
                self._folders[child.name] = (inner, _first(child, MASK_FOLDERS))
        if images and not self._folders:
            for child in _subfolders(images):
                if split_kind(child.name):
                    other = masks / child.name if masks else None
                    self._folders[child.name] = (child, other if other and other.is_dir() else None)
        if images and not self._folders:
            self._folders["train"] = (images, masks)
            lists = root / "ImageSets" / "Segmentation"
            self._lists = {p.stem: p for p in sorted(lists.glob("*.txt"))} if lists.is_dir() else {}
        if not self._folders:
            for child in children:
                if split_kind(child.name) and _files(child, "--data_dir").pictures:
                    self._folders[child.name] = (child, self._masks_of(child, masks))
        if not self._folders and _files(root, "--data_dir", deep=False).pictures:
            self._folders["train"] = (root, root)
        for name in SPLIT_NAMES["unlabeled"]:  # pictures directly in the folder of the split
            if (root / name).is_dir():
                self._folders.setdefault(name, (root / name, None))

    def _masks_of(self, child: Path, masks: Path | None) -> Path | None:
        """The folder with the masks of a split whose pictures lie directly in `child`."""
        if split_kind(child.name) == "unlabeled":
            return None
        named = [child.with_name(child.name + ending) for ending in MASK_ENDINGS]
        inner = [masks / child.name] if masks else []
        return next((place for place in (*inner, *named) if place.is_dir()), child)

    def splits(self) -> list[str]:
        return list(self._lists or self._folders)

    def has_masks(self) -> bool:
        """Whether a folder of masks lies beside a folder of photos."""
        return any(masks not in (None, images) for images, masks in self._folders.values())

    def photo_folders(self) -> list[Path]:
        return [images for images, _ in self._folders.values()]

    def split(self, name: str) -> Matched | None:
        """A split by its name or a usual alternative ("val" for "validation"); None if there is none."""
        splits = self.splits()
        wanted = (name, *SPLIT_NAMES.get(name, ()))
        name = next((n for plain in wanted for n in splits if plain in (n, _plain(n))), None)
        if name is None:
            return None
        if name not in self._lists:
            return self._match(name)
        found = self._match("train")
        images, _ = self._folders["train"]
        everything = {Path(pair.image).stem: pair for pair in found.pairs}
        everything |= {
            Path(pair.image).relative_to(images).with_suffix("").as_posix(): pair for pair in found.pairs
        }
        stems = []
        for line, text in read_lines(self._lists[name], "ImageSets"):
            for entry in [text] if text in everything else text.split():
                stem = entry.replace("\\", "/")
                if stem not in everything:
                    raise InputError(f"{self._lists[name]}, line {line}: there is no image named {entry!r}.")
                stems.append(stem)
        return found._replace(pairs=[everything[stem] for stem in stems])

    def require(self, name: str, option: str) -> Matched:
        """The pairs of a split; the error lists the existing splits."""
        found = self.split(name)
        if found is None:
            if not self.splits():
                raise self._unknown_layout()
            raise unknown_name(f"split ({option}) of {self.root}", name, self.splits())
        if not any(pair.mask for pair in found.pairs):
            self._refuse_annotations()
            self._refuse_outer_folder()
        return found

    def _refuse_annotations(self) -> None:
        """Raise InputError if the folder is the export of an annotation tool, with the command that reads it."""
        from ..annotations import detect

        if (tool := detect(self.root)) is not None:
            place = shlex.quote(str(self.root.with_name(f"{self.root.resolve().name}_masks")))
            raise InputError(
                f"{self.root} (--data_dir) holds annotations in the format {tool!r}, not masks. Run: corrmatch import "
                f"{shlex.quote(str(self.root))} {place}, then give --data_dir {place}."
            )

    def _refuse_outer_folder(self) -> None:
        """Raise InputError if the images and masks lie one folder deeper."""
        for child in _subfolders(self.root):
            if split_kind(child.name) is None and Folder(child).has_masks():
                raise InputError(
                    f"{self.root} (--data_dir) has no masks itself, but the folder {child} in it has images and masks: "
                    f"give --data_dir {shlex.quote(str(child))}."
                )

    def _unknown_layout(self) -> InputError:
        self._refuse_annotations()
        self._refuse_outer_folder()
        return InputError(
            f"{self.root} (--data_dir) contains no known layout of images: expected "
            "train/images + train/masks, images + masks, or JPEGImages + SegmentationClass. Otherwise "
            "give the folders as --train_images and --train_masks, or the pairs as "
            "--labeled_list."
        )

    def _match(self, name: str) -> Matched:
        images, masks = self._folders[name]
        if images == masks:
            return _match_beside(images, deep=images != self.root)
        if masks is not None and not _files(masks, "--data_dir", arrays=True).pictures:
            self._refuse_annotations()  # YOLO's labels are text
        return match(images, masks, "--data_dir")


def unused_splits(names: list[str], place: str) -> str:
    """The note on splits of which nobody said what they are for, in data without a validation split."""
    return f"{place} has the splits {some(map(repr, names))}, too; evaluate on one of them with --validation_split."


def split_kind(name: str) -> str | None:
    """The usual name of a split ("validation" for "val2017"); None for a name that is none of a split."""
    return next((kind for kind, names in SPLIT_NAMES.items() if _plain(name) in names), None)


def _plain(name: str) -> str:
    """The name of a split without the year that COCO adds."""
    return re.sub(r"_?(19|20)\d\d$", "", name.lower())


def _first(parent: Path, names: tuple[str, ...]) -> Path | None:
    """The folder in `parent` with the first of these names, in small or capital letters."""
    found = {path.name.lower(): path for path in reversed(_subfolders(parent))}
    return next((found[name.lower()] for name in names if name.lower() in found), None)


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:  # knows folders without a look at every file
            found = [(folder / entry.name, entry.is_symlink() or entry.is_dir()) for entry in entries]
        return sorted(path for path, may_be in found if may_be and path.is_dir())  # a link may lead nowhere
    except OSError as error:
        raise InputError(f"The folder {folder} (--data_dir) cannot be read: {error.strerror}.") from error


class _Files(NamedTuple):
    """The files of a folder, as {path relative to it: path}, sorted."""

    pictures: dict[str, str]
    unreadable: dict[str, str]  # pictures of formats that cannot be read here


def _files(folder: str | os.PathLike, option: str, deep: bool = True, arrays: bool = False) -> _Files:
    """The pictures in a folder and, if `deep`, below it; with `arrays` .npy files, too.

    Links are followed, but no folder is entered twice. Raises InputError, naming the folder and the option, if it is
    missing or cannot be read.
    """
    folder = str(Path(folder))
    if not os.path.isdir(folder):
        raise InputError(f"The folder {folder} ({option}) does not exist.")
    readable = suffixes() | {".npy"} if arrays else suffixes()
    found = _Files({}, {})
    for parent, files in _walk(folder, option):
        inner = os.path.relpath(parent, folder).replace(os.sep, "/")
        inner = "" if inner == "." else f"{inner}/"
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith(".") or suffix not in readable | OTHER_PICTURES:
                continue
            kind = found.pictures if suffix in readable else found.unreadable
            kind[inner + name] = os.path.join(parent, name)
        if not deep:
            break
    for path in found.pictures.values():
        if not path.isascii() and not _is_text(path):
            raise InputError(_no_text(path, option))
    return _Files(dict(sorted(found.pictures.items())), dict(sorted(found.unreadable.items())))


def _photos(files: _Files, folder: str | os.PathLike, option: str) -> dict[str, str]:
    """{path without suffix, relative to the folder: path}; photos that differ in their suffix alone keep it."""
    _refuse_empty(files, folder, option)
    count = Counter(os.path.splitext(name)[0] for name in files.pictures)
    return {
        name if count[stem := os.path.splitext(name)[0]] > 1 else stem: path
        for name, path in files.pictures.items()
    }


def _masks(files: _Files, folder: str | os.PathLike, option: str) -> dict[str, str]:
    """The same for masks, of which no two may differ in their suffix alone."""
    _refuse_empty(files, folder, option)
    found: dict[str, str] = {}
    for name, path in files.pictures.items():
        stem = os.path.splitext(name)[0]
        if stem in found:
            raise InputError(f"{found[stem]} and {path} ({option}) have the same name: keep one of them.")
        found[stem] = path
    return found


def _refuse_empty(files: _Files, folder: str | os.PathLike, option: str) -> None:
    if not files.pictures:
        other = next(iter(files.unreadable.values()), None)
        instead = f"; {other} is in a format that cannot be read here" if other else ""
        raise EmptyFolderError(
            f"The folder {folder} ({option}) contains no pictures "
            f"({', '.join(sorted(s[1:] for s in suffixes()))}){instead}."
        )


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
                yield parent, sorted(files)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # the system could not decode its bytes
        return False
    return True


def _no_text(path: str, option: str) -> str:
    """Why a file name cannot be used: it is not UTF-8, or Python does not read names as UTF-8 here."""
    try:
        readable = os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        return f"The name of the picture {path!r} ({option}) is not UTF-8 text: rename it."
    return (
        f"The name of the picture {readable!r} ({option}) is UTF-8, but Python reads file names as "
        f"{sys.getfilesystemencoding()} here: set the environment variable PYTHONUTF8=1, or a UTF-8 locale "
        "(LC_ALL=C.UTF-8)."
    )


def match(images: str | os.PathLike, masks: str | os.PathLike | None, option: str) -> Matched:
    """The pictures of two folders, paired by name. Images without a mask are kept as unlabelled ones."""
    photos = _files(images, option)
    by_name = _photos(photos, images, option)
    unused = {UNREADABLE: list(photos.unreadable.values())}
    if masks is None:
        pairs = [Pair(path) for path in by_name.values()]
        return _matched(Pairing(pairs, [], []), unused, [photos], str(images))
    found = _files(masks, option, arrays=True)
    other = _masks(found, masks, option)
    pairing = pair(by_name, other)
    if not any(each.mask for each in pairing.pairs):
        raise InputError(
            f"No image in {images} has a mask of the same name in {masks} ({option}): an image is called "
            f"{next(iter(photos.pictures))!r}, a mask {next(iter(found.pictures))!r}. Give every mask the folder "
            "and the name of its photo, or list the pairs in a --labeled_list."
        )
    unused[UNREADABLE] += found.unreadable.values()
    return _matched(pairing, unused, [photos, found], f"{images} and {masks}")


def _match_beside(folder: Path, deep: bool) -> Matched:
    """The pictures of a folder that holds photos and their masks."""
    files = _files(folder, "--data_dir", deep, arrays=True)
    photos, masks = beside(files.pictures)
    pairing = pair(photos, masks)
    unused = {UNREADABLE: list(files.unreadable.values())}
    return _matched(pairing, unused, [files], str(folder))


def _matched(pairing: Pairing, unused: dict[str, list[str]], files: list[_Files], place: str) -> Matched:
    unused = {**unused, "no photo has their name": pairing.unused}
    total = sum(len(part.pictures) + len(part.unreadable) for part in files)
    return Matched(
        pairing.pairs, pairing.notes, {why: names for why, names in unused.items() if names}, total, place
    )


UNREADABLE = "this Pillow cannot read their format"


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
