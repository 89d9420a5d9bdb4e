"""The report of a scan, for people to read."""

from __future__ import annotations

from corrmatch_hf.data.scan import ODDITIES, DatasetReport, MasksReport, PartReport

SHOWN = 5  # files of a kind that is odd but not wrong


def scan_text(report: DatasetReport) -> str:
    """Parts, sizes, a table of classes, then all files that are bad, and what is odd."""
    lines = [report.name, ""]
    for name, part in report.parts.items():
        lines += [_sizes(name, part, report.crop_size)]
    lines += ["", *_classes(report)]
    for name, part in report.parts.items():
        lines += _wrong(name, part)
    lines += _odd(report)
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


def _classes(report: DatasetReport) -> list[str]:
    """A line for each class: share of the labelled pixels, and images that show it, in each part with masks."""
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


def _wrong(name: str, part: PartReport) -> list[str]:
    unknown = part.masks.unknown_ids if part.masks is not None else {}
    told_below = tuple(f"Mask {mask} holds the class id" for mask in unknown)
    reasons = [reason for reason in part.bad.values() if not reason.startswith(told_below)]
    lines = []
    if reasons:
        lines += ["", f"Bad {name} images ({len(reasons)}):", *(f"  {reason}" for reason in reasons)]
    if unknown:
        lines += ["", f"Ids without a class in {name} masks ({len(unknown)}):"]
        lines += [f"  {mask}: {', '.join(map(str, ids))}" for mask, ids in unknown.items()]
        lines += [
            "  Name more classes with --num_labels or --id2label, give another --ignore_index, or use --reduce_labels "
            "if 0 means 'no class'."
        ]
    return lines


def _odd(report: DatasetReport) -> list[str]:
    lines = []
    if report.never_labeled:
        lines.append(
            f"no labelled image shows {', '.join(report.never_labeled)}: a model cannot learn what it never sees"
        )
    if report.leaks:
        pairs = [f"{file} = {other}" for file, other in report.leaks.items()]
        lines.append(f"validation images that are training images, too ({len(pairs)}): {_some(pairs)}")
    for name, part in report.parts.items():
        lines += _odd_masks(name, part.masks) if part.masks is not None else []
    return ["", "Worth a look:", *(f"  {line}" for line in lines)] if lines else []


def _odd_masks(name: str, masks: MasksReport) -> list[str]:
    return [
        f"{name} masks that {ODDITIES[kind]} ({len(files)}): {_some(files)}"
        for kind, files in masks.odd.items()
        if files
    ]


def _some(files: list[str]) -> str:
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return ", ".join(files[:SHOWN]) + more
