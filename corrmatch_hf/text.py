"""Secrets stay out of everything that is published: Hub tokens, and the home directory in paths."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version

from huggingface_hub import get_token
from huggingface_hub.errors import OIDCError

SHORTEST = 8  # characters; what is shorter is no secret, and would tear words apart
_TOKEN = re.compile(r"\bhf_(?:(?:oauth|jwt)_[\w.\-]+|[A-Za-z0-9]{10,}\b)")


def without_tokens(text: str) -> str:
    """The text with every Hub token in it, and the one of this login whatever it looks like, replaced by ***."""
    try:
        own = get_token() or ""
    except OIDCError:  # a login that is made when it is needed, and cannot be made here
        own = ""
    return _TOKEN.sub("***", text.replace(own, "***") if len(own) >= SHORTEST else text)


def presentable(text: str) -> str:
    """The text without Hub tokens, and with ~ for the home directory that paths begin with."""
    home = os.path.expanduser("~").rstrip("/\\")
    if home not in ("", "~"):
        text = re.sub(rf"(?<![\w.~-]){re.escape(home)}(?![\w.-])", "~", text)
    return without_tokens(text)


# -------------------- Shares as people read them.


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage; "-" where there is none (a class that does not occur)."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


# -------------------- The versions of what a run depends on, for the record.


LIBRARIES = (
    "corrmatch_hf", "torch", "timm", "transformers", "datasets", "accelerate", "huggingface_hub",
)  # fmt: skip


def library_versions() -> dict[str, str]:
    """{"python": "3.11.7", "corrmatch_hf": "0.1.0", "torch": ...}; what is not installed is left out."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # a copied source tree has no version of its own
            continue
    return versions
