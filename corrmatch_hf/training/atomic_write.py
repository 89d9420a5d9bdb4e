"""Files and folders that are either whole or absent: written to a temporary path, flushed to disk, then renamed.

The process may be killed, or the machine lose power, between any two lines of this file: afterwards the path holds its
old or its new content, never a part of either. (`recover_folder` repairs the one moment when it holds neither.)
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    delete(temporary)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        move_folder(temporary, path)
    except BaseException:
        delete(temporary)
        raise


@contextmanager
def replaced_files(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into. On success each of its files replaces the one of that name in `folder`."""
    temporary = folder / ".writing"
    delete(temporary)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        follow_umask(temporary)
        for path in sorted(temporary.iterdir()):
            flush(path)
            os.replace(path, folder / path.name)
        flush(folder)
    finally:
        delete(temporary)


def move_folder(finished: Path, path: Path) -> None:
    """Replace `path` by the folder `finished`, flushed to disk first. Of a link at `path`, the target stays."""
    follow_umask(finished)
    for file in (*finished.rglob("*"), finished):
        flush(file)
    old = _old(path)
    delete(old)
    if os.path.lexists(path):
        path.rename(old)
    try:
        finished.rename(path)
    except OSError:
        if os.path.lexists(old):
            old.rename(path)
        raise
    flush(path.parent)
    delete(old)


def recover_folder(path: Path) -> None:
    """Finish or undo a `move_folder` or `replaced_folder` to `path` that was killed."""
    if not os.path.lexists(path) and os.path.lexists(_old(path)):
        _old(path).rename(path)
    delete(_old(path))
    delete(_temporary(path))


def remove_folder(path: Path) -> None:
    """Delete a folder; a half-deleted one never stands at `path`, nor does `recover_folder` bring it back.

    Of a link, the target stays.
    """
    temporary = _temporary(path)
    delete(temporary)
    path.rename(temporary)
    if temporary.is_symlink() or temporary.is_file():
        temporary.unlink()
    else:
        shutil.rmtree(temporary)


def delete(path: Path) -> None:
    """Delete a folder, file or link (never its target), as far as that is possible."""
    if path.is_symlink() or path.is_file():
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def follow_umask(folder: Path) -> None:
    """Give files that safetensors made private the permissions of the others.

    Args:
        folder: made by this process, so that its own permissions show the umask.
    """
    if os.name != "posix":
        return
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and file.stat().st_mode & 0o777 == 0o600 != mode:
            with contextlib.suppress(OSError):  # some disks have no permissions
                file.chmod(mode)


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
