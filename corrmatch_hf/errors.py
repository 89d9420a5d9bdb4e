"""The one error that users can cause, and helpers that raise it with all problems at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
