"""Text for people and for publication: percentages, library versions, no secrets, and nothing that only looks harmless.

Tokens, passwords and keys must never reach a card, a log or an error message. Published text has the last part of an
absolute path only, since folders name people and customers.
"""

from __future__ import annotations

import ntpath
import os
import platform
import re
import shlex
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from . import __version__

LIBRARIES = ("torch", "timm", "transformers", "datasets", "accelerate", "huggingface_hub")

SHORTEST_SECRET = 8  # characters; replacing a shorter token could tear ordinary words apart
_TOKENS = re.compile(
    r"\bhf_(?:(?:oauth|jwt)_[\w.\-]+|[A-Za-z0-9]{10,}\b)"  # the Hub
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # Amazon
    r"|\bAIza[\w-]{30,}"  # Google
    r"|\b(?:gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{15,})"  # GitHub, GitLab
    r"|\bsk-[\w-]{20,}|\bxox[abeoprs]-[\w-]{10,}"  # OpenAI and others, Slack
)
_IN_URL = re.compile(r"(?<=://)[^\s/\"'<>]+@")  # https://name:password@host
_SECRET_NAME = (
    r"[\w.\-]*(?:token|secret|passw|pwd|credential|signature|\bauth\b|oauth|(?:api|access)[_-]?key)[\w.\-]*"
)
# https://host/file?sig=..., AWS_SECRET_ACCESS_KEY=...; with ":" they would be options such as class_token: false.
_NAMED = re.compile(
    rf"([?&;](?:{_SECRET_NAME}|sig|key|awsaccesskeyid)=)(?!\*\*\*)[^\s&;\"'<>]+"
    rf"|(\b{_SECRET_NAME}=)(?!\*\*\*)[^\s&;\"'<>]{{6,}}",
    re.IGNORECASE,
)
# Absolute paths up to their last part: /, ~/, file://, C:\ or \\server; quoted ones may contain spaces.
_ROOT = r"(?:file:/{2,3}(?=[\w~])|/|~/|[A-Za-z]:[\\/]{1,2}|\\{2,4}(?=\w))"
_QUOTED_PATH = re.compile(rf"""(?<=["']){_ROOT}[^"'\n]*[/\\](?=[^"'\n/\\]+["'])""")
_END = r"\s\"'`<>|,;:()\[\]{}"  # of a path in a sentence, YAML or JSON
_PATH = re.compile(rf"(?<![\w.~:/\\-]){_ROOT}(?:[^{_END}/\\]+[/\\]+)+(?=[^{_END}/\\])")
# Control characters, which steer a terminal, and those that turn the direction of a text or separate lines.
_INVISIBLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def without_tokens(text: str) -> str:
    """The text with *** for everything that looks like a token, password or key, and for the token of this login."""
    from huggingface_hub import get_token  # takes a tenth of a second, too long for --help
    from huggingface_hub.errors import OIDCError

    try:
        own = get_token() or ""
    except OIDCError:  # the login would be made on demand, which is not possible here
        own = ""
    if len(own) >= SHORTEST_SECRET:
        text = text.replace(own, "***")
    return _NAMED.sub(
        lambda found: f"{found[1] or found[2]}***", _IN_URL.sub("***@", _TOKENS.sub("***", text))
    )


def presentable(text: str) -> str:
    """The text without secrets, with ~ for the home directory and .../name for other absolute paths."""
    if len(text) < 4096 and _is_absolute(text):  # whole, it may contain spaces
        home = os.path.expanduser("~")
        name = re.split(r"[/\\]+", text.rstrip("/\\"))[-1]
        return "~" if text.rstrip("/") == home.rstrip("/") else without_tokens(f".../{name}")
    home = os.path.expanduser("~").rstrip("/\\")
    if home not in ("", "~"):
        text = re.sub(rf"(?<![\w.~-]){re.escape(home)}(?![\w./\\-])", "~", text)
    return without_tokens(_PATH.sub(".../", _QUOTED_PATH.sub(".../", text)))


def presentable_command(command: str) -> str:
    """A shell command in the same way, word by word."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quote without its end
        return presentable(command)
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        whole = equals and name.startswith("-")
        found.append(f"{name}={presentable(value)}" if whole else presentable(word))
    return shlex.join(found).replace("'***'", "***")


def presentable_values(value: Any) -> Any:
    """JSON values in the same way; the characters that `visible` shows are shown."""
    if isinstance(value, dict):
        # Names of options and classes; the keys of YAML may be numbers.
        names = {k: visible(without_tokens(k)) if isinstance(k, str) else k for k in value}
        return {names[k]: presentable_values(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [presentable_values(v) for v in value]
    return visible(presentable(value)) if isinstance(value, str) else value


def visible(text: str, keep: str = "") -> str:
    """The text with escapes such as \\x1b for characters that steer a terminal or turn the direction of writing."""
    return _INVISIBLE.sub(
        lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(), text
    )


def markdown_cell(text: object) -> str:
    """A text on one line with the characters of Markdown and HTML escaped, also for tables."""
    return re.sub(r"([\\|<*`\[\]&~]|(?<!\w)_|_(?!\w))", r"\\\1", visible(" ".join(str(text).split())))


def markdown_code(text: object) -> str:
    """A text on one line for a code span."""
    return visible(" ".join(str(text).split())).replace("`", "'")


def _is_absolute(text: str) -> bool:
    """Whether the whole text is an absolute path of any system."""
    if "\n" in text or "://" in text:
        return False
    return text.startswith("/") or bool(ntpath.splitdrive(text)[0] and ntpath.isabs(text))


def read_small_text(path: str | os.PathLike, limit: int = 2**24) -> str:
    """The text of a UTF-8 file that a user gives, with or without a byte order mark.

    Raises:
        ValueError: the reason, in a few words, why the file cannot be read.
    """
    try:
        if Path(path).is_dir():
            raise ValueError("it is a folder")
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ValueError((error.strerror or str(error)).lower()) from error
    if len(content) > limit:
        raise ValueError(f"it is larger than {limit // 2**20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"it is not UTF-8 text: line {line} has the byte 0x{content[error.start]:02X}"
        ) from None


def some(items: Iterable, shown: int = 12) -> str:
    """The first items and the number of the others: "a, b and 3 more"."""
    listed = [str(item) for item in items]
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more


def short(value: object, length: int = 100) -> str:
    """`repr` of a value for a message, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage; "-" for None (a class that does not occur)."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def library_versions() -> dict[str, str]:
    """{"python": "3.11.7", "corrmatch_hf": "0.2.0", "torch": ...}, without libraries that are not installed."""
    return dict(_installed())


@cache  # looking them up takes a tenth of a second, and every checkpoint records them
def _installed() -> tuple[tuple[str, str], ...]:
    versions = {"python": platform.python_version(), "corrmatch_hf": __version__}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return tuple(versions.items())
