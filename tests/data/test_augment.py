from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import functional as F

from corrmatch_hf.data.augment import Augmentation, Geometry, random_box
from corrmatch_hf.errors import InputError


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture with some noise, like a photo."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels += rng.integers(-20, 20, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def slow_image(image: Image.Image, g: Geometry) -> np.ndarray:
    """The whole resized photo, then padded, cropped, flipped."""
    resized = np.asarray(image.resize((g.width, g.height), Image.Resampling.BILINEAR))
    pad = ((0, max(g.size - g.height, 0)), (0, max(g.size - g.width, 0)), (0, 0))
    crop = np.pad(resized, pad)[g.top : g.top + g.size, g.left : g.left + g.size]
    return crop[:, ::-1] if g.flip else crop


def slow_mask(mask: np.ndarray, g: Geometry, fill: int) -> np.ndarray:
    height, width = mask.shape
    resized = np.array(
        [
            [
                mask[
                    int(Fraction(2 * y + 1, 2 * g.height) * height),
                    int(Fraction(2 * x + 1, 2 * g.width) * width),
                ]
                for x in range(g.width)
            ]
            for y in range(g.height)
        ]
    )
    pad = ((0, max(g.size - g.height, 0)), (0, max(g.size - g.width, 0)))
    crop = np.pad(resized, pad, constant_values=fill)[g.top : g.top + g.size, g.left : g.left + g.size]
    return crop[:, ::-1] if g.flip else crop


@pytest.mark.parametrize("width, height", [(64, 48), (48, 64), (50, 50), (33, 20)])
def test_geometry_is_that_of_resizing_everything(width, height):
    augmentation = Augmentation(crop_size=41)
    image = photo(width, height)
    mask = np.random.default_rng(1).integers(0, 5, (height, width)).astype(np.uint8)
    for seed in range(6):
        g = augmentation.draw_geometry(width, height, np.random.default_rng(seed))
        crop, label = np.asarray(g.crop_image(image)), g.crop_mask(mask, fill=255)
        assert crop.shape == (41, 41, 3) and label.shape == (41, 41) and label.dtype == np.int64
        # PIL computes its weights from the box instead of the whole: rounding may differ by two levels.
        assert abs(crop.astype(int) - slow_image(image, g)).max() <= 2
        expected = slow_mask(mask, g, 255)
        assert np.array_equal(label, expected)
        assert (g.valid().numpy() == (expected != 255)).all()
        assert (crop[~g.valid().numpy()] == 0).all()


def test_the_geometry_is_drawn_from_the_published_distribution():
    augmentation = Augmentation(crop_size=30)
    drawn = [augmentation.draw_geometry(80, 40, np.random.default_rng(i)) for i in range(3000)]
    widths = np.array([g.width for g in drawn])
    assert widths.min() == 40 and widths.max() == 160
    assert widths.mean() == pytest.approx(100, rel=0.03)
    assert all(g.height == int(40 * g.width / 80 + 0.5) for g in drawn)
    assert np.mean([g.flip for g in drawn]) == pytest.approx(0.5, abs=0.04)
    lefts = np.array([g.left / max(g.width - 30, 1) for g in drawn])
    assert lefts.min() == 0 and lefts.max() == 1 and lefts.mean() == pytest.approx(0.5, abs=0.03)


def test_extreme_shapes():
    for width, height in ((1, 1), (300, 1), (1, 300), (2, 2)):
        g = Augmentation(crop_size=9).draw_geometry(width, height, np.random.default_rng(0))
        assert g.crop_image(photo(width, height)).size == (9, 9)
        assert g.crop_mask(np.zeros((height, width), np.uint8), 255).shape == (9, 9)


def only(**kwargs) -> Augmentation:
    """An augmentation that does nothing strong but what is named."""
    off = {"jitter_probability": 0.0, "grayscale_probability": 0.0, "blur_probability": 0.0}
    return Augmentation(crop_size=32, **{**off, **kwargs})


def test_strong_pieces():
    image = photo(32, 32)
    rng = np.random.default_rng
    assert only().strong(image, rng(0)) is image
    gray = np.asarray(only(grayscale_probability=1.0).strong(image, rng(0)))
    assert (gray == np.asarray(image.convert("L"))[..., None]).all()
    fixed = only(blur_probability=1.0, blur_sigma_min=1.5, blur_sigma_max=1.5).strong(image, rng(0))
    assert abs(np.asarray(fixed).astype(int) - image.filter(ImageFilter.GaussianBlur(1.5))).max() <= 2


def slow_strong(augmentation: Augmentation, image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Colours with torchvision's and Pillow's own functions, drawn in the documented order."""
    if rng.random() < augmentation.jitter_probability:
        for i in rng.permutation(4):
            name = ("brightness", "contrast", "saturation", "hue")[i]
            strength, middle = getattr(augmentation, name), name != "hue"
            factor = rng.uniform(middle - strength, middle + strength)
            image = getattr(F, f"adjust_{name}")(image, factor)
    if rng.random() < augmentation.grayscale_probability:
        image = F.rgb_to_grayscale(image, 3)
    if rng.random() < augmentation.blur_probability:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    return image


def test_strong_is_what_pil_and_torchvision_make_of_it():
    augmentation, image = Augmentation(crop_size=40), photo(40, 40)
    blurred = 0
    for seed in range(40):
        found = np.asarray(augmentation.strong(image, np.random.default_rng(seed))).astype(int)
        expected = np.asarray(slow_strong(augmentation, image, np.random.default_rng(seed))).astype(int)
        sigma = augmentation.draw_recoloring(np.random.default_rng(seed)).sigma
        assert abs(found - expected).max() <= (0 if sigma is None else 3)
        blurred += sigma is not None
    assert 10 < blurred < 30


def test_a_part_of_a_strong_view_is_that_part_of_the_whole():
    augmentation, image = (
        Augmentation(crop_size=40, jitter_probability=0.9, blur_probability=0.7),
        photo(40, 40),
    )
    for seed in range(40):
        box = random_box(40, 1.0, np.random.default_rng(seed))
        whole = np.asarray(augmentation.strong(image, np.random.default_rng(seed)))
        part = np.asarray(augmentation.strong(image, np.random.default_rng(seed), box))
        assert np.array_equal(part, whole[box.slices])


@pytest.mark.parametrize(
    "name, adjust, low, high",
    [
        ("brightness", F.adjust_brightness, 0.5, 1.5),
        ("contrast", F.adjust_contrast, 0.5, 1.5),
        ("saturation", F.adjust_saturation, 0.5, 1.5),
    ],
)
def test_a_jitter_factor_lies_in_its_range(name, adjust, low, high):
    others = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, name: 0.5}
    augmentation, image = only(jitter_probability=1.0, **others), photo(32, 32)
    low, high = (np.asarray(adjust(image, f)).astype(int) for f in (low, high))
    for seed in range(20):
        found = np.asarray(augmentation.strong(image, np.random.default_rng(seed))).astype(int)
        assert (found >= np.minimum(low, high) - 1).all() and (found <= np.maximum(low, high) + 1).all()


def test_jitter_happens_as_often_as_it_should():
    augmentation, image = Augmentation(crop_size=8), photo(8, 8)
    results = [np.asarray(augmentation.strong(image, np.random.default_rng(i))) for i in range(800)]
    untouched = np.mean([np.array_equal(r, np.asarray(image)) for r in results])
    assert untouched == pytest.approx(0.2 * 0.8 * 0.5, abs=0.04)
    gray = np.mean([(r == r[..., :1]).all() for r in results])
    assert gray == pytest.approx(0.2, abs=0.05)


def test_normalize():
    augmentation = Augmentation(crop_size=32, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])
    image = photo(32, 24)
    found = augmentation.normalize(image)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).double() / 255
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    )
    assert found.dtype == torch.float32 and found.is_contiguous()
    torch.testing.assert_close(found.double(), (pixels - mean) / std, atol=1e-5, rtol=0)
    many = np.stack([np.asarray(image)] * 2)[:, None]
    assert torch.equal(augmentation.normalize(many), found.expand(2, 1, 3, 24, 32))
    assert augmentation.normalize(many[:0]).shape == (0, 1, 3, 24, 32)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"crop_size": 0}, "crop_size"),
        ({"scale_min": 2.0, "scale_max": 1.0}, "scale_min"),
        ({"strong_views": -1}, "strong_views"),
        ({"cutmix_probability": 1.5}, "cutmix_probability"),
        ({"cutmix_partner": "self"}, "cutmix_partner"),
        ({"hue": 0.7}, "hue"),
        ({"blur_sigma_min": 0.0}, "blur_sigma_min"),
    ],
)
def test_impossible_options_are_named(options, named):
    with pytest.raises(InputError, match=named):
        Augmentation(**options)


# ------------------------------------------------------------------------------------------------- CutMix boxes


def boxes(count: int, size: int = 100, probability: float = 1.0):
    rng = np.random.default_rng(0)
    return [random_box(size, probability, rng) for _ in range(count)]


def test_every_box_lies_inside_and_has_the_published_area_and_ratio():
    for box in boxes(2000, size=321):
        assert box.top >= 0 and box.top + box.height <= 321
        assert box.left >= 0 and box.left + box.width <= 321
        # int() makes each side up to one pixel smaller than drawn
        assert box.height * box.width <= 0.4 * 321**2
        assert (box.height + 1) * (box.width + 1) >= 0.02 * 321**2
        assert (box.height + 1) / box.width >= 0.3 and box.height / (box.width + 1) <= 1 / 0.3


def test_the_probability_is_that_of_a_box():
    share = np.mean([box is not None for box in boxes(4000, probability=0.5)])
    assert share == pytest.approx(0.5, abs=0.03)
    assert all(box is None for box in boxes(50, probability=0.0))
    assert all(box is not None for box in boxes(50, probability=1.0))


def test_the_distribution_is_that_of_drawing_until_it_fits():
    """Against the rejection written out: uniform area, ratio and corner, kept if the rectangle fits."""
    rng = np.random.default_rng(1)
    size, n = 200, 400_000
    area, ratio = rng.uniform(0.02, 0.4, n) * size**2, rng.uniform(0.3, 1 / 0.3, n)
    width, height = np.sqrt(area / ratio).astype(int), np.sqrt(area * ratio).astype(int)
    left, top = rng.integers(0, size, (2, n))
    fits = (left + width <= size) & (top + height <= size)
    drawn = np.array(boxes(6000, size))
    for expected, found in zip((top, left, height, width), drawn.T, strict=True):
        expected = expected[fits]
        assert found.mean() == pytest.approx(expected.mean(), rel=0.05)
        assert found.std() == pytest.approx(expected.std(), rel=0.05)


def test_a_crop_of_a_few_pixels_still_gets_a_box():
    assert all(box.height >= 1 and box.width >= 1 for box in boxes(50, size=8))
