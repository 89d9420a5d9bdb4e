"""Colour work on the device against PIL and torchvision, and whole batches against those of the loading processes."""

import dataclasses
import warnings
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import functional as F

from corrmatch_hf.data import Augmentation, color, device_color, training_batches
from corrmatch_hf.data.augment import Recoloring

from ..read_backs import CountReadBacks
from .test_color import pictures


def levels(found: torch.Tensor, want: Image.Image) -> int:
    """The largest difference, in levels."""
    assert found.dtype == torch.uint8 and found.shape == (3, want.height, want.width)
    return int((found.int() - tensor(want).int()).abs().max())


def tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


FACTORS = (0.0, 0.5, 0.77, 1.0, 1.234, 1.5, 3.0)
TURNS = (-0.5, -0.25, -0.1003, -0.001, 0.0, 0.004, 0.2, 0.25, 0.5)


@pytest.mark.parametrize(
    "name, factors", [("brightness", FACTORS), ("contrast", FACTORS), ("saturation", FACTORS), ("hue", TURNS)]
)
def test_a_jitter_step_is_that_of_torchvision_on_pil_images(name, factors):
    for what, picture in pictures().items():
        for factor in factors:
            found = getattr(device_color, name)(tensor(picture), factor)
            assert levels(found, getattr(F, f"adjust_{name}")(picture, factor)) == 0, (what, factor)


def test_hue_of_every_kind_of_colour():
    """Every value, chroma and order of the channels; the third channel anywhere between."""
    rng = np.random.default_rng(1)
    high, low = (axis.ravel() for axis in np.meshgrid(np.arange(256), np.arange(256)))
    high, low = high[low <= high], low[low <= high]
    colors = np.stack([high, low, rng.integers(low, high, endpoint=True)], axis=-1)
    colors = rng.permuted(colors, axis=1)[: len(colors) // 64 * 64].reshape(-1, 64, 3).astype(np.uint8)
    picture = Image.fromarray(colors)
    for factor in (0.0, 0.13, -0.21):
        assert levels(device_color.hue(tensor(picture), factor), F.adjust_hue(picture, factor)) == 0


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.6, 1.0, 1.41, 1.42, 2.0, 4.0])
def test_blur_is_that_of_the_loading_processes_and_near_that_of_pil(sigma):
    for what, picture in pictures().items():
        found = device_color.blur(tensor(picture), sigma)
        assert levels(found, color.blur(picture, sigma)) == 0, what
        assert levels(found, picture.filter(ImageFilter.GaussianBlur(sigma))) <= 3, what


def test_gray_is_that_of_pil():
    for picture in pictures().values():
        found = device_color.recolor(tensor(picture), Recoloring((), True, None))
        assert levels(found, picture.convert("L").convert("RGB")) == 0


def test_what_is_drawn_does_the_same_on_either_side():
    augmentation = Augmentation(crop_size=33)
    steps = set()
    for seed in range(150):
        picture = list(pictures().values())[seed % 5]
        recoloring = augmentation.draw_recoloring(np.random.default_rng(seed))
        steps |= {step for step, _ in recoloring.jitter}
        before = tensor(picture)
        found = device_color.recolor(before, recoloring)
        assert levels(found, recoloring(picture)) == 0, seed
        assert torch.equal(before, tensor(picture)), "inputs must not change"
    assert steps == set(device_color.STEPS)


def batches(semi, augmentation, count=4, **options):
    options = {"labeled_batch": 2, "unlabeled_batch": 3, "seed": 7, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more workers than cores
        return list(islice(training_batches(semi, augmentation, **options), count))


def assert_same(found, want):
    """The same bits, in every field."""
    assert found.uncolored is None
    for field in dataclasses.fields(want):
        x, y = getattr(found, field.name), getattr(want, field.name)
        if isinstance(y, torch.Tensor):
            assert x.dtype == y.dtype and x.shape == y.shape and torch.equal(x, y), field.name
        else:
            assert x == y, field.name


@pytest.mark.parametrize("partner", ["same_image", "batch", "reversed"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("views", [1, 2])
def test_a_batch_is_that_of_the_loading_processes(synthetic, partner, workers, views):
    augmentation = Augmentation(
        crop_size=33, cutmix_partner=partner, strong_views=views, image_mean=(0.3, 0.4, 0.5)
    )
    pasted = 0
    found = batches(synthetic, augmentation, num_workers=workers, recolor_on_device=True, count=8)
    for left, want in zip(found, batches(synthetic, augmentation, count=8), strict=True):
        assert left.weak is left.strong is left.partner_weak is None
        assert_same(left.to("cpu").recolored(), want)
        pasted += len(want.partner_rows)
    assert pasted


@pytest.mark.parametrize("partner", ["same_image", "batch", "reversed"])
def test_processes_and_resuming_change_nothing(synthetic, partner):
    augmentation = Augmentation(crop_size=33, cutmix_partner=partner)
    want = batches(synthetic, augmentation, 6, labeled_batch=4, unlabeled_batch=6)
    for rank in range(2):
        found = batches(
            synthetic, augmentation, 3, world_size=2, rank=rank, start_step=3, recolor_on_device=True
        )
        for left, whole in zip(found, want[3:], strict=True):
            rows = slice(3 * rank, 3 * rank + 3)
            half = left.recolored()
            assert torch.equal(half.strong, whole.strong[rows]) and torch.equal(half.weak, whole.weak[rows])
            places = [i for i, row in enumerate(whole.partner_rows) if row in range(6)[rows]]
            assert torch.equal(half.partner_weak, whole.partner_weak[places])


def test_without_strong_views_without_unlabeled_images_and_without_boxes(synthetic):
    for options in ({"strong_views": 0}, {"cutmix_probability": 0.0}):
        augmentation = Augmentation(crop_size=33, **options)
        (left,) = batches(synthetic, augmentation, 1, recolor_on_device=True)
        assert_same(left.recolored(), batches(synthetic, augmentation, 1)[0])
    options = {"unlabeled_batch": 0, "recolor_on_device": True}
    (batch,) = batches(dataclasses.replace(synthetic, unlabeled=None), augmentation, 1, **options)
    assert batch.uncolored is None and batch.recolored() is batch


def test_less_is_sent(synthetic):
    """Bytes that go from a loading process to the device, and through page-locked memory on the way."""

    def size(batch):
        moved = []
        batch._map(lambda tensor: moved.append(tensor.nbytes) or tensor)
        return sum(moved)

    augmentation = Augmentation(crop_size=33)
    for left, want in zip(
        batches(synthetic, augmentation, recolor_on_device=True),
        batches(synthetic, augmentation),
        strict=True,
    ):
        assert size(left) < size(want) / 1.8
    assert left.to("meta").uncolored.crops.is_meta and not left.uncolored.crops.is_meta


def test_what_is_sent_is_page_locked(synthetic, monkeypatch):
    locked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: locked.append(tensor) or tensor)
    (left,) = batches(synthetic, Augmentation(crop_size=33), 1, recolor_on_device=True)
    left.pin_memory()
    assert any(tensor is left.uncolored.crops for tensor in locked)


@pytest.mark.parametrize("partner", ["same_image", "batch", "reversed"])
def test_nothing_is_read_back(synthetic, partner):
    augmentation = Augmentation(
        crop_size=33, cutmix_partner=partner, strong_views=2, cutmix_probability=1.0, blur_probability=1.0
    )
    found = batches(synthetic, augmentation, recolor_on_device=True)
    with CountReadBacks() as mode:
        for batch in found:
            batch.recolored()
    assert mode.seen == []
