"""Text files with one entry a line: partition lists, and those of PASCAL VOC."""

from __future__ import annotations

import os
from pathlib import Path

from corrmatch_hf.errors import InputError


def list_lines(path: str | os.PathLike, option: str) -> list[tuple[int, str]]:
    """The lines of a list that are not empty, numbered from 1, without the white space around them.

    A list is UTF-8, with or without a byte order mark; its lines end as on any system. Raises InputError, naming
    the list and the option, where it is missing, empty, or no such text.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"The list {path} ({option}) does not exist.") from None
    except OSError as error:
        raise InputError(f"The list {path} ({option}) cannot be read: {error.strerror}.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"The list {path} ({option}) is no UTF-8 text, for line {line} holds the byte "
            f"0x{content[error.start]:02X}: save it as UTF-8."
        ) from None
    # Not splitlines, which would also cut at characters that names may hold.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = [(number, entry) for number, line in enumerate(lines, 1) if (entry := line.strip())]
    if not lines:
        raise InputError(f"The list {path} ({option}) is empty.")
    return lines
