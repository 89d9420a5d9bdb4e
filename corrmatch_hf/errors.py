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


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """The error for a name that does not exist, with the nearest existing ones."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(repr(n) for n in near)}?"
        if near
        else f"known are {', '.join(choices[:20])}."
    )
    return InputError(f"Unknown {kind} {name!r}: {hint}")
