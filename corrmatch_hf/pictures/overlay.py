"""A label map as a palette image, and laid over its photo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import InputError
from .palette import IGNORED


def mask_image(label_map: np.ndarray, palette: np.ndarray) -> Image.Image:
    """The map as an image whose pixel values are the class ids.

    Args:
        label_map: integers (H, W) in 0..255; ids without a colour in the palette, such as 255, show white.
        palette: uint8 (K, 3).

    Returns:
        A palette image (mode "P"); with more than 256 classes, which no palette holds, a 16-bit one ("I;16").
    """
    label_map = np.asarray(label_map)
    if len(palette) > 256:
        return Image.fromarray(label_map.astype(np.uint16))
    if label_map.size and not 0 <= label_map.min() <= label_map.max() <= 255:
        raise InputError(
            f"The label map holds ids from {label_map.min()} to {label_map.max()}: a palette image takes "
            "0 to 255; map the ignored pixels to 255."
        )
    image = Image.fromarray(label_map.astype(np.uint8))
    colors = np.full((256, 3), IGNORED, dtype=np.uint8)
    colors[: len(palette)] = palette
    image.putpalette(colors.tobytes())
    return image


def overlay(
    image: Image.Image | np.ndarray,
    label_map: np.ndarray,
    id2label: Mapping[int, str],
    palette: np.ndarray,
    alpha: float = 0.5,
) -> Image.Image:
    """The photo with every class in its colour, and beside it a legend of the classes in it with their share.

    Args:
        image: a PIL image or uint8 (H, W, 3).
        label_map: integers (H, W); ids that are no class are left as in the photo.
        palette: uint8 (K, 3).
        alpha: from 0, the photo alone, to 1, the colours alone. Class borders are drawn opaque in any case
            but 0.

    Returns:
        An RGB image, as high as the photo or higher and wider by the legend.
    """
    photo = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    photo = np.asarray(photo.convert("RGB"))
    label_map = np.asarray(label_map)
    if label_map.shape != photo.shape[:2]:
        raise InputError(
            f"The label map is {label_map.shape} but the photo {photo.shape[:2]} (height, width): they must "
            "be equal; predict at the size of the photo."
        )
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha}: it must lie between 0 (photo alone) and 1 (colours alone).")

    weight = np.where(_borders(label_map), alpha and 1.0, alpha)
    weight = np.where((label_map >= 0) & (label_map < len(palette)), weight, 0.0)[..., None]
    blended = photo * (1 - weight) + color_map(label_map, palette) * weight
    picture = Image.fromarray(blended.round().astype(np.uint8))

    # Large enough to read, in proportion to the photo; a photo of thumbnail size gets a legend higher than
    # itself.
    font_size = max(12, round(min(picture.size) / 26))
    entries = class_shares(label_map, id2label, palette)
    legend = draw_legend(entries, font_size, max_height=max(picture.height, 16 * font_size))
    canvas = Image.new("RGB", (picture.width + legend.width, max(picture.height, legend.height)), "white")
    canvas.paste(picture, (0, 0))
    canvas.paste(legend, (picture.width, 0))
    return canvas


def color_map(label_map: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): each pixel in the colour of its class, those of no class white."""
    colors = np.concatenate([palette, np.array([IGNORED], dtype=np.uint8)])
    return colors[np.where((label_map >= 0) & (label_map < len(palette)), label_map, len(palette))]


def class_shares(
    label_map: np.ndarray, id2label: Mapping[int, str], palette: np.ndarray
) -> list[LegendEntry]:
    """Legend of the classes in the map, the largest first, then what is ignored."""
    ids, counts = np.unique(label_map, return_counts=True)
    entries, ignored = [], 0
    for c, n in sorted(zip(ids.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]):
        if 0 <= c < len(palette):
            entries.append(
                LegendEntry(tuple(palette[c].tolist()), id2label.get(c, str(c)), _percent(n / label_map.size))
            )
        else:
            ignored += n
    if ignored:
        entries.append(LegendEntry(IGNORED, "ignored", _percent(ignored / label_map.size)))
    return entries


def _percent(share: float) -> str:
    return "<0.1%" if share < 0.0005 else f"{share:.1%}"


def _borders(label_map: np.ndarray) -> np.ndarray:
    """True on the pixels whose right or lower neighbour has another id."""
    borders = np.zeros(label_map.shape, dtype=bool)
    borders[:, :-1] |= label_map[:, :-1] != label_map[:, 1:]
    borders[:-1] |= label_map[:-1] != label_map[1:]
    return borders


# -------------------- Colour legends drawn with Pillow, in matplotlib's DejaVu Sans, which shows names in most scripts.


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
