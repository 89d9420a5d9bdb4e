"""A sheet to look through: photos with their predictions and where the model is unsure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from .legend import TEXT, class_entry, draw_legend, text_font
from .overlay import blend

TITLES = ("photo", "prediction", "uncertainty")
UNSURE = "magma"  # dark where the model is certain


class SheetRow(NamedTuple):
    """A photo, its predicted classes (H, W), u (H, W) in 0..1, and a caption."""

    photo: Image.Image
    label_map: np.ndarray
    uncertainty: np.ndarray
    caption: str


def small_row(row: SheetRow, width: int = 320) -> SheetRow:
    """The row at the size of its cells, so that a sheet of many large photos needs little memory."""
    photo = row.photo
    scale = min(width / photo.width, width * 4 / 3 / photo.height)
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    label_map = Image.fromarray(row.label_map.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    uncertainty = Image.fromarray(row.uncertainty.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return SheetRow(
        photo.convert("RGB").resize(size, Image.Resampling.LANCZOS),
        np.asarray(label_map),
        np.asarray(uncertainty),
        row.caption,
    )


def contact_sheet(
    rows: Sequence[SheetRow], id2label: Mapping[int, str], palette: np.ndarray, width: int = 320
) -> Image.Image:
    """An RGB picture: under each caption photo | prediction over the photo | uncertainty; then the legends.

    Args:
        rows: of `small_row` with the same `width`; at least one.
        palette: uint8 (K, 3).
        width: of a cell in pixels.
    """
    font, gap = text_font(14), 8
    line = 24
    total = len(TITLES) * (width + gap) + gap
    heights = [line + row.photo.height + gap for row in rows]
    shown = sorted({int(c) for row in rows for c in np.unique(row.label_map)})
    legend = draw_legend([class_entry(c, id2label, palette) for c in shown], 14, max_width=total)
    canvas = Image.new("RGB", (total, line + sum(heights) + legend.height + 2 * line), "white")
    draw = ImageDraw.Draw(canvas)
    for i, title in enumerate(TITLES):
        draw.text((gap + i * (width + gap) + width // 2, line // 2), title, font=font, fill=TEXT, anchor="mm")
    top = line
    for row, height in zip(rows, heights, strict=True):
        draw.text(
            (gap, top + line // 2), _fitting(row.caption, total - 2 * gap), font=font, fill=TEXT, anchor="lm"
        )
        cells = (
            row.photo,
            blend(np.asarray(row.photo), row.label_map, palette, 0.5),
            Image.fromarray((colormaps[UNSURE](row.uncertainty)[..., :3] * 255).round().astype(np.uint8)),
        )
        for i, cell in enumerate(cells):
            canvas.paste(cell, (gap + i * (width + gap) + (width - cell.width) // 2, top + line))
        top += height
    canvas.paste(legend, (0, top))
    _draw_scale(canvas, (gap, top + legend.height), width)
    return canvas


def _fitting(text: str, width: int) -> str:
    """The end of a text that is too long: the name of a file stands there."""
    font = text_font(14)
    if font.getlength(text) <= width:
        return text
    while font.getlength(f"…{text}") > width:
        text = text[1:]
    return f"…{text}"


def _draw_scale(canvas: Image.Image, place: tuple[int, int], width: int) -> None:
    """What the colours of the uncertainty mean."""
    left, top = place
    bar = np.broadcast_to(colormaps[UNSURE](np.linspace(0, 1, width))[None, :, :3], (14, width, 3))
    canvas.paste(Image.fromarray((bar * 255).round().astype(np.uint8)), (left, top))
    draw = ImageDraw.Draw(canvas)
    draw.text((left, top + 18), "certain", font=text_font(12), fill=TEXT)
    draw.text((left + width, top + 18), "unsure", font=text_font(12), fill=TEXT, anchor="ra")
