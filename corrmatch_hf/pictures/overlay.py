"""A label map as a palette image, and as an overlay on its photo."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

from ..errors import InputError
from .legend import LegendEntry, class_entry, draw_legend
from .palette import IGNORED


def mask_image(label_map: np.ndarray, palette: np.ndarray) -> Image.Image:
    """The map as an image whose pixel values are the class ids.

    Args:
        label_map: integers (H, W) in 0..255; ids without a colour in the palette, such as 255, are white.
        palette: uint8 (K, 3).

    Returns:
        A palette image (mode "P"); for more than 256 classes a 16-bit image (mode "I;16").
    """
    label_map = np.asarray(label_map)
    if len(palette) > 256:
        return Image.fromarray(label_map.astype(np.uint16))
    if label_map.size and not 0 <= label_map.min() <= label_map.max() <= 255:
        raise InputError(
            f"The label map contains ids from {label_map.min()} to {label_map.max()}: palette images allow "
            "0 to 255; map ignored pixels to 255."
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
    """The photo with every class in its colour, and beside it a legend of its classes with their shares.

    Args:
        image: a PIL image or uint8 (H, W, 3).
        label_map: integers (H, W); pixels with other ids than those of classes show the photo.
        palette: uint8 (K, 3).
        alpha: from 0 (only the photo) to 1 (only the colours). Borders between classes are opaque unless it is 0.

    Returns:
        An RGB image, wider than the photo by the legend, and higher if the legend is.
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
        raise InputError(
            f"alpha is {alpha}: it must lie between 0 (only the photo) and 1 (only the colours)."
        )

    picture = blend(photo, label_map, palette, alpha)

    # Readable, and in proportion to the photo; the legend of a thumbnail is higher than the photo.
    font_size = max(12, round(min(picture.size) / 26))
    entries = class_shares(label_map, id2label, palette)
    legend = draw_legend(entries, font_size, max_height=max(picture.height, 16 * font_size))
    canvas = Image.new("RGB", (picture.width + legend.width, max(picture.height, legend.height)), "white")
    canvas.paste(picture, (0, 0))
    canvas.paste(legend, (picture.width, 0))
    return canvas


def blend(photo: np.ndarray, label_map: np.ndarray, palette: np.ndarray, alpha: float) -> Image.Image:
    """The photo, uint8 (H, W, 3), with every class of (H, W) in its colour; arguments as for `overlay`."""
    weight = np.where(_borders(label_map), alpha and 1.0, alpha)
    weight = np.where((label_map >= 0) & (label_map < len(palette)), weight, 0.0)[..., None]
    blended = photo * (1 - weight) + color_map(label_map, palette) * weight
    return Image.fromarray(blended.round().astype(np.uint8))


def color_map(label_map: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): each pixel in the colour of its class, other ids white."""
    colors = np.concatenate([palette, np.array([IGNORED], dtype=np.uint8)])
    return colors[np.where((label_map >= 0) & (label_map < len(palette)), label_map, len(palette))]


def class_shares(
    label_map: np.ndarray, id2label: Mapping[int, str], palette: np.ndarray
) -> list[LegendEntry]:
    """Legend entries of the classes in the map, largest first, and of ignored pixels."""
    ids, counts = np.unique(label_map, return_counts=True)
    is_class = (ids >= 0) & (ids < len(palette))
    entries = [
        class_entry(ids[i], id2label, palette, _percent(counts[i] / label_map.size))
        for i in np.argsort(-counts, kind="stable").tolist()
        if is_class[i]
    ]
    if ignored := counts[~is_class].sum():
        entries.append(class_entry(-1, id2label, palette, _percent(ignored / label_map.size)))
    return entries


def _percent(share: float) -> str:
    return "<0.1%" if share < 0.0005 else f"{share:.1%}"


def _borders(label_map: np.ndarray) -> np.ndarray:
    """True on the pixels whose right or lower neighbour has another id."""
    borders = np.zeros(label_map.shape, dtype=bool)
    borders[:, :-1] |= label_map[:, :-1] != label_map[:, 1:]
    borders[:-1] |= label_map[:-1] != label_map[1:]
    return borders
