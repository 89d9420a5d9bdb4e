"""Legends of classes, drawn with Pillow in matplotlib's DejaVu Sans, which covers most scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .palette import IGNORED

TEXT = (32, 32, 32)
FRAME = (176, 176, 176)
MAX_NAME = 28  # characters


class LegendEntry(NamedTuple):
    color: tuple[int, int, int]
    name: str
    note: str = ""  # right-aligned text, such as a percentage


def class_entry(
    class_id: int, id2label: Mapping[int, str], palette: np.ndarray, note: str = ""
) -> LegendEntry:
    """The entry of a class of the (K, 3) palette; the one of ignored pixels for any other id."""
    if 0 <= class_id < len(palette):
        return LegendEntry(tuple(palette[class_id].tolist()), id2label.get(class_id, str(class_id)), note)
    return LegendEntry(IGNORED, "ignored", note)


@lru_cache
def text_font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_font_file()), size)


def _font_file() -> Path:
    """matplotlib's font. Its package is only imported (half a second) where its data lie elsewhere."""
    font = Path("fonts", "ttf", "DejaVuSans.ttf")
    spec = find_spec("matplotlib")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder, "mpl-data", font)).is_file():
            return path
    import matplotlib

    return Path(matplotlib.get_data_path(), font)


def draw_legend(
    entries: Sequence[LegendEntry],
    font_size: int,
    *,
    max_height: int | None = None,
    max_width: int | None = None,
) -> Image.Image:
    """An RGB picture of colour patches with names.

    Args:
        max_width: use as many columns as fit, at least one.
        max_height: use as few columns as fit, at most three; a legend of more classes is higher.
    """
    font = text_font(font_size)
    line, patch, gap = round(font_size * 1.6), font_size, round(font_size * 0.6)
    names = [shortened(entry.name) for entry in entries]
    note_width = max((round(font.getlength(entry.note)) for entry in entries), default=0)
    name_width = max((round(font.getlength(name)) for name in names), default=0)
    note_gap = 2 * gap if note_width else 0
    column = patch + gap + name_width + note_gap + note_width + 2 * gap  # the last between columns

    count = max(len(entries), 1)
    columns = 1
    if max_width is not None:
        columns = min(count, max(1, max_width // column))
    elif max_height is not None:
        columns = min(3, -(-count // max(1, (max_height - 2 * gap) // line)))
    rows = -(-count // columns)
    columns = -(-count // rows)  # without empty columns

    canvas = Image.new("RGB", (columns * column + gap, rows * line + 2 * gap), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (entry, name) in enumerate(zip(entries, names, strict=True)):
        left, middle = gap + (i // rows) * column, gap + (i % rows) * line + line // 2
        top = middle - patch // 2
        draw.rectangle((left, top, left + patch - 1, top + patch - 1), fill=entry.color, outline=FRAME)
        left += patch + gap
        draw.text((left, middle), name, font=font, fill=TEXT, anchor="lm")
        if entry.note:
            right = left + name_width + note_gap + note_width
            draw.text((right, middle), entry.note, font=font, fill=TEXT, anchor="rm")
    return canvas


def shortened(name: str) -> str:
    """A class name of at most MAX_NAME characters."""
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1].rstrip(" ,;") + "…"
