"""The loader on one core: milliseconds per image, from JPEG files of 500 x 375 pixels to normalised crops of 321.

The reference follows the published recipe as it is usually written, with Pillow and torchvision: the whole photo
resized, padded, cropped; and, for CutMix, all of it a second time for the partner, whether a box is drawn or not.
Processor time, which other programs hardly disturb; every part alone as well.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms
from torchvision.transforms import functional as F

from corrmatch_hf.data import Augmentation, SemiDataset, color, training_batches
from corrmatch_hf.data.augment import IMAGENET_MEAN, IMAGENET_STD, random_box

from .measure import Call, Row

WIDTH, HEIGHT, CROP, PHOTOS, BATCH = 500, 375, 321, 16, 8


def rows(device: str) -> Iterator[Row]:
    """The loader works on the CPU, whatever `device` is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield from _rows(photo_files(Path(folder)))
    finally:
        torch.set_num_threads(threads)


def _rows(data: SemiDataset) -> Iterator[Row]:
    photos = [
        row["image"]["path"] for row in data.unlabeled.cast_column("image", datasets.Image(decode=False))
    ]
    masks = [row["label"]["path"] for row in data.labeled.cast_column("label", datasets.Image(decode=False))]
    rng = np.random.default_rng(0)

    # An unlabelled image cannot be had without a labelled one: the difference to batches without is its cost.
    def batches(unlabeled: int, partner: str = "batch") -> Iterator:
        augmentation = Augmentation(crop_size=CROP, cutmix_partner=partner)
        return training_batches(data, augmentation, labeled_batch=BATCH, unlabeled_batch=unlabeled, seed=0)

    labeled = batches(0)
    reference, alone = _processor_milliseconds(
        lambda: [labeled_image(photos[i], masks[i], rng) for i in range(BATCH)], lambda: next(labeled), 6
    )
    yield Row("labelled image: photo and mask", reference / BATCH, alone / BATCH, "ms", None)
    for partner, words in (("same_image", "the same image"), ("batch", "the batch")):
        both = batches(BATCH, partner)
        reference, ours = _processor_milliseconds(
            lambda: [unlabeled_image(photos[i], rng) for i in rng.integers(0, PHOTOS, BATCH)],
            lambda both=both: next(both),
            12,
        )
        name = f"unlabelled image: weak and strong view, partner from {words}"
        yield Row(name, reference / BATCH, (ours - alone) / BATCH, "ms", None, target=2.9)

    opened = [Image.open(path).convert("RGB") for path in photos]
    geometries = [Augmentation(crop_size=CROP).draw_geometry(WIDTH, HEIGHT, rng) for _ in opened]
    reference, ours = _processor_milliseconds(
        lambda: [_crop(photo, rng) for photo in opened],
        lambda: [g.crop_image(photo) for g, photo in zip(geometries, opened, strict=True)],
        4,
    )
    yield Row("resize, pad, crop, flip", reference / PHOTOS, ours / PHOTOS, "ms", None)

    crops = [_crop(photo, rng)[0] for photo in opened]
    pairs = {
        "brightness": (F.adjust_brightness, color.brightness, 1.3),
        "contrast": (F.adjust_contrast, color.contrast, 1.3),
        "saturation": (F.adjust_saturation, color.saturation, 1.3),
        "hue": (F.adjust_hue, color.hue, 0.1),
        "blur, sigma 1": (
            lambda image, sigma: image.filter(ImageFilter.GaussianBlur(sigma)),
            color.blur,
            1.0,
        ),
        "blur, sigma 2": (
            lambda image, sigma: image.filter(ImageFilter.GaussianBlur(sigma)),
            color.blur,
            2.0,
        ),
        "normalise": (lambda image, _: to_tensor(image), lambda image, _: Augmentation().normalize(image), 0),
    }
    for name, (plain, fast, factor) in pairs.items():
        reference, ours = _processor_milliseconds(
            lambda plain=plain, factor=factor: [plain(crop, factor) for crop in crops],
            lambda fast=fast, factor=factor: [fast(crop, factor) for crop in crops],
            6,
        )
        difference = max(
            np.abs(np.asarray(plain(crop, factor)).astype(float) - np.asarray(fast(crop, factor))).max()
            for crop in crops
        )
        note = "" if difference < 1e-5 else f"at most {difference:g} of 255 levels apart"
        yield Row(name, reference / PHOTOS, ours / PHOTOS, "ms", difference <= 3, note=note)


# -------------------------------------------------------------------------------------------------- the reference


def unlabeled_image(path: str, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """Weak view, mixed strong view and partner's weak view of one photo."""
    (weak, strong), (other_weak, other_strong) = _views(path, rng), _views(path, rng)
    if box := random_box(CROP, 0.5, rng):
        strong[(..., *box.slices)] = other_strong[(..., *box.slices)]
    return weak, strong, other_weak


def _views(path: str, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    crop, _ = _crop(Image.open(path).convert("RGB"), rng)
    strong = crop
    if rng.random() < 0.8:
        strong = transforms.ColorJitter(0.5, 0.5, 0.5, 0.25)(strong)
    if rng.random() < 0.2:
        strong = strong.convert("L").convert("RGB")
    if rng.random() < 0.5:
        strong = strong.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    return to_tensor(crop), to_tensor(strong)


def labeled_image(path: str, mask: str, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    crop, label = _crop(Image.open(path).convert("RGB"), rng, Image.open(mask))
    return to_tensor(crop), torch.from_numpy(np.array(label)).long()


def _crop(photo: Image.Image, rng: np.random.Generator, mask: Image.Image | None = None):
    """The whole photo resized, padded, cropped, flipped; the mask with it."""
    mask = Image.new("L", photo.size) if mask is None else mask  # tells padding from the photo
    width = int(rng.integers(WIDTH // 2, 2 * WIDTH, endpoint=True))
    height = int(photo.height * width / photo.width + 0.5)
    photo, mask = photo.resize((width, height), Image.BILINEAR), mask.resize((width, height), Image.NEAREST)
    border = (0, 0, max(CROP - width, 0), max(CROP - height, 0))
    photo, mask = ImageOps.expand(photo, border, 0), ImageOps.expand(mask, border, 255)
    left, top = (int(rng.integers(0, side - CROP, endpoint=True)) for side in photo.size)
    photo, mask = (picture.crop((left, top, left + CROP, top + CROP)) for picture in (photo, mask))
    if rng.random() < 0.5:
        photo, mask = (picture.transpose(Image.FLIP_LEFT_RIGHT) for picture in (photo, mask))
    return photo, mask


to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])


# ------------------------------------------------------------------------------------------------ photos and clock


def photo_files(folder: Path, photos: int = PHOTOS) -> SemiDataset:
    """Photos with texture of every fineness as JPEG files, and masks as PNG."""
    rows = []
    for number in range(photos):
        rng = np.random.default_rng(number)
        pixels = 125 + rng.normal(0, 4, (HEIGHT, WIDTH, 3))
        for cells, strength in ((5, 90), (16, 45), (50, 25), (150, 12)):
            coarse = rng.normal(0, strength, (3, cells * HEIGHT // WIDTH + 2, cells + 2)).astype(np.float32)
            bands = [Image.fromarray(band).resize((WIDTH, HEIGHT), Image.BICUBIC) for band in coarse]
            pixels += np.stack([np.asarray(band) for band in bands], axis=-1)
        photo, mask = folder / f"{number}.jpg", folder / f"{number}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(photo, quality=90)
        Image.fromarray((pixels[..., 0] > 125).astype(np.uint8)).save(mask)
        rows.append({"image": str(photo), "label": str(mask), "file": photo.name})
    pictures = {"image": datasets.Image(), "label": datasets.Image(), "file": datasets.Value("string")}
    labeled = datasets.Dataset.from_list(rows, features=datasets.Features(pictures))
    names = {0: "dark", 1: "bright"}
    return SemiDataset(labeled, labeled.remove_columns("label"), None, names, name="synthetic photos")


def _processor_milliseconds(reference: Call, ours: Call, repeats: int) -> tuple[float, float]:
    """Median processor milliseconds of each, called in turn, after one call of each that does not count."""
    times: tuple[list[float], list[float]] = [], []
    for _ in range(repeats + 1):
        for call, spent in zip((reference, ours), times, strict=True):
            start = time.process_time()
            call()
            spent.append((time.process_time() - start) * 1e3)
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])
