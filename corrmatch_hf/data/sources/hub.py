"""Datasets of the Hub, and everything else that `datasets` reads, with uniform columns."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ...errors import InputError, unknown_name
from ...text import some
from ..semi_dataset import AnyDataset, reason_of, rows_of_stream, undecoded
from .folders import SPLIT_NAMES, Folder, split_kind, unused_splits
from .lists import rows_of_list

IMAGE_COLUMNS = ("image", "pixel_values", "img", "images", "photo", "picture")
LABEL_COLUMNS = (
    "label",
    "labels",
    "annotation",
    "annotations",
    "mask",
    "masks",
    "segmentation_mask",
    "semantic_mask",
    "segmentation",
    "label_map",
    "seg_map",
)
ARCHIVES = ("zip", "tar", "gzip", "bz2", "xz", "lz4", "zstd")
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class NoMasksError(InputError):
    """A split without a column of masks."""


class HubSource:
    """The splits of a dataset repository, a folder or a builder that `datasets` reads; loaded on demand.

    With `streaming`, unlabelled images are an IterableDataset and validation images are read into memory.
    """

    def __init__(
        self,
        name: str,
        *,
        config_name: str | None = None,
        revision: str | None = None,
        data_dir: str | None = None,
        train_split: str = "train",
        image_column: str | None = None,
        label_column: str | None = None,
        streaming: bool = False,
    ):
        self.name, self.revision = name, revision
        self.train_split, self.image_column, self.label_column = train_split, image_column, label_column
        self.streaming = streaming
        self.notes: list[str] = []  # which columns were taken
        self._empty: list[str] = []  # splits
        self._arguments = {"name": config_name, "revision": revision, "data_dir": data_dir}

    @cached_property
    def _splits(self) -> Mapping[str, AnyDataset]:
        if not is_saved_dataset(self.name):
            return self._load(streaming=self.streaming)
        with self._loading():
            loaded = self._saved_splits()
        return {k: v.to_iterable_dataset() for k, v in loaded.items()} if self.streaming else loaded

    def _saved_splits(self) -> dict[str, datasets.Dataset]:
        """What `save_to_disk` wrote, without splits that have no rows, which `datasets` cannot always load."""
        listed = Path(self.name, "dataset_dict.json")
        if not listed.is_file():
            return {self.train_split: datasets.load_from_disk(self.name)}
        splits = {}
        for split in json.loads(listed.read_text(encoding="utf-8"))["splits"]:
            state = json.loads(Path(self.name, split, "state.json").read_text(encoding="utf-8"))
            loaded = state["_data_files"] and datasets.load_from_disk(str(Path(self.name, split)))
            if loaded:
                splits[split] = loaded
            else:
                self._empty.append(split)
                self.notes.append(f"The split {split!r} of {self.name} has no rows and is left out.")
        return splits

    def train(self) -> datasets.Dataset:
        """Columns image, label (None where there is no mask) and file."""
        return _in_memory(self._split(self.train_split, "--train_split"))

    def first_labeled(self, count: int | None) -> tuple[datasets.Dataset, datasets.IterableDataset]:
        """The first `count` rows of the training stream, and the stream of the rows after them."""
        if count is None:
            raise InputError(
                "--streaming cannot find out which images of a stream have masks: give --labeled_count, or local "
                "labelled images with the stream as --extra_unlabeled."
            )
        stream = self._split(self.train_split, "--train_split")
        return _in_memory(stream.take(count)), stream.skip(count)

    def by_list(
        self, labeled_list: str, unlabeled_list: str | None, diagnose: bool = False
    ) -> tuple[datasets.Dataset, datasets.Dataset]:
        """The rows named by the lists; without an unlabelled list, the remaining rows are unlabelled."""
        if self.streaming:
            raise InputError("--labeled_list cannot be combined with --streaming: leave out one of them.")
        train = self.train()
        files = train["file"][:]
        labeled = rows_of_list(labeled_list, files, "--labeled_list")
        if unlabeled_list is not None:
            rest = rows_of_list(unlabeled_list, files, "--unlabeled_list")
        else:
            rest = sorted(set(range(len(files))) - set(labeled))
        return train.select(labeled), train.select(rest)

    def unlabeled(self) -> AnyDataset | None:
        """The split "unlabeled", if there is one."""
        found = next((n for n in ("unlabeled", "unlabelled") if n in self._splits), None)
        return None if found is None else self._split(found, "", label=False)

    def all_images(self) -> AnyDataset:
        """The images of the split "unlabeled", else of the only or the training split."""
        only = next(iter(self._splits)) if len(self._splits) == 1 else self.train_split
        return self.unlabeled() or self._split(only, "--extra_unlabeled", label=False)

    def validation(self, split: str | None) -> datasets.Dataset | None:
        """The split of this name, by default validation or test."""
        if split is not None:
            if (dataset := self._masked(split)) is None:
                raise InputError(
                    f"No image of the split {split!r} of {self.name} has a mask: name another split."
                )
            return dataset
        for split in (*SPLIT_NAMES["validation"], *SPLIT_NAMES["test"]):
            if split in self._splits:
                with suppress(NoMasksError):
                    if (dataset := self._masked(split)) is not None:
                        return dataset
                self.notes.append(f"The split {split!r} of {self.name} is left out: it has no masks.")
        if others := [name for name in self._splits if name != self.train_split and split_kind(name) is None]:
            self.notes.append(unused_splits(others, self.name))
        return None

    def _masked(self, split: str) -> datasets.Dataset | None:
        """The rows of a split that have a mask; None if there are none."""
        dataset = _in_memory(self._split(split, "--validation_split"))
        there = [row for row, given in enumerate(rows_with_label(dataset)) if given]
        if not there:
            return None
        return dataset if len(there) == len(dataset) else dataset.select(there)

    def class_file(self) -> str | None:
        """The local path of the repository's or folder's `id2label.json`, if it has one."""
        if self._folder is not None:
            path = Path(self._folder, "id2label.json")
            return str(path) if path.is_file() else None
        try:
            return hf_hub_download(self.name, "id2label.json", repo_type="dataset", revision=self.revision)
        except (HfHubHTTPError, HFValidationError, OSError):
            return None  # no such file, offline and not cached, or not a repository

    @property
    def _folder(self) -> str | None:
        """The folder of a local dataset."""
        return next((f for f in (self.name, self._arguments["data_dir"]) if f and os.path.isdir(f)), None)

    def _load(self, **kwargs):
        with self._loading():
            return datasets.load_dataset(self.name, **self._arguments, **kwargs)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Turns every error of loading into an InputError."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # from `datasets`, pyarrow, pandas, huggingface_hub ...
            raise InputError(f"The dataset {self.name!r} cannot be loaded: {reason_of(error)}.") from error

    def _tell_columns(self, features: datasets.Features, image: str, mask: str) -> None:
        """Note which columns were taken where others could be meant, or where their names do not tell."""
        if self.image_column and self.label_column:
            return
        pictures = (n for n, feature in features.items() if isinstance(feature, datasets.Image))
        usual = (n for n in (*IMAGE_COLUMNS, *LABEL_COLUMNS) if n in features)
        others = [repr(n) for n in dict.fromkeys([*usual, *pictures]) if n not in (image, mask)]
        if not others and image in IMAGE_COLUMNS and mask in LABEL_COLUMNS:
            return
        instead = f", not from {', '.join(others)}" if others else ""
        note = (
            f"The images are taken from the column {image!r} and the masks from {mask!r}{instead}: choose others with "
            "--image_column and --label_column."
        )
        if note not in self.notes:
            self.notes.append(note)

    def _split(self, name: str, option: str, label: bool = True) -> AnyDataset:
        """A split, or part of one such as "train[:80%]", with the columns image, file and, if asked for, label."""
        if "[" in name and not self.streaming and not is_saved_dataset(self.name):
            dataset = self._load(split=name)
        elif name in self._splits:
            dataset = self._splits[name]
        elif name in self._empty:
            raise InputError(f"The split {name!r} of {self.name} has no rows: name another with {option}.")
        else:
            raise unknown_name(f"split ({option}) of {self.name}", name, self._splits)
        if dataset.features is None:  # a stream of unknown columns
            with self._loading():
                dataset = dataset._resolve_features()
        features = dataset.features
        image = _image_column(features, self.image_column, self.name)
        columns = {image: "image"}
        if label:
            mask = _label_column(features, self.label_column, image, self.name)
            columns[mask] = "label"
            self._tell_columns(features, image, mask)
        dataset = dataset.select_columns(list(columns))
        for column in columns:
            if _is_bytes(features[column]):
                dataset = dataset.cast_column(column, datasets.Image(decode=False))
                features = dataset.features
        pictures = [column for column in columns if isinstance(features[column], datasets.Image)]
        for column in pictures:  # else renaming a column of a stream would re-encode its pictures
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
        dataset = dataset.rename_columns({old: new for old, new in columns.items() if old != new})
        dataset = _with_files(dataset, name, DatasetFiles(self.name, self._folder))
        for column in pictures:
            dataset = dataset.cast_column(columns[column], datasets.Image())
        return dataset


def is_saved_dataset(path: str) -> bool:
    """Whether `Dataset.save_to_disk` wrote this folder."""
    return any(os.path.isfile(os.path.join(path, name)) for name in ("dataset_dict.json", "state.json"))


def read_by_datasets(folder: str) -> bool:
    """Whether a folder contains, within two levels, tables, archives or metadata that `datasets` reads.

    Tables and archives beside folders of photos and masks do not count: they were only left there.
    """
    stored = False
    for parent, folders, files in os.walk(folder):
        if any(f in METADATA_FILES and _names_files(os.path.join(parent, f)) for f in files):
            return True
        stored |= any(f.endswith((".parquet", ".arrow", ".tar")) for f in files)
        if len(Path(parent).relative_to(folder).parts) == 2:
            folders.clear()
    return stored and (is_saved_dataset(folder) or not Folder(folder).has_masks())


def _names_files(metadata: str) -> bool:
    """Whether a metadata file has a column of file names, without which `datasets` does not read it."""
    if metadata.endswith(".parquet"):
        return True
    with open(metadata, encoding="utf-8-sig", errors="replace") as file:
        return "file_name" in file.readline()


def _in_memory(dataset: AnyDataset) -> datasets.Dataset:
    """A short stream as a dataset with a length; the pictures stay encoded."""
    if isinstance(dataset, datasets.Dataset):
        return dataset
    features, rows = dataset.features, list(rows_of_stream(undecoded(dataset)))
    return datasets.Dataset.from_list(rows, features=features)


def _image_column(features: datasets.Features, given: str | None, name: str) -> str:
    """The column with the photos: pictures first, then arrays and paths, each with the usual names first."""
    if given is not None:
        return _named_column(features, given, f"image column (--image_column) of {name}")
    pictures = [n for n, feature in features.items() if isinstance(feature, datasets.Image)]
    other = [n for n in IMAGE_COLUMNS if n in features and _may_be_picture(features[n])]
    usual = [n for n in IMAGE_COLUMNS if n in pictures]
    unusual = [n for n in pictures if n not in LABEL_COLUMNS]
    found = usual or (unusual if len(unusual) == 1 else []) or other
    if not found:
        raise InputError(
            f"No column of images was found in {name} among {some(map(repr, sorted(features)))}: name it with "
            "--image_column."
        )
    return found[0]


def _label_column(features: datasets.Features, given: str | None, image: str, name: str) -> str:
    """The column with the masks: pictures first, whatever their name, then arrays and paths of a usual name."""
    if given is not None:
        return _named_column(features, given, f"label column (--label_column) of {name}")
    pictures = [n for n, f in features.items() if isinstance(f, datasets.Image) and n != image]
    other = [n for n in LABEL_COLUMNS if n in features and n != image and _may_be_picture(features[n])]
    usual = [n for n in LABEL_COLUMNS if n in pictures]
    unusual = [n for n in pictures if n not in IMAGE_COLUMNS]
    found = usual or (unusual if len(unusual) == 1 else []) or other
    if found:
        return found[0]
    one_class = next((n for n, f in features.items() if isinstance(f, datasets.ClassLabel)), None)
    raise NoMasksError(
        f"No column of masks was found in {name} among {some(map(repr, sorted(features)))}: name it with --label_column"
        + (f" ({one_class!r} contains one class per image)." if one_class else ".")
    )


def _named_column(features: datasets.Features, given: str, kind: str) -> str:
    if given not in features:
        raise unknown_name(kind, given, features)
    if not (_may_be_picture(features[given]) or _is_bytes(features[given])):
        raise InputError(f"The {kind}, {given!r}, contains {features[given]}, not pictures.")
    return given


def _may_be_picture(feature: Any) -> bool:
    """Whether a column can contain pictures: as such, as paths, or as arrays of at least two dimensions."""
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("string", "large_string")
    inner = _inner(feature)
    return (
        isinstance(feature, datasets.Image)
        or type(feature).__name__.startswith("Array")
        or (inner is not None and _inner(inner) is not None)
    )


def _inner(feature: Any) -> Any:
    """What a list column contains; None for every other column."""
    if isinstance(feature, list):
        return feature[0]
    return getattr(feature, "feature", None)


def _is_bytes(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


@dataclass(frozen=True)
class _FileOfRow:
    """Adds the column `file` to a row. A class, since workers that are spawned get it pickled."""

    split: str
    files: DatasetFiles

    def __call__(self, row: dict, index: int) -> dict:
        return {"file": self.of(row, index)}

    def of(self, row: dict, index: int) -> str:
        for column, cell in row.items():
            place = f"{self.split}[{index}]"
            self.files.check(cell, place if column == "image" else f"the mask of {place}")
        image = row["image"]
        return (image.get("path") if isinstance(image, dict) else None) or f"{self.split}[{index}]"


def _with_files(dataset: AnyDataset, split: str, files: DatasetFiles) -> AnyDataset:
    """Adds the column `file`: the path of the image if the dataset names it, else split[row].

    The pictures are not decoded. Raises InputError (a stream: when it is read) if a picture is outside of `files`.
    """
    file_of = _FileOfRow(split, files)
    if isinstance(dataset, datasets.IterableDataset):
        features = datasets.Features({**dataset.features, "file": datasets.Value("string")})
        return dataset.map(file_of, with_indices=True, features=features)
    return dataset.add_column("file", [file_of.of(row, i) for i, row in enumerate(_file_rows(dataset))])


def _file_rows(dataset: datasets.Dataset) -> Iterator[dict]:
    """The rows with the paths of their pictures; embedded pictures are not loaded, their bytes become b""."""
    for table in dataset.with_format("arrow").iter(batch_size=1000):
        columns = {}
        for name in table.column_names:
            cells = table[name]
            if pa.types.is_struct(cells.type) and {"bytes", "path"} <= {f.name for f in cells.type}:
                paths = pc.struct_field(cells, "path").to_pylist()
                held = pc.is_valid(pc.struct_field(cells, "bytes")).to_pylist()
                columns[name] = [
                    {"path": path, "bytes": b"" if there else None}
                    for path, there in zip(paths, held, strict=True)
                ]
            elif pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
                columns[name] = cells.to_pylist()
        for row in zip(*columns.values(), strict=True) if columns else ((),) * len(table):
            yield {"image": None} | dict(zip(columns, row, strict=True))


def rows_with_label(dataset: datasets.Dataset) -> list[bool]:
    """Whether each row has a mask, without reading the masks."""
    there: list[bool] = []
    for table in dataset.select_columns(["label"]).with_format("arrow").iter(batch_size=1000):
        column = table["label"]
        given = pc.is_valid(column)
        if pa.types.is_struct(column.type):
            stored = (pc.is_valid(pc.struct_field(column, field)) for field in ("bytes", "path"))
            given = pc.and_(given, pc.or_(*stored))
        there += given.to_pylist()
    return there


class DatasetFiles:
    """The files that a dataset may refer to: those below its `folder` if it is local, else those of its Hub
    repository; and everything in the caches for downloaded and unpacked files.

    A Parquet file or a folder's metadata can name any path instead of a picture. Opening such a path could copy, say, a
    private photo into a dataset that is then shared. `datasets` itself only checks metadata files, and only since
    version 5. Paths are judged as written, with `..` resolved: links may lead anywhere.
    """

    def __init__(self, name: str, folder: str | None):
        self.name = name
        cached = (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH)
        places = [constants.HF_HUB_CACHE, *cached, datasets.config.EXTRACTED_DATASETS_PATH]
        if folder is not None:
            places.append(folder)
        self._roots = {os.path.join(of(p), "") for p in places for of in (os.path.abspath, os.path.realpath)}
        self._hub = None if folder is not None else f"hf://datasets/{name}@"

    def check(self, cell: Any, row: str) -> None:
        """Raises InputError if an undecoded cell names a file outside of the dataset; messages mention `row`."""
        if isinstance(cell, dict):
            cell = cell.get("path") if cell.get("bytes") is None else None
        if isinstance(cell, str) and not self._contains(cell):
            raise InputError(
                f"The dataset {self.name!r} names {cell!r} as a picture of {row}, which is not one of its own files "
                "and is not opened: move the file into the dataset, name another column with --image_column or "
                "--label_column, or name the file in a --labeled_list of your own."
            )

    def _contains(self, path: str) -> bool:
        *members, place = path.split("::")  # "zip://photo.png::hf://datasets/user/name@revision/photos.zip"
        if not all(member.partition("://")[0] in ARCHIVES for member in members):
            return False
        if "://" in place:
            protocol, _, inside = place.partition("://")
            normal = f"{protocol}://{os.path.normpath(inside)}"
            return self._hub is not None and normal.startswith(self._hub)
        return os.path.abspath(place).startswith(tuple(self._roots))
