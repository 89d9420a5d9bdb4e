"""The one error that users can cause, and helpers that raise it with all problems at once."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable
from pathlib import Path


class InputError(ValueError):
    """An option, file or argument of the user cannot be used. The message names it, what was found, and the remedy."""


def refuse(problems: Iterable[str]) -> None:
    """Raise one `InputError` that lists all `problems` (sentences without full stops), if there are any."""
    if problems := list(problems):
        text = "; ".join(problems)
        raise InputError(text if text.endswith("?") else f"{text}.")


SHORT_LIST = 20  # names that a message may list


def unknown_name(kind: str, name: str, choices: Iterable[str], full_list: str = "") -> InputError:
    """The error for a name that does not exist, with the nearest existing ones.

    Args:
        kind: what the name is of, such as "option".
        name: as given.
        choices: the names that exist.
        full_list: a command that prints all of them, for the message about a name that resembles none.
    """
    choices = sorted(choices)
    words = {choice.lstrip("-"): choice for choice in choices}  # two dashes make no names similar
    near = [words[word] for word in difflib.get_close_matches(name.lstrip("-"), words, n=3, cutoff=0.5)]
    if near:
        hint = f"did you mean {' or '.join(map(repr, near))}?"
    elif len(choices) <= SHORT_LIST:
        hint = f"known are {', '.join(choices)}."
    elif full_list:
        hint = f"{full_list} lists the {len(choices)} that exist."
    else:
        hint = f"known are {', '.join(choices[:SHORT_LIST])} and {len(choices) - SHORT_LIST} more."
    return InputError(f"Unknown {kind} {name!r}: {hint}")


def check_writable_file(option: str, path: str | os.PathLike, *replaced: str) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold.

    Args:
        option: which names the file.
        path: of it.
        replaced: suffixes of files that may exist and are replaced, such as ".json": a name typed by mistake destroys
            nothing else.
    """
    if os.path.isdir(path):
        raise InputError(f"{option} {path} is a folder; give a file name.")
    if os.path.exists(path):
        if not os.path.isfile(path) or Path(path).suffix not in replaced:
            kinds = " or ".join(replaced)
            raise InputError(
                f"{option} {path} exists and is no {kinds} file, so it is not overwritten; give another name."
                if replaced
                else f"{option} {path} exists and is not overwritten; give another name."
            )
        if not os.access(path, os.W_OK):
            raise InputError(f"{option} {path} cannot be written: permission denied; give another file.")
    else:
        check_writable_folder(option, Path(path).parent, "another file")


def check_writable_folder(option: str, path: str | os.PathLike, remedy: str = "another folder") -> None:
    """Refuse a folder that cannot be made or written. Nothing is made."""
    nearest = next(p for p in (Path(path), *Path(path).parents, Path("/")) if os.path.lexists(p))
    if not nearest.is_dir():
        found = "is a file" if nearest == Path(path) else f"cannot be made: {nearest} is a file"
        raise InputError(f"{option} {path} {found}; name {remedy}.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{option} {path} cannot be written: {nearest} allows no new files; name {remedy}.")


def describe_system_error(error: OSError) -> str:
    """A sentence for what the operating system refused, with what to do."""
    remedies = {
        errno.ENOSPC: "free some disk space",
        errno.EDQUOT: "free some of your quota",
        errno.EROFS: "name a folder that can be written",
        errno.ENAMETOOLONG: "give a shorter name",
        errno.EMFILE: "allow more open files (ulimit -n)",
        errno.ENOMEM: "free some memory, or start fewer processes",
        errno.EAGAIN: "start fewer processes, for example by a lower --num_workers",
    }
    remedy = remedies.get(error.errno, "check the path and its permissions")
    place = str(error.filename) if error.filename is not None else ""
    place = f"{place if len(place) <= 200 else place[:200] + '...'}: " if place else ""
    return f"{place}{error.strerror or type(error).__name__}; {remedy}."
