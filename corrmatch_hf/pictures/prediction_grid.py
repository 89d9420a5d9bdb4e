"""A grid of photos with their true labels and predictions, each with its IoU in that photo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..errors import InputError
from ..evaluation.confusion_matrix import ConfusionMatrix
from .legend import TEXT, LegendEntry, class_entry, draw_legend, text_font
from .overlay import color_map

# Column -> its title; those before "prediction" are shown before it.
COLUMNS = {
    "image": "photo",
    "label": "truth",
    "supervised": "labelled photos alone",
    "prediction": "prediction",
    "pseudo_label": "pseudo-label",
}
PREDICTED = ("supervised", "prediction")  # columns with a figure under each cell, where the truth is known


def prediction_grid(
    rows: Sequence[Mapping[str, object]],
    id2label: Mapping[int, str],
    palette: np.ndarray,
    *,
    titles: Mapping[str, str] | None = None,
    cell_width: int = 360,
) -> Image.Image:
    """One row per image: photo | truth | labelled photos alone | prediction | pseudo-label; ignored pixels are white.

    Args:
        rows: each with "image" (PIL, or uint8 (H, W, 3)) and any of "label", "supervised" (the prediction of a
            model that learned from labelled photos alone), "prediction", "pseudo_label" (integers (H, W)). Columns
            without any map are left out; a missing map leaves its cell empty.
        palette: uint8 (K, 3).
        titles: of columns, where not those of `COLUMNS`.
        cell_width: width in pixels that pictures are scaled to; their height is at most 4/3 of it.

    Returns:
        An RGB image with column titles, and a legend of all classes shown.
    """
    if not rows:
        raise InputError("There is no image to show: give at least one row.")
    titles = COLUMNS | dict(titles or {})
    columns = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    font_size = max(12, cell_width // 22)
    gap, title_height = max(4, cell_width // 60), round(font_size * 2)

    cells = [[_cell(row.get(key), key, palette, cell_width) for key in columns] for row in rows]
    heights = [max(cell.height for cell in line if cell is not None) for line in cells]
    figures = [[_figure(row, key, len(palette)) for key in columns] for row in rows]
    figure_height = round(font_size * 1.5) if any(any(line) for line in figures) else 0
    width = len(columns) * (cell_width + gap) + gap
    legend = draw_legend(_classes_shown(rows, id2label, palette), font_size, max_width=width)
    width = max(width, legend.width)
    canvas = Image.new(
        "RGB",
        (width, title_height + sum(heights) + len(rows) * (gap + figure_height) + legend.height),
        "white",
    )

    draw = ImageDraw.Draw(canvas)
    for i, key in enumerate(columns):
        center = gap + i * (cell_width + gap) + cell_width // 2
        draw.text((center, title_height // 2), titles[key], font=text_font(font_size), fill=TEXT, anchor="mm")
    top = title_height
    for line, height, words in zip(cells, heights, figures, strict=True):
        for i, cell in enumerate(line):
            if cell is not None:
                left = gap + i * (cell_width + gap) + (cell_width - cell.width) // 2
                canvas.paste(cell, (left, top + (height - cell.height) // 2))
            place = gap + i * (cell_width + gap) + cell_width // 2, top + height + figure_height // 2
            draw.text(place, words[i], font=text_font(round(0.85 * font_size)), fill=TEXT, anchor="mm")
        top += height + figure_height + gap
    canvas.paste(legend, (0, top))
    return canvas


def _figure(row: Mapping, key: str, count: int) -> str:
    """The mean IoU of a predicted map over the classes in it or in the truth, as text; "" where it is not known."""
    truth, found = row.get("label"), row.get(key)
    if key not in PREDICTED or truth is None or found is None:
        return ""
    truth, found = np.asarray(truth), np.asarray(found)
    known = (truth >= 0) & (truth < count) & (found >= 0) & (found < count)
    matrix = ConfusionMatrix(count)
    matrix.update(*(torch.from_numpy(ids[known].astype(np.int64)) for ids in (found, truth)))
    mean_iou = matrix.compute()["mean_iou"]
    return "" if mean_iou is None else f"IoU {100 * mean_iou:.0f} %"


def _cell(content: object, key: str, palette: np.ndarray, width: int) -> Image.Image | None:
    if content is None:
        return None
    if key == "image":
        picture = content if isinstance(content, Image.Image) else Image.fromarray(np.asarray(content))
        picture, how = picture.convert("RGB"), Image.Resampling.LANCZOS
    else:  # nearest, since other colours belong to no class
        picture, how = Image.fromarray(color_map(np.asarray(content), palette)), Image.Resampling.NEAREST
    scale = min(width / picture.width, width * 4 / 3 / picture.height)
    picture = picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), how
    )
    if key != "image":  # a thin frame around white edges
        ImageDraw.Draw(picture).rectangle(
            (0, 0, picture.width - 1, picture.height - 1), outline=(128, 128, 128)
        )
    return picture


def _classes_shown(
    rows: Sequence[Mapping], id2label: Mapping[int, str], palette: np.ndarray
) -> list[LegendEntry]:
    """Legend entries of the classes in any map, by id, and of ignored pixels."""
    maps = [row[key] for row in rows for key in COLUMNS if key != "image" and row.get(key) is not None]
    ids = sorted({c for m in maps for c in np.unique(np.asarray(m)).tolist()})
    classes = [c for c in ids if 0 <= c < len(palette)]
    return [class_entry(c, id2label, palette) for c in classes + [-1] * (len(classes) < len(ids))]
