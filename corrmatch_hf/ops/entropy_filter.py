"""Leaving out the least certain pixels: the share of them is given, not the threshold."""

from __future__ import annotations

import torch
from torch import Tensor

from .distributed import all_gather


def entropy(logits: Tensor) -> Tensor:
    """-sum_k p_k log p_k of the softmax p of logits (N, K, H, W), in float32: (N, H, W), without gradient."""
    log_p = logits.detach().float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def entropy_threshold(values: Tensor, valid: Tensor, dropped: float) -> Tensor:
    """The entropy above which lies the share `dropped` of the valid pixels of the total batch.

    The quantile 1 - `dropped`, interpolated linearly as `numpy.quantile` does, but of a number of values that
    only the device knows.

    Args:
        values: entropies, any shape, the same on all processes.
        valid: bool, same shape; the pixels that count.
        dropped: share in [0, 1].

    Returns:
        Scalar float32; without a valid pixel the largest float, which is no pixel's entropy.
    """
    largest = torch.finfo(torch.float32).max
    ordered = all_gather(values.float().masked_fill(~valid, largest).flatten()).sort().values
    place = (1 - dropped) * ((ordered < largest).sum() - 1).clamp(min=0)
    around = torch.stack([place.floor(), place.ceil()]).long().clamp(max=len(ordered) - 1)
    below, above = ordered.gather(0, around)  # indexing with a scalar would read it back
    return torch.lerp(below, above, place - place.floor())
