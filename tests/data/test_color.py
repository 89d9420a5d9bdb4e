import numpy as np
import pytest
from PIL import Image, ImageFilter
from torchvision.transforms import functional as F

from corrmatch_hf.data import color


def pictures() -> dict[str, Image.Image]:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)
    corners = rng.integers(0, 2, (60, 61, 3), dtype=np.uint8) * 255
    smooth = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return {
        "noise": Image.fromarray(noise),
        "corners of the colour cube": Image.fromarray(corners),
        "gray": Image.fromarray(noise[..., :1].repeat(3, axis=2)),
        "black": Image.new("RGB", (5, 4)),
        "smooth": smooth.resize((80, 64), Image.Resampling.BICUBIC),
        "one pixel": Image.new("RGB", (1, 1), (200, 30, 90)),
        "one row": Image.fromarray(noise[:1]),
    }


def difference(a: Image.Image, b: Image.Image) -> int:
    assert a.mode == b.mode == "RGB" and a.size == b.size
    return int(abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_the_steps_are_those_of_torchvision_on_pil_images(name):
    ours, theirs = getattr(color, name), getattr(F, f"adjust_{name}")
    for what, picture in pictures().items():
        for factor in (0.0, 0.5, 0.77, 1.0, 1.234, 1.5, 3.0):
            assert difference(ours(picture, factor), theirs(picture, factor)) == 0, (what, factor)


def test_hue_is_that_of_torchvision_on_pil_images():
    for what, picture in pictures().items():
        for factor in (-0.5, -0.25, -0.1003, -0.001, 0.0, 0.004, 0.2, 0.25, 0.5):
            assert difference(color.hue(picture, factor), F.adjust_hue(picture, factor)) == 0, (what, factor)


def test_hue_of_every_kind_of_colour():
    """One colour of each value and chroma, with the third channel anywhere between, in all six orders."""
    rng = np.random.default_rng(1)
    high, low = (axis.ravel() for axis in np.meshgrid(np.arange(256), np.arange(256)))
    high, low = high[low <= high], low[low <= high]
    colors = np.stack([high, low, rng.integers(low, high, endpoint=True)], axis=-1)
    colors = rng.permuted(colors, axis=1)[: len(colors) // 64 * 64].reshape(-1, 64, 3).astype(np.uint8)
    picture = Image.fromarray(colors)
    for factor in (0.0, 0.13, -0.21):
        assert difference(color.hue(picture, factor), F.adjust_hue(picture, factor)) == 0


def slow_blur(picture: Image.Image, sigma: float) -> np.ndarray:
    """Three box blurs along each axis in float64, edges continued, of the width that gives them sigma."""
    variance = sigma**2 / 3
    reach = int((np.sqrt(12 * variance + 1) - 1) / 2)
    # weight of the end pixels, from: 2 (1 + 4 + ... + reach^2 + w (reach + 1)^2) / (2 reach + 1 + 2 w) = variance
    squares = 2 * sum(d * d for d in range(reach + 1))
    edge = (variance * (2 * reach + 1) - squares) / (2 * (reach + 1) ** 2 - 2 * variance)
    kernel = np.array([edge, *[1.0] * (2 * reach + 1), edge])
    kernel /= kernel.sum()
    pixels = np.asarray(picture).astype(float)
    for axis in (0, 0, 0, 1, 1, 1):
        pad = [(reach + 1,) * 2 if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(pixels, pad, mode="edge")
        pixels = sum(w * padded.take(range(i, i + pixels.shape[axis]), axis) for i, w in enumerate(kernel))
    return pixels


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.6, 1.0, 1.41, 1.42, 2.0, 4.0])
def test_blur(sigma):
    for what, picture in pictures().items():
        found = np.asarray(color.blur(picture, sigma)).astype(float)
        assert abs(found - slow_blur(picture, sigma)).max() <= 0.501, what
        theirs = np.asarray(picture.filter(ImageFilter.GaussianBlur(sigma))).astype(float)
        assert abs(found - theirs).max() <= 3 and abs(found - theirs).mean() < 1.5, what


def test_blur_sees_no_further_than_its_margin():
    picture = pictures()["noise"]
    for sigma in (0.5, 1.5, 3.0):
        margin = color.blur_margin(sigma)
        other = picture.copy()
        other.paste((255, 0, 0), (0, 0, 30, 90))
        right = (30 + margin, 0, 70, 90)
        assert difference(color.blur(picture, sigma).crop(right), color.blur(other, sigma).crop(right)) == 0
        wider = (30, 0, 70, 90)
        assert difference(color.blur(picture, sigma).crop(wider), color.blur(other, sigma).crop(wider)) > 0
