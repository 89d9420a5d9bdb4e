"""Text for people and for publication: percentages, library versions, and no secrets.

Hub tokens must never reach a card, a log or an error message, and the home directory in a path names its user.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from huggingface_hub import get_token
from huggingface_hub.errors import OIDCError

from . import __version__

LIBRARIES = ("torch", "timm", "transformers", "datasets", "accelerate", "huggingface_hub")

SHORTEST_SECRET = 8  # characters; replacing a shorter token could tear ordinary words apart
_TOKEN = re.compile(r"\bhf_(?:(?:oauth|jwt)_[\w.\-]+|[A-Za-z0-9]{10,}\b)")


def without_tokens(text: str) -> str:
    """The text with *** for everything that looks like a Hub token, and for the token of this login."""
    try:
        own = get_token() or ""
    except OIDCError:  # the login would be made on demand, which is not possible here
        own = ""
    return _TOKEN.sub("***", text.replace(own, "***") if len(own) >= SHORTEST_SECRET else text)


def presentable(text: str) -> str:
    """The text without Hub tokens, and with ~ for the home directory at the start of paths."""
    home = os.path.expanduser("~").rstrip("/\\")
    if home not in ("", "~"):
        text = re.sub(rf"(?<![\w.~-]){re.escape(home)}(?![\w.-])", "~", text)
    return without_tokens(text)


def some(items: Iterable, shown: int = 12) -> str:
    """The first items and the number of the others: "a, b and 3 more"."""
    listed = [str(item) for item in items]
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage; "-" for None (a class that does not occur)."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def library_versions() -> dict[str, str]:
    """{"python": "3.11.7", "corrmatch_hf": "0.2.0", "torch": ...}, without libraries that are not installed."""
    versions = {"python": platform.python_version(), "corrmatch_hf": __version__}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
