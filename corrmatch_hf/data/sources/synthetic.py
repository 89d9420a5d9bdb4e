"""A generated dataset of five classes that needs no download: small aerial pictures of fields with roads, houses,
trees and water.

The class follows from shape and texture (strips with a dashed line, roofs with a ridge, round crowns, waves). Colours
are a hint that changes from picture to picture: four seasons, several roofs, waters and road surfaces, the sun's
direction, light, colour cast, gamma and noise. A dozen labelled pictures show few of these; many unlabelled ones with
strong colour augmentation teach a small network the rest.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Iterable
from typing import NamedTuple

import datasets
import numpy as np
from PIL import Image

from ...errors import InputError
from ..semi_dataset import SemiDataset

ID2LABEL = {0: "water", 1: "field", 2: "house", 3: "road", 4: "tree"}  # in the palette's order of colours
WATER, FIELD, HOUSE, ROAD, TREE = ID2LABEL
SPLITS = ("labeled", "unlabeled", "validation")
# Hue, saturation and value of two shades of the ground, and of leaves: spring, summer, autumn, winter.
SEASONS = (
    ((0.27, 0.45, 0.62), (0.22, 0.50, 0.72), (0.34, 0.60, 0.34)),
    ((0.13, 0.45, 0.80), (0.16, 0.40, 0.70), (0.28, 0.55, 0.36)),
    ((0.09, 0.45, 0.55), (0.07, 0.40, 0.45), (0.07, 0.75, 0.62)),
    ((0.60, 0.05, 0.95), (0.58, 0.08, 0.85), (0.38, 0.30, 0.38)),
)
ROOFS = ((0.02, 0.65, 0.65), (0.99, 0.55, 0.45), (0.93, 0.40, 0.58))
WATERS = ((0.56, 0.60, 0.62), (0.52, 0.50, 0.52), (0.61, 0.60, 0.42))
ROADS = ((0.6, 0.04, 0.48), (0.6, 0.03, 0.34))
SHORE = (0.11, 0.30, 0.75)
SHADOW = 0.72  # of the light


def synthetic_semi_dataset(
    labeled: int = 12,
    unlabeled: int = 400,
    validation: int = 100,
    image_size: int = 96,
    seed: int = 0,
    diagnosis: bool = False,
) -> SemiDataset:
    """The built-in dataset, in memory. The validation images are the same for every `seed`; four or more labelled
    images contain every class. With `diagnosis`, the masks of the unlabelled images are there for counting."""
    if min(labeled, unlabeled, validation) < 0 or labeled == 0:
        raise InputError(
            f"The synthetic set cannot have {labeled} labelled, {unlabeled} unlabelled and {validation} "
            "validation images: give at least one labelled and no negative number."
        )
    if image_size < 32:
        raise InputError(f"The synthetic images cannot be {image_size} pixels wide: give at least 32.")
    pool = _dataset("unlabeled", range(unlabeled), image_size, seed) if unlabeled else None
    return SemiDataset(
        labeled=_dataset("labeled", range(labeled), image_size, seed),
        unlabeled=pool and pool.remove_columns("label"),
        diagnosis=pool if diagnosis else None,
        validation=_dataset("validation", range(validation), image_size, 0) if validation else None,
        id2label=dict(ID2LABEL),
        name="synthetic",
    )


def synthetic_image(
    split: str, index: int, image_size: int = 96, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 picture and (H, W) uint8 class ids, determined by the arguments."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    scene = _Scene(rng, image_size)
    # What is drawn later covers what is below. One thing is certain, by turns; the others may be there, too.
    for turn, draw in enumerate((_water, _road, _houses, _trees)):
        if rng.random() < 0.55 or turn == index % 4:
            draw(scene)

    # Light from the sun's side; then weather and camera: haze, brightness, faded colours, a cast, gamma and noise.
    light = 1 + rng.uniform(0, 0.35) * (scene.sun[0] * (scene.y - 0.5) + scene.sun[1] * (scene.x - 0.5)) * 2
    picture = scene.picture * light[..., None]
    gray = picture.mean(axis=2, keepdims=True)
    picture = gray + np.float32(rng.uniform(0.2, 1.3)) * (picture - gray)
    picture = 0.5 + np.float32(rng.uniform(0.55, 1.2)) * (picture - 0.5)
    picture *= np.float32(rng.uniform(0.6, 1.2)) * rng.uniform(0.85, 1.12, 3).astype(np.float32)
    picture = np.clip(picture, 0, 1) ** np.float32(rng.uniform(0.8, 1.3))
    picture += rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(0.005, 0.025))
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8), scene.label


class _Scene:
    """A field without anything on it.

    Attributes:
        picture: float32 (H, W, 3), 0..1.
        label: uint8 (H, W).
        y, x: (H, 1) and (1, W) places of the pixels, 0..1.
        grain: float32 (H, W), fine noise of 0..1.
        sun: (y, x), the direction that light comes from.
    """

    def __init__(self, rng: np.random.Generator, size: int):
        self.rng, self.size = rng, size
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size
        self.y, self.x = axis[:, None], axis[None, :]
        angle = rng.uniform(0, 2 * np.pi)
        self.sun = np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)
        self.grain = self.noise(48)
        first, second, self.leaves = SEASONS[rng.integers(len(SEASONS))]
        mix = 0.6 * self.noise(5) + 0.4 * self.noise(24)
        if rng.random() < 0.5:  # furrows
            along, _ = _turned(rng.uniform(0, np.pi), self.y, self.x)
            mix += 0.12 * np.sin(2 * np.pi * rng.uniform(12, 20) * along)
        one, other = self.color(first), self.color(second)
        self.picture = other + (one - other) * np.clip(mix, 0, 1)[..., None]
        self.label = np.full((size, size), FIELD, dtype=np.uint8)

    def noise(self, cells: int) -> np.ndarray:
        """(H, W) float32 of 0..1, with blotches of a `cells`-th of the picture."""
        small = Image.fromarray(self.rng.random((cells, cells), dtype=np.float32))
        return np.asarray(small.resize((self.size, self.size), Image.Resampling.BICUBIC))

    def color(self, hsv: tuple[float, float, float]) -> np.ndarray:
        """(3,) RGB near a hue, saturation and value."""
        hue, saturation, value = self.rng.normal(hsv, 0.03)
        rgb = colorsys.hsv_to_rgb(hue % 1, np.clip(saturation, 0, 1), np.clip(value, 0, 1))
        return np.array(rgb, dtype=np.float32)

    def window(self, center: np.ndarray, reach: float) -> _Window:
        rows, columns = (
            slice(max(int((c - reach) * self.size), 0), max(int((c + reach) * self.size) + 1, 0))
            for c in center
        )
        dy, dx = self.y[rows] - np.float32(center[0]), self.x[:, columns] - np.float32(center[1])
        return _Window((rows, columns), dy, dx)

    def cover(self, outside: np.ndarray) -> np.ndarray:
        """How much of each pixel a thing covers, by the distance to its outline (negative inside)."""
        return np.clip(0.5 - outside * self.size, 0, 1)

    def paint(
        self, place: tuple[slice, slice], outside: np.ndarray, paint: np.ndarray, class_id: int | None = None
    ) -> None:
        """Draw a thing of a colour (3,) or colours (h, w, 3); without a class it is a detail of what is there."""
        cover = self.cover(outside)
        around = self.picture[place]
        around += (paint - around) * cover[..., None]
        if class_id is not None:
            self.label[place][cover > 0.5] = class_id

    def shade(self, place: tuple[slice, slice], outside: np.ndarray, but: int) -> None:
        """Throw a shadow, but not on things of the same class."""
        dark = self.cover(outside) * (self.label[place] != but)
        self.picture[place] *= (1 - (1 - SHADOW) * dark)[..., None]

    def free_place(self) -> np.ndarray:
        """(y, x) of a place with nothing on it, if there is one."""
        for _ in range(20):
            place = self.rng.uniform(0.08, 0.92, 2)
            if self.is_on(place, FIELD):
                break
        return place

    def is_on(self, place: np.ndarray, *class_ids: int) -> bool:
        row, column = np.clip(place * self.size, 0, self.size - 1).astype(int)
        return self.label[row, column] in class_ids


class _Window(NamedTuple):
    """A part of a scene around a centre: its slices, and (h, 1) and (1, w) distances from the centre."""

    place: tuple[slice, slice]
    dy: np.ndarray
    dx: np.ndarray


def _turned(angle: float, dy: np.ndarray, dx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along a direction, and across it."""
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cosine * dx + sine * dy, cosine * dy - sine * dx


def _water(scene: _Scene) -> None:
    rng = scene.rng
    radius = rng.uniform(0.22, 0.36)
    place, dy, dx = scene.window(rng.uniform(0.1, 0.9, 2), 1.55 * radius)
    around = np.arctan2(dy, dx)
    bumpy = np.full_like(around, radius)
    for bumps in (2, 3):
        bumpy *= 1 + rng.uniform(0, 0.2) * np.cos(bumps * around + rng.uniform(0, 2 * np.pi))
    outside = np.hypot(dy, dx) - bumpy
    along, _ = _turned(rng.uniform(0, np.pi), dy, dx)
    blotches = scene.noise(5)[place]
    waves = 0.045 * np.sin(2 * np.pi * 13 * along + 3 * blotches) + 0.1 * blotches
    scene.paint(place, outside - 0.015, scene.color(SHORE))
    scene.paint(place, outside, scene.color(WATERS[rng.integers(len(WATERS))]) + waves[..., None], WATER)


def _road(scene: _Scene) -> None:
    rng = scene.rng
    place, dy, dx = scene.window(rng.uniform(0.2, 0.8, 2), 1)
    along, across = _turned(rng.uniform(0, np.pi), dy, dx)
    beside = abs(across - np.float32(rng.uniform(-0.6, 0.6)) * along**2)
    width = rng.uniform(0.06, 0.09)
    surface = scene.color(ROADS[rng.integers(len(ROADS))])
    line = np.clip(surface + 0.4, 0, 1)
    scene.paint(place, beside - width, surface + 0.08 * (scene.grain[place][..., None] - 0.5), ROAD)
    dashes = np.where(np.sin(2 * np.pi * 7 * along) > -0.2, beside - 0.008, 1)
    scene.paint(place, dashes, line)
    scene.paint(place, abs(beside - 0.8 * width) - 0.005, line)


def _houses(scene: _Scene) -> None:
    rng = scene.rng
    angle, roof = rng.uniform(0, np.pi), scene.color(ROOFS[rng.integers(len(ROOFS))])
    _, sunny = _turned(angle, *scene.sun)
    for _ in range(rng.integers(1, 4)):
        half_length, half_width = rng.uniform(0.11, 0.16), rng.uniform(0.08, 0.11)
        place, dy, dx = scene.window(scene.free_place(), 0.25)

        def outside(dy: np.ndarray, dx: np.ndarray, length=half_length, width=half_width) -> np.ndarray:
            along, across = _turned(angle, dy, dx)
            return np.maximum(abs(along) - length, abs(across) - width)

        away = 0.045 * scene.sun
        scene.shade(place, outside(dy + away[0], dx + away[1]), HOUSE)
        along, across = _turned(angle, dy, dx)
        tiles = 0.04 * np.sign(np.sin(2 * np.pi * across / 0.03))
        slope = 1 + 0.28 * np.sign(across) * sunny  # the side towards the sun is brighter
        lit = roof * (slope + tiles)[..., None]
        scene.paint(place, outside(dy, dx), lit, HOUSE)
        ridge = np.maximum(abs(across) - 0.006, abs(along) - half_length)
        scene.paint(place, ridge, np.clip(roof + 0.25, 0, 1))
        if rng.random() < 0.6:  # a chimney
            chimney = np.maximum(abs(along - 0.5 * half_length), abs(across - 0.5 * half_width)) - 0.016
            scene.paint(place, chimney, 0.35 * roof)


def _trees(scene: _Scene) -> None:
    rng = scene.rng
    grove = scene.free_place()
    for _ in range(rng.integers(4, 10)):
        center, radius = grove + rng.normal(0, 0.17, 2), rng.uniform(0.06, 0.11)
        if scene.is_on(center, HOUSE, WATER):
            continue
        place, dy, dx = scene.window(center, 1.8 * radius)
        away = 0.6 * radius * scene.sun
        scene.shade(place, np.hypot(dy + away[0], dx + away[1]) - radius, TREE)
        grain = scene.grain[place] - 0.5
        outside = np.hypot(dy, dx) - radius * (1 - 0.3 * grain)
        lit = 0.85 + (0.35 / radius) * (dy * scene.sun[0] + dx * scene.sun[1]) + 0.6 * grain
        scene.paint(place, outside, scene.color(scene.leaves) * lit[..., None], TREE)


def _dataset(split: str, indices: Iterable[int], size: int, seed: int) -> datasets.Dataset:
    columns: dict[str, list] = {"image": [], "label": [], "file": []}
    for index in indices:
        image, label = synthetic_image(split, index, size, seed)
        name = f"synthetic-{split}-{seed}-{index:05d}"
        columns["image"].append({"bytes": _png(image), "path": f"{name}.png"})
        columns["label"].append({"bytes": _png(label), "path": f"{name}-mask.png"})
        columns["file"].append(f"{name}.png")
    features = {"image": datasets.Image(), "label": datasets.Image(), "file": datasets.Value("string")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
