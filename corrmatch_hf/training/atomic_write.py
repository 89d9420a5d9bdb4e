"""Files and folders that are either whole or not there: written aside, flushed to the disk, then renamed.

A process may be killed, or the machine lose power, between any two lines here: what stood at the path before, or what
was to stand there, is there afterwards. (`recover_folder` mends the one moment when neither is.)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

# What the libraries raise when the disk is full: plain errors, torch's writer, safetensors.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


def write_text(path: Path, text: str) -> None:
    """Replace the file `path` by one that holds `text` (UTF-8)."""
    aside = path.with_name(f".{path.name}.writing")
    try:
        aside.write_text(text, encoding="utf-8")
        flush(aside)
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)  # on a full disk it holds room that others need
        raise


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to write into; on success it takes the place of `path`, on failure `path` is untouched."""
    aside = path.with_name(f".{path.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        publish_folder(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


@contextmanager
def replaced_files(folder: Path) -> Iterator[Path]:
    """The same for files among others: each of those written takes the place of the one of its name in `folder`."""
    aside = folder / ".writing"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        for path in sorted(aside.iterdir()):
            flush(path)
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def publish_folder(aside: Path, path: Path) -> None:
    """Put the finished folder `aside` in the place of `path`."""
    for file in (*aside.rglob("*"), aside):
        flush(file)
    old = _old(path)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    aside.rename(path)
    flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Finish what a killed process left of `publish_folder` or `replaced_folder` at `path`."""
    if not path.exists() and _old(path).exists():
        _old(path).rename(path)
    shutil.rmtree(_old(path), ignore_errors=True)
    shutil.rmtree(path.with_name(f".{path.name}.writing"), ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Delete a folder such that half of it never stands at its path."""
    old = _old(path)
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    shutil.rmtree(old)


def flush(path: Path) -> None:
    """Wait until the file, or the names in the folder, are on the disk."""
    if path.is_dir() and os.name != "posix":
        return  # only there can folders be opened
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
