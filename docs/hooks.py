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
from typing import Any, get_type_hints

import corrmatch_hf
from corrmatch_hf.commands import train
from corrmatch_hf.methods import METHODS
from corrmatch_hf.options import GROUPS, choices_of, describe_bounds

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
    return MARKER.sub(
        lambda match: {"options": options, "citation": citation, "api": api}[match[1]](match[2]), markdown
    )


def on_page_content(html: str, **_: Any) -> str:
    """Shows the cross-references of docstrings in the style of transformers, [`Name`], as plain names."""
    return re.sub(r"\[(<code>[^<]*</code>)\]", r"\1", html)


def options(what: str) -> str:
    """Option tables in Markdown: of a method, of all of `train`, or of one group of it."""
    if what in METHODS:
        groups = grouped(METHODS[what].Options)
        own = groups.pop("", [])  # options of one method name no group
        shared = [row for rows in groups.values() for row in rows]
        parts = [table(own)] if own else []
        return "\n\n".join([*parts, "Shared with other methods:", table(shared)])
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for cls in train.GROUPS:
        for group, rows in grouped(cls).items():
            groups[group] += rows
    if what.startswith("group "):
        return table(groups[what.removeprefix("group ")])
    return "\n\n".join(f"## {group}\n\n{table(rows)}" for group, rows in groups.items() if rows)


def grouped(cls: type) -> dict[str, list[str]]:
    """The rows of a dataclass's options by heading, in the order of declaration."""
    hints, groups = get_type_hints(cls), {}
    for spec in dataclasses.fields(cls):
        groups.setdefault(spec.metadata.get("group", ""), []).append(row(spec, hints[spec.name]))
    return groups


def table(rows: list[str]) -> str:
    return "\n".join(["| option | default | |", "|---|---|---|", *rows])


def row(spec: dataclasses.Field, hint: Any) -> str:
    """One line of a table; options of the short `--help` are bold."""
    name = f"**`--{spec.name}`**" if spec.metadata.get("common") else f"`--{spec.name}`"
    default = spec.default if spec.default is not dataclasses.MISSING else spec.default_factory()
    help_text = re.sub(r"(--\w+)", r"`\1`", spec.metadata.get("help", "").rstrip(".") + ".")
    cells = (name, "" if default is None else f"`{default}`", f"{help_text} {values(spec, hint)}")
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def values(spec: dataclasses.Field, hint: Any) -> str:
    """The choices or the range of an option, in italics; nothing where its default shows what it accepts."""
    if choices := choices_of(hint):
        return f"*One of* {', '.join(f'`{choice}`' for choice in choices)}."
    bounds = spec.metadata.get("bounds")
    return f"*{describe_bounds(bounds).capitalize()}.*" if bounds else ""


def citation(method: str) -> str:
    cited = METHODS[method].citation
    return f"{cited.text}.\n\n```bibtex\n{cited.bibtex}\n```"


def api(_: str) -> str:
    """One entry for each public name, by the place where it is defined; names not in `API` come last."""
    listed = {name for names in API.values() for name in names}
    others = [
        name for name in corrmatch_hf.__all__ if name not in listed and not re.match(r"_|.*Options$", name)
    ]
    sections = []
    for title, names in {**API, "Further names": others}.items():
        entries = []
        for name in names:
            thing = getattr(corrmatch_hf, name, None) or getattr(corrmatch_hf.methods, name)
            entry = f"::: {thing.__module__}.{thing.__qualname__}"
            if name == "SemiSupervisedTrainer":  # whose base class is not public
                members = [
                    "train",
                    "evaluate",
                    "save_checkpoint",
                    "save_model",
                    "full_configuration",
                    "push_to_hub",
                ]
                entry += f"\n    options:\n      members: {members}\n      inherited_members: {members}"
            entries.append(entry)
        sections.append(f"## {title}\n\n" + "\n\n".join(entries))
    return "\n\n".join(sections)
