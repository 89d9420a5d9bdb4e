"""The findings of `scan_dataset`, and their text for people."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from ..text import some

SUSPICIONS = {
    "one_class": "show a single class",
    "all_ignored": "contain only the ignore value",
    "jpeg": "are JPEGs, whose compression changes ids and colours along edges",
    "colored": "code classes by colours",
}
SHOWN = 5  # files listed for each suspicion
SHOWN_ERRORS = 50  # of a part; the JSON report holds all


@dataclass
class MasksReport:
    """The contents of the masks of one part."""

    pixels: list[int]  # of each class
    images: list[int]  # that show each class
    ignored: int = 0  # pixels
    unknown_ids: dict[str, list[int]] = field(default_factory=dict)  # mask -> ids that belong to no class
    odd: dict[str, list[str]] = field(
        default_factory=lambda: {kind: [] for kind in SUSPICIONS}
    )  # suspicion -> masks


@dataclass
class PartReport:
    """One part of a dataset. Sizes are (smallest, median, largest) of the readable images."""

    images: int | None  # None: a stream that was not read to its end
    read: int = 0
    width: tuple[int, int, int] | None = None
    height: tuple[int, int, int] | None = None
    smaller_than_crop: int = 0  # in width or height
    bad: dict[str, str] = field(default_factory=dict)  # file -> the error that would stop training
    masks: MasksReport | None = None  # only of parts with masks


@dataclass
class DatasetReport:
    """The result of `scan_dataset`. `refused` is empty if training would run to its end."""

    name: str
    crop_size: int
    id2label: dict[int, str]
    parts: dict[str, PartReport]  # "labelled" and, where they exist, "unlabelled" and "validation"
    leaks: dict[str, str]  # validation image -> training image with the same bytes
    never_labeled: list[str]  # names of the classes that no labelled image shows
    refused: list[str]  # why training would stop, one sentence each
    notes: list[str] = field(default_factory=list)  # what was assumed, and files that are not used

    def as_dict(self) -> dict:
        """The same as a dictionary for JSON."""
        return dataclasses.asdict(self)


def format_report(report: DatasetReport) -> str:
    """Sizes of the parts, a table of classes, all bad files, suspicious files, and whether training would start."""
    lines = [report.name, ""]
    for name, part in report.parts.items():
        lines.append(_sizes(name, part, report.crop_size))
    lines += ["", *_class_table(report)]
    for name, part in report.parts.items():
        lines += _errors(name, part)
    lines += _suspicions(report)
    if report.refused:
        lines += ["", "Training would stop:", *(f"  {reason}" for reason in report.refused)]
    else:
        lines += ["", "Nothing that would stop training was found."]
    return "\n".join(lines)


def _sizes(name: str, part: PartReport, crop_size: int) -> str:
    count = f"{part.read}" if part.images == part.read else f"{part.read} of {part.images or 'a stream'}"
    text = f"{name:<10}  {count} images read"
    if part.width is not None:
        text += f", {_range('wide', part.width)}, {_range('high', part.height)}"
        if part.smaller_than_crop:
            text += f"; {part.smaller_than_crop} smaller than --crop_size {crop_size}"
    if part.bad:
        text += f"; {len(part.bad)} BAD"
    return text


def _range(side: str, values: tuple[int, int, int]) -> str:
    least, median, most = values
    return f"{least} {side}" if least == most else f"{least} to {most} {side} (median {median})"


def _class_table(report: DatasetReport) -> list[str]:
    """One line per class: for each part with masks the share of its pixels, and the number of images that show it."""
    masked = {name: part.masks for name, part in report.parts.items() if part.masks is not None}
    wide = max(len("ignored"), *(len(name) for name in report.id2label.values()))
    head = f"{'id':>5}  {'class':<{wide}}" + "".join(f"  {name:>10}  in images" for name in masked)
    lines = [head]
    for i, name in report.id2label.items():
        cells = "".join(
            f"  {_share(m.pixels[i], sum(m.pixels)):>10}  {m.images[i]:>9}" for m in masked.values()
        )
        lines.append(f"{i:>5}  {name:<{wide}}{cells}")
    cells = "".join(f"  {_share(m.ignored, m.ignored + sum(m.pixels)):>10}  {'':>9}" for m in masked.values())
    return [*lines, f"{'':>5}  {'ignored':<{wide}}{cells}".rstrip()]


def _share(count: int, total: int) -> str:
    if not total or not count:
        return "-"
    percent = 100 * count / total
    return f"{percent:.2f} %" if percent >= 0.01 else "< 0.01 %"


def _errors(name: str, part: PartReport) -> list[str]:
    unknown = part.masks.unknown_ids if part.masks is not None else {}
    listed_below = tuple(f"Mask {mask} holds the class id" for mask in unknown)
    reasons = [reason for reason in part.bad.values() if not reason.startswith(listed_below)]
    lines = []
    if reasons:
        lines += ["", f"Bad {name} images ({len(reasons)}):", *_first(reasons)]
    if unknown:
        lines += ["", f"Ids without a class in {name} masks ({len(unknown)}):"]
        lines += _first([f"{mask}: {some(ids)}" for mask, ids in unknown.items()])
        lines += [
            "  Name more classes with --num_labels or --id2label, give another --ignore_index, or use --reduce_labels "
            "if 0 means 'no class'."
        ]
    return lines


def _first(entries: list[str]) -> list[str]:
    """The first entries as indented lines, and the number of the others."""
    more = [f"{len(entries) - SHOWN_ERRORS} more, all of them in the report of --output report.json"]
    return [f"  {text}" for text in entries[:SHOWN_ERRORS] + more * (len(entries) > SHOWN_ERRORS)]


def _suspicions(report: DatasetReport) -> list[str]:
    lines = list(report.notes)
    if report.never_labeled:
        lines.append(
            f"no labelled image shows {some(report.never_labeled)}: a model cannot learn a class without labels"
        )
    if report.leaks:
        pairs = [f"{file} = {other}" for file, other in report.leaks.items()]
        lines.append(f"validation images that are also training images ({len(pairs)}): {some(pairs, SHOWN)}")
    for name, part in report.parts.items():
        for kind, files in part.masks.odd.items() if part.masks is not None else ():
            if files:
                lines.append(f"{name} masks that {SUSPICIONS[kind]} ({len(files)}): {some(files, SHOWN)}")
    return ["", "Worth a look:", *(f"  {line}" for line in lines)] if lines else []
