"""Colour jitter and blur of 8-bit RGB images on one CPU core: PIL's results, two to four times as fast.

Brightness, contrast, saturation and hue round after each step, like PIL and torchvision's functions on PIL images, and
agree with them bit for bit. The blur rounds once, whereas PIL rounds after each of its six passes.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from PIL import Image, ImageEnhance, ImageStat


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """RGB -> RGB, `factor` >= 0 times as bright."""
    return _away_from(image, 0, factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """RGB -> RGB, `factor` >= 0 times as far from the mean gray of the whole image."""
    return _away_from(image, int(ImageStat.Stat(image.convert("L")).mean[0] + 0.5), factor)


def _away_from(image: Image.Image, center: int, factor: float) -> Image.Image:
    """`Image.blend` with an image of one gray, by a table of the 256 values."""
    values = center + np.float32(factor) * np.arange(-center, 256 - center, dtype=np.float32)
    return image.point(values.clip(0, 255).astype(np.uint8).tolist() * 3)


def saturation(image: Image.Image, factor: float) -> Image.Image:
    """RGB -> RGB, each pixel `factor` >= 0 times as far from its own gray."""
    return ImageEnhance.Color(image).enhance(factor)


def hue(image: Image.Image, factor: float) -> Image.Image:
    """RGB -> RGB, with the hue shifted by `factor` in [-0.5, 0.5] of the colour circle.

    Like PIL it uses HSV of 8 bits each: the hue counts 255ths of the circle and is truncated, not rounded.
    """
    red, green, blue = (np.asarray(band) for band in image.split())
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)

    # Sums of masks times differences, because np.where takes ten times longer.
    is_red = red == value
    is_green = (green == value) & ~is_red
    is_blue = ~(is_red | is_green)
    r, g, b = (band.astype(np.int16) for band in (red, green, blue))
    difference = is_red * (g - b) + is_green * (b - r) + is_blue * (r - g)
    place = chroma.astype(np.int32)
    place += is_green * np.int32(256) + is_blue * np.int32(512)
    place <<= 9
    place += difference
    place += 256
    angle = _angles().take(place)
    angle += np.int32(factor * 255).astype(np.uint8)  # as torchvision: it wraps at 256

    height = value.astype(np.float32)
    depth = chroma / np.maximum(height, 1)
    depth *= 255
    np.floor(depth, out=depth)  # the saturation, 8 bits
    depth *= height
    depth *= np.float32(1 / (255 * 85))
    twice = angle.astype(np.int16)
    twice += twice  # 85 to each sixth of the circle
    bands = []
    for below in (170 - abs(twice - 255), abs(twice - 170) - 85, abs(twice - 340) - 85):
        np.clip(below, 0, 85, out=below)  # 85ths of the chroma that the channel lies below the value
        band = below.astype(np.float32)
        band *= depth
        np.subtract(height, band, out=band)
        band += 0.5
        bands.append(Image.fromarray(band.astype(np.uint8)))
    return Image.merge("RGB", bands)


@cache
def _angles() -> np.ndarray:
    """(3 * 256 * 512,) uint8: the hue for a largest channel, a chroma and a difference (+ 256) of the other two.

    A table, because reproducing PIL's mix of float and double arithmetic exactly for each pixel would be slower.
    """
    chroma = np.maximum(np.arange(256, dtype=np.float32)[:, None], 1)
    difference = np.arange(-256, 256, dtype=np.float32)
    second = (np.where(difference < 0, chroma + difference, chroma) / chroma).astype(np.float64)
    first = (np.where(difference < 0, chroma, chroma - difference) / chroma).astype(np.float64)
    sector = np.array([0.0, 2.0, 4.0]).reshape(3, 1, 1)  # red, green, blue
    sixths = ((sector + second) - first).astype(np.float32)
    turn = np.fmod(sixths.astype(np.float64) / 6 + 1, 1).astype(np.float32)
    return (turn.astype(np.float64) * 255).clip(0, 255).astype(np.uint8).ravel()


def blur(image: Image.Image, sigma: float) -> Image.Image:
    """RGB -> RGB, PIL's GaussianBlur(sigma): three box blurs along each axis, of a fractional width to have sigma.

    In float32 with unnormalised boxes; the result is scaled and rounded once at the end. PIL rounds after each box and
    may differ by 3 levels for small sigma.
    """
    reach, edge = _box(sigma)
    pad, height, width = reach + 1, image.height, image.width
    row = 3 * (width + 2 * pad)
    here, there = np.zeros((2, height + 2 * pad, row), np.float32)
    here[pad:-pad, 3 * pad : -3 * pad] = np.asarray(image).reshape(height, 3 * width)

    # All lines with their margins in one flat array: three times as fast as line by line.
    start, stop = pad * row, (pad + height) * row
    ends = np.empty(stop - start, np.float32)
    for step in (3, 3, 3, row, row, row):
        pixels = here.reshape(-1, row // 3, 3)
        if step == 3:
            pixels[:, :pad], pixels[:, -pad:] = pixels[:, pad, None], pixels[:, -pad - 1, None]
        else:
            pixels[:pad], pixels[-pad:] = pixels[pad], pixels[-pad - 1]
        end = pad * step
        source, target = here.reshape(-1), there.reshape(-1)[start:stop]
        np.add(source[start - end : stop - end], source[start + end : stop + end], out=ends)
        ends *= edge
        np.add(ends, source[start:stop], out=target)
        for shift in range(step, end, step):
            target += source[start - shift : stop - shift]
            target += source[start + shift : stop + shift]
        here, there = there, here

    result = here[pad:-pad, 3 * pad : -3 * pad] * np.float32((2 * (reach + edge) + 1) ** -6)
    result += 0.5
    return Image.fromarray(result.astype(np.uint8).reshape(height, width, 3))


def blur_margin(sigma: float) -> int:
    """The radius of `blur` in pixels."""
    return 3 * (_box(sigma)[0] + 1)


def _box(sigma: float) -> tuple[int, np.float32]:
    """Radius of the pixels with weight 1, and the weight of the next pixel, for a variance of sigma^2 / 3."""
    variance = sigma * sigma / 3
    reach = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    edge = (2 * reach + 1) * (reach * (reach + 1) - 3 * variance) / (6 * (variance - (reach + 1) ** 2))
    return reach, np.float32(edge)
