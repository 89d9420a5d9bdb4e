"""The DPT head against a plain one, written from UniMatch V2's description: forward and backward, same weights.

The plain head does things in the order of the paper's figure: it resizes before each 1x1 convolution. It keeps torch's
default memory layout, as published code does; ours has the layout that the trainer chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from corrmatch_hf.model.convolutions_corrmatch import SLOW_GRADIENTS
from corrmatch_hf.model.decoders_corrmatch import DPTDecoder

from .measure import Row, least_milliseconds

CLASSES, IMAGES = 21, 2
# encoder width, channels of the head and of its pyramid, of DINOv2-S and -B
HEADS = {"S": (384, 64, [48, 96, 192, 384]), "B": (768, 128, [96, 192, 384, 768])}
GRID = {"cpu": 18, "cuda": 37}  # crops of 252 and 518 pixels


def plain(weights: dict[str, Tensor], levels: list[Tensor]) -> Tensor:
    """Logits (N, K, 8h, 8w) of four levels (N, D, h, w)."""

    def conv(x: Tensor, name: str, **options) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), **options)

    def unit(x: Tensor, name: str) -> Tensor:
        return x + conv(F.relu(conv(F.relu(x), f"{name}.conv1", padding=1)), f"{name}.conv2", padding=1)

    x = [conv(level, f"project.{i}") for i, level in enumerate(levels)]
    for i, stride in ((0, 4), (1, 2)):
        x[i] = F.conv_transpose2d(
            x[i], weights[f"rescale.{i}.weight"], weights[f"rescale.{i}.bias"], stride=stride
        )
    x[3] = conv(x[3], "rescale.3", stride=2, padding=1)
    x = [conv(each, f"narrow.{i}", padding=1) for i, each in enumerate(x)]
    sizes = [[2 * side for side in x[0].shape[2:]], *(each.shape[2:] for each in x[:3])]
    fused = x[3]
    for i in (3, 2, 1, 0):
        if i < 3:
            fused = fused + unit(x[i], f"fuse.{i}.level")
        fused = F.interpolate(unit(fused, f"fuse.{i}.refine"), sizes[i], mode="bilinear", align_corners=True)
        fused = conv(fused, f"fuse.{i}.project")
    return conv(F.relu(conv(fused, "smooth", padding=1)), "classify")


def rows(device: str) -> Iterator[Row]:
    for name in HEADS:
        yield row(name, device)


def row(name: str, device: str) -> Row:
    torch.manual_seed(0)
    (width, channels, pyramid), grid = HEADS[name], GRID[device]
    head = DPTDecoder([width] * 4, CLASSES, channels, pyramid).to(device)
    weights = {key: value.detach().clone().requires_grad_() for key, value in head.named_parameters()}
    if device != "cpu" or not SLOW_GRADIENTS:
        head.to(memory_format=torch.channels_last)
    levels = [torch.randn(IMAGES, width, grid, grid, device=device, requires_grad=True) for _ in range(4)]

    def step(forward: Callable[[], Tensor]) -> list[Tensor]:
        logits = forward()
        logits.square().mean().backward()
        found = [logits.detach(), *(level.grad for level in levels)]
        for tensor in (*levels, *head.parameters(), *weights.values()):
            tensor.grad = None
        return found

    def ours() -> list[Tensor]:
        return step(lambda: head(levels).logits)

    def reference() -> list[Tensor]:
        return step(lambda: plain(weights, levels))

    equal = all(
        (a - b).norm() <= 1e-3 * b.norm() for a, b in zip(ours(), reference(), strict=True)
    )  # rounding moves a value over ReLU's edge here and there
    return Row(
        f"DPT head of ViT-{name}, forward and backward, {IMAGES} grids of {grid}",
        *least_milliseconds(reference, ours, device),
        "ms",
        equal,
        1.1,
        "to 1e-3 of their norms",
    )
