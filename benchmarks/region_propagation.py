"""Region propagation along correlation shapes, against algorithm 1 as it is printed: loops over images and shapes.

Twice: the shapes given, and from rows of the correlation map, which the reference brings to full resolution one and
all, scales to 0..1 and cuts. The scene is smooth random fields: features, from which come the rows and the classes,
and a confidence that is high on about half of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from corrmatch_hf.model.correlation_corrmatch import correlation_rows
from corrmatch_hf.ops.region_propagation.propagate import region_propagation
from corrmatch_hf.ops.region_propagation.rows import propagate_rows

from .measure import Row, extra_mib, milliseconds

IMAGES, SHAPES, CLASSES, THRESHOLD = 4, 128, 21, 0.85
# Crop and the ratio to reach on a CPU.
CROPS = {321: 10, 513: 10, 801: 15}


def rows(device: str) -> Iterator[Row]:
    threshold = torch.tensor(THRESHOLD, device=device)
    for crop, target in CROPS.items():
        maps, labels, confident, allowed = scene(crop, device)
        shapes = full_size_shapes(maps, allowed)

        def reference(args=(labels, confident, shapes)) -> tuple[Tensor, Tensor]:
            return algorithm_1(*args, threshold)

        def ours(args=(labels, confident, shapes)) -> tuple[Tensor, Tensor]:
            return region_propagation(*args, threshold, num_labels=CLASSES)

        yield Row(
            f"region propagation, shapes given, {IMAGES} images, {SHAPES} shapes, crop {crop}",
            *milliseconds(reference, ours, device, repeats=5 if crop < 500 else 3),
            "ms",
            same(reference(), ours()),
            target if device == "cpu" else 100,
            painted(labels, confident, ours()),
        )

    maps, labels, confident, allowed = scene(321, device)

    def reference() -> tuple[Tensor, Tensor]:
        return algorithm_1(labels, confident, full_size_shapes(maps, allowed), threshold)

    def ours() -> tuple[Tensor, Tensor]:
        return propagate_rows(maps, labels, confident, allowed, threshold, num_labels=CLASSES)

    what = f"region propagation from correlation rows, {IMAGES} images, {SHAPES} shapes, crop 321"
    identical = same(reference(), ours())
    yield Row(
        f"{what}: time",
        *milliseconds(reference, ours, device),
        "ms",
        identical,
        10 if device == "cpu" else 100,
    )
    yield Row(f"{what}: memory", extra_mib(reference, device), extra_mib(ours, device), "MiB", identical, 4)


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def painted(labels: Tensor, confident: Tensor, result: tuple[Tensor, Tensor]) -> str:
    """Shows that the case has something to do."""
    relabelled = (result[0] != labels).float().mean().item()
    gained = (result[1] & ~confident).float().mean().item()
    return f"{relabelled:.1%} of the pixels relabelled, {gained:.1%} become confident"


def scene(crop: int, device: str, classes: int = CLASSES) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Correlation rows (N,S,h,w) at output stride 8, labels, confident and allowed (N,crop,crop)."""
    generator = torch.Generator().manual_seed(0)
    grid = (crop + 7) // 8

    def field(channels: int, knots: int, size: int) -> Tensor:
        noise = torch.randn(IMAGES, channels, knots, knots, generator=generator)
        return F.interpolate(noise.to(device), size=(size, size), mode="bicubic", align_corners=True)

    features = field(classes, 3, grid)
    index = torch.randint(grid**2 - 1, (SHAPES,), generator=generator)
    maps = correlation_rows(features, 0.3 * features, index.to(device))
    logits = F.interpolate(features, size=(crop, crop), mode="bilinear", align_corners=True)
    labels = (logits + 0.1 * field(classes, 40, crop)).argmax(1)
    certainty = field(1, 2, crop)[:, 0] + 0.15 * field(1, 40, crop)[:, 0]
    allowed = torch.ones(IMAGES, crop, crop, dtype=torch.bool)
    allowed[:, :, crop - crop // 10 :] = False  # padding
    allowed[::2, crop // 5 : crop // 2, crop // 5 : crop // 2] = False  # a box in every other image
    confident = (certainty > certainty.median()) & allowed
    return maps, labels.to(device), confident.to(device), allowed.to(device)


def full_size_shapes(maps: Tensor, allowed: Tensor) -> Tensor:
    """Equation 7 at full resolution, all maps at once."""
    maps = F.interpolate(maps, size=allowed.shape[-2:], mode="bilinear", align_corners=True)
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    return ((maps - low) / (high - low) > 0.5) & allowed.unsqueeze(1)


def algorithm_1(
    labels: Tensor, confident: Tensor, shapes: Tensor, threshold: Tensor
) -> tuple[Tensor, Tensor]:
    labels, enlarged = labels.clone(), confident.clone()
    for n in range(len(labels)):
        for shape in shapes[n]:
            seg = shape & confident[n]
            size = seg.sum()
            if size == 0 or size / shape.sum() < threshold:
                continue
            classes, counts = labels[n][seg].unique(return_counts=True)
            most, top = counts.max(dim=0)
            if most / size > threshold:
                labels[n][shape] = classes[top]
                enlarged[n] |= shape
    return labels, enlarged
