"""A generated dataset of five classes that needs no download: patterned shapes on a blotchy background.

The class follows from outline and pattern (disc with rings, square with stripes, triangle with dots, cross with
checks). The hue is a hint, weakened by shade, light, colour cast and gamma, which vary from image to image, like size,
rotation and noise. With a dozen labelled images a small network learns the hint; many unlabelled images with strong
colour augmentation teach it the rest.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Iterable

import datasets
import numpy as np
from PIL import Image

from ...errors import InputError
from ..semi_dataset import SemiDataset

ID2LABEL = {0: "background", 1: "disc", 2: "square", 3: "triangle", 4: "cross"}
HUES = {1: 0.0, 2: 0.33, 3: 0.62, 4: 0.15}  # red, green, blue, yellow
SPLITS = ("labeled", "unlabeled", "validation")


def synthetic_semi_dataset(
    labeled: int = 12, unlabeled: int = 400, validation: int = 100, image_size: int = 96, seed: int = 0
) -> SemiDataset:
    """The built-in dataset, in memory. The validation images are the same for every `seed`; four or more labelled
    images contain every class."""
    if min(labeled, unlabeled, validation) < 0 or labeled == 0:
        raise InputError(
            f"The synthetic set cannot have {labeled} labelled, {unlabeled} unlabelled and {validation} "
            "validation images: give at least one labelled and no negative number."
        )
    if image_size < 32:
        raise InputError(f"The synthetic images cannot be {image_size} pixels wide: give at least 32.")
    return SemiDataset(
        labeled=_dataset("labeled", range(labeled), image_size, seed),
        unlabeled=_dataset("unlabeled", range(unlabeled), image_size, seed) if unlabeled else None,
        validation=_dataset("validation", range(validation), image_size, 0) if validation else None,
        id2label=dict(ID2LABEL),
        name="synthetic",
    )


def synthetic_image(
    split: str, index: int, image_size: int = 96, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 picture and (H, W) uint8 class ids, determined by the arguments."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    axis = (np.arange(image_size, dtype=np.float32) + 0.5) / image_size
    y, x = axis[:, None], axis[None, :]

    picture = _ground(rng, image_size)
    label = np.zeros((image_size, image_size), dtype=np.uint8)
    for thing in range(rng.integers(2, 5)):
        class_id = 1 + index % 4 if thing == 0 else int(rng.integers(1, 5))
        radius, angle = rng.uniform(0.15, 0.3), rng.uniform(0, 2 * np.pi)
        center_y, center_x = rng.uniform(0.1, 0.9, 2)
        reach = 1.3 * radius  # beyond every outline
        rows, columns = (
            slice(max(int((c - reach) * image_size), 0), int((c + reach) * image_size) + 1)
            for c in (center_y, center_x)
        )
        dy, dx = (y[rows] - center_y) / radius, (x[:, columns] - center_x) / radius
        u, v = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
        outside, pattern = _thing(class_id, u, v, rng.uniform(1.4, 2.0), rng.uniform(0, 2 * np.pi))
        cover = np.clip(0.5 - outside * radius * image_size, 0, 1)  # outline, anti-aliased over one pixel
        first, second = _thing_colors(class_id, rng)
        paint = second + (first - second) * pattern[..., None]
        around = picture[rows, columns]
        around += (paint - around) * cover[..., None]
        label[rows, columns][cover > 0.5] = class_id

    # Light from one side, a colour cast, a camera's gamma, noise.
    direction = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.5) * (np.cos(direction) * (x - 0.5) + np.sin(direction) * (y - 0.5)) * 2
    picture *= light[..., None] * rng.uniform(0.75, 1.15, 3).astype(np.float32)
    picture = np.clip(picture, 0, 1) ** np.float32(rng.uniform(0.6, 1.6))
    picture += rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(0.01, 0.05))
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8), label


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """(H, W, 3) float32: two colours mixed by coarse and fine blotches."""
    mix = np.zeros((size, size), dtype=np.float32)
    for cells, weight in ((4, 0.5), (int(rng.integers(8, 24)), rng.uniform(0.1, 0.5))):
        noise = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        mix += weight * np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC))
    first, second = _two_colors(rng)
    second += np.float32(0.6) * (first - second)  # fainter than any pattern
    return second + (first - second) * np.clip(mix, 0, 1)[..., None]


def _two_colors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two random colours whose brightness differs enough for a visible pattern."""
    while True:
        first, second = rng.random((2, 3), dtype=np.float32)
        if abs(first.mean() - second.mean()) > 0.3:
            return first, second


def _thing_colors(class_id: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A bright and a dark shade of the class's hue, in random order."""
    hue = (HUES[class_id] + rng.normal(0, 0.06)) % 1
    shades = [
        colorsys.hsv_to_rgb(hue, rng.uniform(0.3, 0.9), rng.uniform(low, high))
        for low, high in ((0.75, 1.0), (0.25, 0.6))
    ]
    first, second = np.array(shades, dtype=np.float32)[rng.permutation(2)]
    return first, second


def _thing(
    class_id: int, u: np.ndarray, v: np.ndarray, frequency: float, phase: float
) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance to the outline in radii (negative inside), and the pattern in 0..1, at each (u, v)."""
    turn = 2 * np.pi * frequency
    if class_id == 1:
        distance = np.hypot(u, v)
        outside, wave = distance - 1, np.sin(turn * distance + phase)
    elif class_id == 2:
        outside, wave = np.maximum(abs(u), abs(v)) - 0.85, np.sin(turn * u + phase)
    elif class_id == 3:
        outside = np.maximum(v, 0.866 * abs(u) - 0.5 * v) - 0.58
        wave = np.cos(turn * u) + np.cos(turn * v + phase) - 0.7
    else:
        arms = np.minimum(np.maximum(abs(u) - 1, abs(v) - 0.36), np.maximum(abs(u) - 0.36, abs(v) - 1))
        outside, wave = arms, 2 * np.sin(turn * u) * np.sin(turn * v + phase)
    return outside.astype(np.float32), np.clip(0.5 + 1.5 * wave, 0, 1).astype(np.float32)


def _dataset(split: str, indices: Iterable[int], size: int, seed: int) -> datasets.Dataset:
    columns: dict[str, list] = {"image": [], "label": [], "file": []}
    for index in indices:
        image, label = synthetic_image(split, index, size, seed)
        name = f"synthetic-{split}-{seed}-{index:05d}"
        columns["image"].append({"bytes": _png(image), "path": f"{name}.png"})
        columns["label"].append({"bytes": _png(label), "path": f"{name}-mask.png"})
        columns["file"].append(f"{name}.png")
    features = {"image": datasets.Image(), "label": datasets.Image(), "file": datasets.Value("string")}
    if split == "unlabeled":
        del columns["label"], features["label"]
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
