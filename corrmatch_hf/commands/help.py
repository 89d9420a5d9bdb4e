"""`--help` as text: options under headings, the most needed ones first, for a terminal of 100 columns."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields
from typing import Any, get_args, get_origin, get_type_hints

from ..methods import REGISTRY
from ..options import GROUPS, choices_of, plain_type

WIDTH, COLUMN = 100, 36  # characters; where the descriptions begin
METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", dict: "JSON"}
SHORT_CHOICES = 24  # characters of {a,b} that are shown beside the option; longer ones go to the description


def help_text(
    command: str,
    types: list[type],
    method: Any,
    values: dict[str, Any],
    everything: bool,
    description: str,
    examples: str,
    unlisted: Iterable[str] = (),
) -> str:
    """The help of a command.

    Args:
        types: the option classes.
        method: the method's class, whose own options get its name as heading; None for other commands.
        values: values of `--config` to show as defaults.
        everything: all options instead of those marked `common`.
        unlisted: names of options that are not shown.
    """
    rows: dict[str, list[str]] = {}
    positionals, hidden = [], 0
    for cls in types:
        hints = get_type_hints(cls)
        own = method.name if method is not None and cls is method.Options else "Options"
        for spec in fields(cls):
            hint, meta = hints[spec.name], spec.metadata
            if spec.name in unlisted:
                continue
            if meta.get("positional"):
                positionals.append(_metavar(spec, hint))
                heading = "Arguments"
            elif everything or meta.get("common") or is_required(spec):
                heading = meta.get("group") or own
            else:
                hidden += 1
                continue
            rows.setdefault(heading, []).append(_row(spec, hint, values, method))
    rows["Help"] = list(_general(hidden, everything, method))
    parts = [" ".join(["usage: corrmatch", command, *positionals, "[options]"]), _wrap(description)]
    if examples:
        parts.append("Examples:\n" + textwrap.indent(textwrap.dedent(examples).strip(), "  "))
    parts += [f"{heading}:\n" + "\n".join(rows[heading]) for heading in _ordered(rows, method)]
    return "\n\n".join(parts)


def _general(hidden: int, everything: bool, method: Any) -> Iterator[str]:
    """The rows of the options that every command has."""
    if method is None:
        yield _entry("--config FILE", "YAML file with values for these options.")
    else:
        yield _entry("--config FILE", "YAML file with values for these options, or the name of a recipe.")
    if not (hidden or everything):
        yield _entry("-h, --help", "Show these options.")
        return
    yield _entry("-h, --help", "Show the most needed options.")
    count = f" ({hidden} more)" if hidden else ""
    own = "" if method is None else f", including those of --method {method.name}"
    yield _entry("--help-all", f"Show all options{count}{own}.")


def _ordered(rows: dict[str, list[str]], method: Any) -> Iterator[str]:
    """Headings: arguments, the groups of GROUPS with the method's own options after "Method", others, help."""
    order = ["Arguments", "Options", *GROUPS]
    if method is not None:
        order.insert(order.index("Method") + 1, method.name)
    order += [heading for heading in rows if heading not in order and heading != "Help"]
    return (heading for heading in [*order, "Help"] if heading in rows)


def _row(spec: Field, hint: Any, values: dict[str, Any], method: Any) -> str:
    meta = spec.metadata
    default = spec.default if spec.default_factory is MISSING else spec.default_factory()
    default = values.get(spec.name, default)
    text = meta.get("help", "")
    choices = choices_of(hint)
    if spec.name == "method" and method is not None:
        choices, default = tuple(REGISTRY), method.name
    if choices and _shown(choices) is None and not all(str(choice) in text for choice in choices):
        text = f"{text.rstrip('.')}: {', '.join(map(str, choices))}."
    if isinstance(default, list):
        default = " ".join(map(str, default))
    if default is MISSING and not meta.get("positional"):
        text += " (required)"
    elif default is True:
        text += f" (default: True; turn it off by --{spec.name} False)"
    elif not any(default is nothing for nothing in (None, False, MISSING)):
        text += f" (default: {default})"
    name = (
        _metavar(spec, hint) if meta.get("positional") else f"--{spec.name} {_metavar(spec, hint)}".rstrip()
    )
    return _entry(name, text)


def _metavar(spec: Field, hint: Any) -> str:
    plain = plain_type(hint)
    if spec.metadata.get("metavar"):
        word = spec.metadata["metavar"]
    elif choices := choices_of(hint):
        word = _shown(choices) or "NAME"
    elif get_origin(plain) is list:
        word = METAVARS[get_args(plain)[0]]
    else:
        word = METAVARS.get(get_origin(plain) or plain, "")
    return f"{word} ..." if get_origin(plain) is list else word


def _shown(choices: tuple) -> str | None:
    text = "{" + ",".join(map(str, choices)) + "}"
    return text if len(text) <= SHORT_CHOICES else None


def is_required(spec: Field) -> bool:
    return spec.default is MISSING and spec.default_factory is MISSING


def _entry(name: str, text: str) -> str:
    lines = textwrap.wrap(text, _width() - COLUMN, break_long_words=False, break_on_hyphens=False)
    first = f"  {name}"
    if len(first) > COLUMN - 2:
        return "\n".join([first, *(" " * COLUMN + line for line in lines)])
    return "\n".join(
        [f"{first:<{COLUMN}}{lines[0] if lines else ''}", *(" " * COLUMN + line for line in lines[1:])]
    )


def _wrap(text: str) -> str:
    """Each paragraph on its own."""
    return "\n\n".join(
        textwrap.fill(part, _width(), break_long_words=False, break_on_hyphens=False)
        for part in text.split("\n\n")
    )


def _width() -> int:
    return max(min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH), 60)
