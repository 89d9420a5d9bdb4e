"""Strong views made where the network is, instead of in the loading processes.

A loading process then sends weak crops as bytes and what was drawn for each view. The rest is `color.py` again in
torch, operation by operation: the same float32 arithmetic, cut to 8 bits in the same places. Nothing is read back to
the host: factors are known there, and the mean that contrast needs stays a tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import BoolTensor, Tensor

from . import color
from .augment import Recoloring


class StrongView(NamedTuple):
    """How one strong view is made: what is done to the row's own crop and, where there is a box, to its partner's."""

    own: Recoloring
    pasted: Recoloring | None


@dataclass
class UncoloredViews:
    """The unlabelled pictures of a batch before anything is done to their colours.

    B_u: unlabelled images; P: rows with a box in any view; S: strong views, maybe none.
    """

    crops: (
        Tensor  # (B_u + P, H, W, 3) uint8, weak crops of the rows, then of the partners of those with a box
    )
    strong: list[list[StrongView]]  # [B_u][S]
    scale: tuple[float, ...]  # of normalising, for each channel: level * scale - offset
    offset: tuple[float, ...]

    def map(self, function: Callable[[Tensor], Tensor]) -> UncoloredViews:
        return dataclasses.replace(self, crops=function(self.crops))

    def pictures(
        self, box: BoolTensor | None, partner_rows: list[int]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`weak`, `strong` and `partner_weak` as a SemiBatch has them, from its `box` and `partner_rows`.

        The last two are None without strong views.
        """
        crops = self.crops.permute(0, 3, 1, 2).contiguous()
        rows = len(self.strong)
        weak = self._normalize(crops[:rows])
        if box is None:
            return weak, None, None
        pasted = dict(zip(partner_rows, crops[rows:], strict=True))
        strong = crops.new_empty(rows, box.shape[1], *crops.shape[1:])
        for row, views in enumerate(self.strong):
            for i, view in enumerate(views):
                picture = recolor(crops[row], view.own)
                if view.pasted is not None:
                    picture = torch.where(box[row, i], recolor(pasted[row], view.pasted), picture)
                strong[row, i] = picture
        return weak, self._normalize(strong), self._normalize(crops[rows:])

    def _normalize(self, pictures: Tensor) -> Tensor:
        """(..., 3, H, W) uint8 -> the same shape, float32."""
        result = pictures.float()
        for channel, (scale, offset) in enumerate(zip(self.scale, self.offset, strict=True)):
            result.select(-3, channel).mul_(scale).sub_(offset)
        return result


# ------------------------------------------------------------- pictures, (3, H, W) uint8 -> (3, H, W) uint8


def recolor(picture: Tensor, recoloring: Recoloring) -> Tensor:
    """What `recoloring` does to a PIL image."""
    for step, factor in recoloring.jitter:
        picture = STEPS[step](picture, factor)
    if recoloring.gray:
        picture = _gray(picture).expand_as(picture)
    if recoloring.sigma is not None:
        picture = blur(picture, recoloring.sigma)
    return picture


def brightness(picture: Tensor, factor: float) -> Tensor:
    return _away_from(0, picture, factor)


def contrast(picture: Tensor, factor: float) -> Tensor:
    gray = _gray(picture)
    count = gray.numel()
    mean = (2 * gray.sum() + count).div(2 * count, rounding_mode="floor")  # rounded, in integers
    return _away_from(mean, picture, factor)


def saturation(picture: Tensor, factor: float) -> Tensor:
    return _away_from(_gray(picture), picture, factor)


def _away_from(center: int | Tensor, picture: Tensor, factor: float) -> Tensor:
    """Each level `factor` times as far from `center`."""
    return (picture.float() - center).mul_(factor).add_(center).clamp_(0, 255).to(torch.uint8)


def _gray(picture: Tensor) -> Tensor:
    """(1, H, W) uint8, PIL's "L"."""
    red, green, blue = picture.int().unbind()
    return ((red * 19595 + green * 38470 + blue * 7471 + 2**15) >> 16).to(torch.uint8).unsqueeze(0)


def hue(picture: Tensor, factor: float) -> Tensor:
    value = picture.amax(0)
    chroma = value - picture.amin(0)
    red, green, blue = picture.int().unbind()
    is_red = red == value
    is_green = (green == value) & ~is_red
    sector = torch.where(is_red, 0, torch.where(is_green, 1, 2))
    difference = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    place = ((sector * 256 + chroma) << 9) + difference + 256
    turn = int(factor * 255) % 256
    angle = (_angles(picture.device).take(place).int() + turn) % 256

    height = value.float()
    depth = (chroma / height.clamp(min=1)).mul_(255).floor_().mul_(height)
    depth.mul_(float(np.float32(1 / (255 * 85))))
    twice = 2 * angle
    below = torch.stack([170 - (twice - 255).abs(), (twice - 170).abs() - 85, (twice - 340).abs() - 85])
    return (height - below.clamp_(0, 85) * depth).add_(0.5).to(torch.uint8)


@cache
def _angles(device: torch.device) -> Tensor:
    """The one copy from the host: at the first hue of a run."""
    return torch.from_numpy(color._angles()).to(device)


def blur(picture: Tensor, sigma: float) -> Tensor:
    reach, edge = color._box(sigma)
    pad, blurred = reach + 1, picture.float()
    for axis in (2, 2, 2, 1, 1, 1):
        length = blurred.shape[axis]
        padded = F.pad(blurred, (pad, pad, 0, 0) if axis == 2 else (0, 0, pad, pad), mode="replicate")
        at = [padded.narrow(axis, shift, length) for shift in range(2 * pad + 1)]
        blurred = (at[0] + at[-1]).mul_(float(edge)).add_(at[pad])
        for shift in range(1, pad):
            blurred.add_(at[pad - shift]).add_(at[pad + shift])
    return blurred.mul_(float(np.float32((2 * (reach + edge) + 1) ** -6))).add_(0.5).to(torch.uint8)


STEPS: dict[Callable, Callable[[Tensor, float], Tensor]] = {
    color.brightness: brightness,
    color.contrast: contrast,
    color.saturation: saturation,
    color.hue: hue,
}
