"""Files and folders that are either whole or absent: written to a temporary path, flushed to disk, then renamed.

The process may be killed, or the machine lose power, between any two lines of this file: afterwards the path holds its
old or its new content, never a part of either. (`recover_folder` repairs the one moment when it holds neither.)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

# What the libraries raise on a full disk: plain OSErrors, torch's writer RuntimeErrors, safetensors its own.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


def write_text(path: Path, text: str) -> None:
    """Replace the file `path` by one with `text` (UTF-8)."""
    temporary = _temporary(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        flush(temporary)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk, others need its space
        raise


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to write into. On success it replaces `path`; on failure `path` is unchanged."""
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        move_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def replaced_files(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into. On success each of its files replaces the one of that name in `folder`."""
    temporary = folder / ".writing"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in sorted(temporary.iterdir()):
            flush(path)
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_folder(finished: Path, path: Path) -> None:
    """Replace the folder `path` by the folder `finished`, flushed to disk first."""
    for file in (*finished.rglob("*"), finished):
        flush(file)
    old = _old(path)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    finished.rename(path)
    flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Finish or undo a `move_folder` or `replaced_folder` to `path` that was killed."""
    if not path.exists() and _old(path).exists():
        _old(path).rename(path)
    shutil.rmtree(_old(path), ignore_errors=True)
    shutil.rmtree(_temporary(path), ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Delete a folder; a half-deleted one never stands at `path`, nor does `recover_folder` bring it back."""
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    path.rename(temporary)
    shutil.rmtree(temporary)


def flush(path: Path) -> None:
    """Wait until the file's content, or the folder's list of names, is on the disk."""
    if path.is_dir() and os.name != "posix":
        return  # other systems cannot open folders
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.writing")


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
