"""Rows of a correlation map as binary shapes at full resolution (equation 7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Pixels brought to full resolution at once: 64 MiB of float32.
PIXELS = 2**24


@torch.no_grad()
def row_shapes(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """The regions where each row is high: brought to `size`, scaled to 0..1 over the image and cut at 0.5.

    A row that is the same everywhere says nothing and gives an empty shape.

    Args:
        rows: (N, S, h, w) floating, finite; see `correlation_rows`.
        size: (H, W) of the shapes.

    Returns:
        bool (N, S, H, W).
    """
    maps = rows.flatten(0, 1)
    at_once = max(1, PIXELS // (size[0] * size[1]))
    shapes = torch.cat([upper_half(full_size(some, size)) for some in maps.split(at_once)])
    # Of a constant row, the upsampling's rounding would be cut into a shape.
    varies = maps.amax(dim=(1, 2)) > maps.amin(dim=(1, 2))
    return shapes.logical_and_(varies[:, None, None]).view(*rows.shape[:2], *size)


def full_size(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """maps (S, h, w) -> (S, *size), bilinear with aligned corners, as the network upsamples.

    One channel each: `F.interpolate` rounds otherwise for three or, small, for many.
    """
    return F.interpolate(maps.unsqueeze(1), size=tuple(size), mode="bilinear", align_corners=True)[:, 0]


def upper_half(maps: Tensor) -> Tensor:
    """maps (S, H, W) -> bool: above the middle between the minimum and the maximum of each map."""
    low = maps.amin(dim=(1, 2), keepdim=True)
    span = maps.amax(dim=(1, 2), keepdim=True) - low
    return (maps - low) / span.clamp_min(torch.finfo(maps.dtype).tiny) > 0.5
