"""Colour legends drawn with Pillow, in matplotlib's DejaVu Sans, which shows names in most scripts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
from PIL import Image, ImageDraw, ImageFont

TEXT = (32, 32, 32)
FRAME = (176, 176, 176)


class LegendEntry(NamedTuple):
    color: tuple[int, int, int]
    name: str
    note: str = ""  # stands at the right end of the column, such as a share


@lru_cache
def text_font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )


def draw_legend(
    entries: Sequence[LegendEntry],
    font_size: int,
    *,
    max_height: int | None = None,
    max_width: int | None = None,
) -> Image.Image:
    """An RGB picture of colour patches with their names.

    Args:
        max_width: as many columns as fit, at least one.
        max_height: as few columns as keep to it, at most three: a legend of very many classes gets higher
            instead.
    """
    font = text_font(font_size)
    line, patch, gap = round(font_size * 1.6), font_size, round(font_size * 0.6)
    names = [_shortened(entry.name) for entry in entries]
    note_width = max((round(font.getlength(entry.note)) for entry in entries), default=0)
    name_width = max((round(font.getlength(name)) for name in names), default=0)
    note_gap = 2 * gap if note_width else 0
    column = (
        patch + gap + name_width + note_gap + note_width + 2 * gap
    )  # the last for the distance of columns

    count = max(len(entries), 1)
    columns = 1
    if max_width is not None:
        columns = min(count, max(1, max_width // column))
    elif max_height is not None:
        columns = min(3, -(-count // max(1, (max_height - 2 * gap) // line)))
    rows = -(-count // columns)
    columns = -(-count // rows)  # none left empty

    canvas = Image.new("RGB", (columns * column + gap, rows * line + 2 * gap), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (entry, name) in enumerate(zip(entries, names, strict=True)):
        left, middle = gap + (i // rows) * column, gap + (i % rows) * line + line // 2
        top = middle - patch // 2
        draw.rectangle((left, top, left + patch - 1, top + patch - 1), fill=tuple(entry.color), outline=FRAME)
        left += patch + gap
        draw.text((left, middle), name, font=font, fill=TEXT, anchor="lm")
        if entry.note:
            right = left + name_width + note_gap + note_width
            draw.text((right, middle), entry.note, font=font, fill=TEXT, anchor="rm")
    return canvas


def _shortened(name: str, length: int = 28) -> str:
    return name if len(name) <= length else name[: length - 1].rstrip(" ,;") + "…"
