"""How crowded a feature's surroundings are (DGCL): its mean similarity to its nearest neighbours, at several scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NEIGHBOURS = (8, 16, 32)  # of the published runs


def density(
    features: Tensor, memory: Tensor, count: Tensor, neighbours: Sequence[int] = NEIGHBOURS
) -> Tensor:
    """1/S sum over the S scales k of the mean of the k largest cosine similarities to the memory.

    Args:
        features: (n, C) rows of length 1.
        memory: (M, C) rows of length 1, of which the first `count` are filled; M is at least the largest k.
        count: integer scalar, on the device.
        neighbours: the scales k.

    Returns:
        (n,) float32 in [-1, 1], without gradient; 0 while `count` is below the largest k.
    """
    most = max(neighbours)
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        similarity = features.float() @ memory.float().T
        similarity.masked_fill_(torch.arange(len(memory), device=memory.device) >= count, -1.0)
        nearest = similarity.topk(most).values
        scales = [nearest[:, :k].mean(1) for k in neighbours]
        return torch.stack(scales).mean(0) * (count >= most)
