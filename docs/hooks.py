"""MkDocs hook: fills the docs' generated parts from the package, so that they cannot differ from the code.

A page asks for them in a comment:

    <!-- options: train -->          all options of `corrmatch train`, under their headings; method options are left out
    <!-- options: group Model -->    one of these headings
    <!-- options: corrmatch -->      the options of a method
    <!-- citation: corrmatch -->     its reference and BibTeX entry
    <!-- api -->                     the public names, rendered by mkdocstrings
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, get_args, get_type_hints

import corrmatch_hf
from corrmatch_hf.commands.arguments import DataArguments, MethodArguments, ModelArguments
from corrmatch_hf.methods import METHODS
from corrmatch_hf.options import choices_of, describe_bounds
from corrmatch_hf.training import TrainingConfig

MARKER = re.compile(r"^<!-- (options|citation|api):? ?(.*?) -->$", re.MULTILINE)
API = {
    "Model": ["CorrMatchForSegmentation", "CorrMatchConfig", "CorrMatchImageProcessor"],
    "Data": ["load_semi_dataset", "SemiDataset"],
    "Training": ["SemiSupervisedTrainer", "TrainingConfig"],
    "Methods": ["Method", *(cls.__name__ for cls in METHODS.values())],
    "Evaluation": ["MeanIoU", "optimize_for_inference"],
    "Errors": ["InputError"],
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces the markers of a page."""
    return MARKER.sub(lambda match: {"options": options, "citation": citation, "api": api}[match[1]](match[2]), markdown)


def options(what: str) -> str:
    """Option tables in Markdown: of a method, of all of `train`, or of one group of it."""
    if what in METHODS:
        return "\n\n".join(table(fields) for fields in grouped(METHODS[what].Options).values())
    groups: dict[str, list[str]] = {}
    for cls in (MethodArguments, DataArguments, ModelArguments, TrainingConfig):
        for group, fields in grouped(cls).items():
            groups.setdefault(group, []).extend(fields)
    if what.startswith("group "):
        return table(groups[what.removeprefix("group ")])
    return "\n\n".join(f"## {group}\n\n{table(fields)}" for group, fields in groups.items())


def grouped(cls: type) -> dict[str, list[str]]:
    """The rows of a dataclass's options by heading, in the order of declaration."""
    hints, groups = get_type_hints(cls), {}
    for spec in dataclasses.fields(cls):
        groups.setdefault(spec.metadata.get("group", ""), []).append(row(spec, hints[spec.name]))
    return groups


def table(rows: list[str]) -> str:
    return "\n".join(["| option | default | values | |", "|---|---|---|---|", *rows])


def row(spec: dataclasses.Field, hint: Any) -> str:
    name = f"`--{spec.name}`"
    if spec.metadata.get("common"):
        name = f"**{name}**"
    default = spec.default if spec.default is not dataclasses.MISSING else spec.default_factory()
    cells = (name, "" if default is None else f"`{default}`", values(spec, hint), spec.metadata.get("help", ""))
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


def values(spec: dataclasses.Field, hint: Any) -> str:
    """What an option accepts: choices, or a type and its range."""
    if choices := choices_of(hint):
        return ", ".join(f"`{choice}`" for choice in choices)
    kinds = [part for part in (hint, *get_args(hint)) if part in (bool, int, float, str)]
    kind = {bool: "True or False", int: "integer", float: "number", str: "text"}[kinds[0]] if kinds else ""
    bounds = spec.metadata.get("bounds")
    return f"{kind} {describe_bounds(bounds)}" if bounds else kind


def escape(text: str) -> str:
    """Text as a table's cell; the asterisks and quotation marks of help texts are no Markdown."""
    return text.replace("|", "\\|").replace("\n", " ")


def citation(method: str) -> str:
    reference = METHODS[method].reference
    return f"{reference.text}\n\n```bibtex\n{reference.bibtex}\n```"


def api(_: str) -> str:
    """One entry for each public name, by the place where it is defined; names not in `API` come last."""
    listed = {name for names in API.values() for name in names}
    others = [name for name in corrmatch_hf.__all__ if name not in listed and not name.startswith("_")]
    sections = []
    for title, names in {**API, "Further names": others}.items():
        entries = []
        for name in names:
            thing = getattr(corrmatch_hf, name, None) or getattr(corrmatch_hf.methods, name)
            entries.append(f"::: {thing.__module__}.{thing.__qualname__}")
        sections.append(f"## {title}\n\n" + "\n\n".join(entries))
    return "\n\n".join(sections)
