"""One colour per class, the same in all pictures. White is reserved for ignored pixels."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

IGNORED = (255, 255, 255)


def class_palette(
    id2label: Mapping[int, str], colors: Sequence[Sequence[int]] | np.ndarray | None = None
) -> np.ndarray:
    """uint8 (K, 3) RGB colours: `colors` of the dataset if given, else fixed ones that are easy to distinguish.

    A class named "background" is black. The fixed colours of K classes are the first K of those of K + 1.

    Raises:
        ValueError: `colors` is not (K, 3) with values 0..255.
    """
    count = len(id2label)
    if colors is None:
        palette = _distinct_colors(count).copy()
        palette[[id2label[c].lower() == "background" for c in range(count)]] = 0
        return palette
    given = np.asarray(colors)
    if given.shape != (count, 3) or given.min() < 0 or given.max() > 255:
        raise ValueError(
            f"The colours have shape {given.shape}: give one (red, green, blue) of 0 to 255 for each of the "
            f"{count} classes."
        )
    return given.astype(np.uint8)


@lru_cache(maxsize=8)
def _distinct_colors(count: int) -> np.ndarray:
    """(count, 3) uint8. Farthest-point sampling in Oklab: each colour is as far as possible from all previous ones."""
    levels = np.arange(0, 256, 15)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _oklab(rgb)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    # Neither too dark, pale or grey to be seen on a photo, nor so bright that it hides the photo.
    usable = (lab[:, 0] > 0.42) & (lab[:, 0] < 0.88) & (chroma > 0.07) & (chroma < 0.2)
    rgb, lab = rgb[usable], lab[usable]

    chosen = [int(np.abs(rgb - (45, 120, 210)).sum(1).argmin())]  # the first one is blue
    distance = np.linalg.norm(lab - lab[chosen[0]], axis=1)
    for _ in range(count - 1):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    return rgb[chosen].astype(np.uint8)


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """(N, 3) sRGB in 0..255 -> Oklab, in which distance is perceived difference (Björn Ottosson, 2020)."""
    c = rgb / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    lms = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(lms) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )
