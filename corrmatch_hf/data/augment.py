"""Weak and strong augmentation and CutMix of the UniMatch family, on PIL images and one CPU core.

Only visible pixels are computed: of the resized photo the part inside the crop (`resize(box=...)`), of a pasted strong
view the pixels inside the CutMix box.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import BoolTensor, Tensor

from ..errors import InputError
from . import color

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CUTMIX_PARTNERS = ("same_image", "batch", "reversed")
CUTMIX_AREA = (0.02, 0.4)  # of the crop
CUTMIX_RATIO = (0.3, 1 / 0.3)  # height / width


class Geometry(NamedTuple):
    """The weak augmentation of one photo and its mask: resize to height x width, pad, crop at (top, left), flip."""

    height: int
    width: int
    top: int
    left: int
    flip: bool
    size: int

    @property
    def kept(self) -> tuple[int, int]:
        """Rows and columns of the crop that show the photo; the rest, at the right and bottom, is padding."""
        return min(self.size, self.height - self.top), min(self.size, self.width - self.left)

    def crop_image(self, image: Image.Image) -> Image.Image:
        """RGB image -> RGB crop, bilinear, padding 0."""
        rows, columns = self.kept
        x, y = image.width / self.width, image.height / self.height
        # Rounding must not move the box outside the photo.
        right, bottom = min((self.left + columns) * x, image.width), min((self.top + rows) * y, image.height)
        crop = image.resize(
            (columns, rows), Image.Resampling.BILINEAR, box=(self.left * x, self.top * y, right, bottom)
        )
        if (rows, columns) != (self.size, self.size):
            canvas = Image.new("RGB", (self.size, self.size))
            canvas.paste(crop, (0, 0))
            crop = canvas
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else crop

    def crop_mask(self, mask: np.ndarray, fill: int) -> np.ndarray:
        """(h, w) integers -> (size, size) int64, nearest neighbour, padding `fill`."""
        rows, columns = self.kept
        # The pixel at the centre, (i + 1/2) * old / new, in integers and thus exact for all sizes.
        y = (2 * np.arange(self.top, self.top + rows) + 1) * mask.shape[0] // (2 * self.height)
        x = (2 * np.arange(self.left, self.left + columns) + 1) * mask.shape[1] // (2 * self.width)
        crop = np.full((self.size, self.size), fill, dtype=np.int64)
        crop[:rows, :columns] = mask.take(y, axis=0).take(x, axis=1)
        return crop[:, ::-1].copy() if self.flip else crop

    def valid(self) -> BoolTensor:
        """(size, size), False on the padding."""
        rows, columns = self.kept
        valid = torch.zeros(self.size, self.size, dtype=torch.bool)
        valid[:rows, self.size - columns if self.flip else 0 :][:, :columns] = True
        return valid


class Recoloring(NamedTuple):
    """The strong augmentation of one crop: jitter steps with their factors, then grayscale, then blur."""

    jitter: tuple[tuple[Callable[[Image.Image, float], Image.Image], float], ...]
    gray: bool
    sigma: float | None

    def __call__(self, crop: Image.Image, box: Box | None = None) -> Image.Image:
        """RGB crop -> RGB crop of the same geometry; with `box` only that part of it, bit for bit."""
        jitter = self.jitter
        if box is not None:
            # Contrast depends on the whole picture, blur on a margin around the box, the other steps on single pixels.
            whole = 1 + max((i for i, (step, _) in enumerate(jitter) if step is color.contrast), default=-1)
            crop, jitter = Recoloring(jitter[:whole], False, None)(crop), jitter[whole:]
            margin = 0 if self.sigma is None else color.blur_margin(self.sigma)
            left, top = max(box.left - margin, 0), max(box.top - margin, 0)
            right = min(box.left + box.width + margin, crop.width)
            bottom = min(box.top + box.height + margin, crop.height)
            crop = crop.crop((left, top, right, bottom))
        for step, factor in jitter:
            crop = step(crop, factor)
        if self.gray:
            crop = crop.convert("L").convert("RGB")
        if self.sigma is not None:
            crop = color.blur(crop, self.sigma)
        if box is not None:
            left, top = box.left - left, box.top - top
            crop = crop.crop((left, top, left + box.width, top + box.height))
        return crop


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of training images. The defaults are those of CorrMatch's and UniMatch's experiments.

    Weak: resize the long side to an integer uniform in [scale_min, scale_max] times itself, pad, crop, flip.
    Strong, on the weak crop: colour jitter, grayscale, blur; then CutMix with the partner's strong view.
    `cutmix_partner`: "same_image" is a second, independent view of the same photo, as in the published experiments of
    CorrMatch; "batch" is the next photo of the total batch; "reversed" is photo N - 1 - i of the total batch of N, as
    in UniMatch V2. A photo that would be its own partner is mixed with a second view of itself.
    """

    crop_size: int = 321
    scale_min: float = 0.5
    scale_max: float = 2.0
    flip_probability: float = 0.5
    strong_views: int = 1
    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.25
    jitter_probability: float = 0.8
    grayscale_probability: float = 0.2
    blur_probability: float = 0.5
    blur_sigma_min: float = 0.1
    blur_sigma_max: float = 2.0
    cutmix_probability: float = 0.5
    cutmix_partner: str = "same_image"
    image_mean: tuple[float, float, float] = IMAGENET_MEAN
    image_std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self):
        # Configuration files of processors give lists, possibly of integers.
        object.__setattr__(self, "image_mean", tuple(float(v) for v in self.image_mean))
        object.__setattr__(self, "image_std", tuple(float(v) for v in self.image_std))
        if self.crop_size < 1:
            raise InputError(f"crop_size is {self.crop_size}, but a crop needs at least one pixel.")
        if not 0 < self.scale_min <= self.scale_max:
            raise InputError(
                f"scale_min {self.scale_min} and scale_max {self.scale_max} must be positive and in order."
            )
        if self.strong_views < 0:
            raise InputError(f"strong_views is {self.strong_views}, but it counts views: give 0 or more.")
        for name in ("flip", "jitter", "grayscale", "blur", "cutmix"):
            value = getattr(self, f"{name}_probability")
            if not 0 <= value <= 1:
                raise InputError(f"{name}_probability is {value}, but a probability lies between 0 and 1.")
        if not 0 <= self.hue <= 0.5 or min(self.brightness, self.contrast, self.saturation) < 0:
            raise InputError(
                "brightness, contrast and saturation must be 0 or more, and hue between 0 and 0.5."
            )
        if not 0 < self.blur_sigma_min <= self.blur_sigma_max:
            raise InputError(
                f"blur_sigma_min {self.blur_sigma_min} and blur_sigma_max {self.blur_sigma_max} must be "
                "positive and in order."
            )
        if self.cutmix_partner not in CUTMIX_PARTNERS:
            raise InputError(
                f"cutmix_partner is {self.cutmix_partner!r}: choose one of {', '.join(CUTMIX_PARTNERS)}."
            )

    def draw_geometry(self, width: int, height: int, rng: np.random.Generator) -> Geometry:
        """A random resize, crop and flip for a photo of `width` x `height` pixels."""
        long = max(width, height)
        low, high = max(int(long * self.scale_min), 1), max(int(long * self.scale_max), 1)
        new_long = int(rng.integers(low, high, endpoint=True))
        new_short = max(int(min(width, height) * new_long / long + 0.5), 1)
        new_width, new_height = (new_long, new_short) if width >= height else (new_short, new_long)
        size = self.crop_size
        return Geometry(
            height=new_height,
            width=new_width,
            top=int(rng.integers(0, max(new_height - size, 0), endpoint=True)),
            left=int(rng.integers(0, max(new_width - size, 0), endpoint=True)),
            flip=bool(rng.random() < self.flip_probability),
            size=size,
        )

    def draw_recoloring(self, rng: np.random.Generator) -> Recoloring:
        """A random strong augmentation."""
        jitter = []
        if rng.random() < self.jitter_probability:
            # step, strength, middle of the range of the factor
            steps = (
                (color.brightness, self.brightness, 1),
                (color.contrast, self.contrast, 1),
                (color.saturation, self.saturation, 1),
                (color.hue, self.hue, 0),
            )
            for i in rng.permutation(4):
                step, strength, middle = steps[i]
                factor = rng.uniform(max(middle - strength, middle - 1), middle + strength)
                if strength:
                    jitter.append((step, factor))
        sigma = None
        gray = bool(rng.random() < self.grayscale_probability)
        if rng.random() < self.blur_probability:
            sigma = rng.uniform(self.blur_sigma_min, self.blur_sigma_max)
        return Recoloring(tuple(jitter), gray, sigma)

    def strong(self, crop: Image.Image, rng: np.random.Generator, box: Box | None = None) -> Image.Image:
        """RGB crop -> its strong view; with `box` only that part of it."""
        return self.draw_recoloring(rng)(crop, box)

    def normalize(self, pixels: np.ndarray | Image.Image) -> Tensor:
        """(..., H, W, 3) uint8 -> (..., 3, H, W) float32, (value / 255 - mean) / std."""
        pixels = np.asarray(pixels)
        *many, height, width, _ = pixels.shape
        mean, std = np.array(self.image_mean, np.float32), np.array(self.image_std, np.float32)
        scale, offset = 1 / (std * 255), mean / std  # both (3,)
        result = np.empty((*many, 3, height, width), np.float32)
        planes = result.reshape(-1, 3, height, width)
        for image, target in zip(pixels.reshape(-1, height, width, 3), planes, strict=True):
            for channel in range(3):
                np.multiply(image[..., channel], scale[channel], out=target[channel])
                target[channel] -= offset[channel]
        return torch.from_numpy(result)


class Box(NamedTuple):
    """The CutMix rectangle of a crop, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def random_box(size: int, probability: float, rng: np.random.Generator) -> Box | None:
    """A random CutMix rectangle in a `size` x `size` crop, or None (no mixing) with probability 1 - `probability`.

    The area is uniform in 2-40 % of the crop, height / width uniform in 0.3-3.33, the corner uniform over the whole
    crop, all drawn again until the rectangle fits. This favours small rectangles, as in the published experiments. A
    crop of a single pixel is too small for a rectangle and gets None.
    """
    if rng.random() >= probability or size == 1:
        return None
    while True:
        area, ratio = rng.uniform(*CUTMIX_AREA) * size * size, rng.uniform(*CUTMIX_RATIO)
        width, height = int(math.sqrt(area / ratio)), int(math.sqrt(area * ratio))
        left, top = (int(v) for v in rng.integers(0, size, 2))
        if width and height and left + width <= size and top + height <= size:
            return Box(top, left, height, width)
