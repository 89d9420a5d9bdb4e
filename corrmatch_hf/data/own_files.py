"""Which files a dataset may name that `datasets` reads: its own, whoever wrote it.

A Parquet file or the metadata of a folder can name any path in place of a picture, and whoever opens it would
read, say, a private photo into a dataset that is then shared. `datasets` itself looks at the names in metadata
files only, and only since version 5.
"""

from __future__ import annotations

import os
from typing import Any

import datasets
from huggingface_hub import constants

from corrmatch_hf.errors import InputError

ARCHIVES = ("zip", "tar", "gzip", "bz2", "xz", "lz4", "zstd")


class OwnFiles:
    """The files of one dataset: those below `folder`, if it is one of this machine, else those on the Hub; and in
    both cases what was downloaded or unpacked.

    Where a path leads is judged by how it is written, `..` resolved: links may lead anywhere.
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
        """Raises InputError if a cell, not decoded, would be read from a file that is not the dataset's.

        `row` says whose cell it is.
        """
        if isinstance(cell, dict):
            cell = cell.get("path") if cell.get("bytes") is None else None
        if isinstance(cell, str) and not self._holds(cell):
            raise InputError(
                f"The dataset {self.name!r} names {cell!r} as a picture of {row}, which is none of its own files, so "
                "it is not opened: put the file into the dataset, or name it in a --labeled_list of your own."
            )

    def _holds(self, path: str) -> bool:
        *members, place = path.split("::")  # "zip://photo.png::hf://datasets/user/name@revision/photos.zip"
        if not all(member.partition("://")[0] in ARCHIVES for member in members):
            return False
        if "://" in place:
            protocol, _, inside = place.partition("://")
            normal = f"{protocol}://{os.path.normpath(inside)}"
            return self._hub is not None and normal.startswith(self._hub)
        return os.path.abspath(place).startswith(tuple(self._roots))
