"""A memory of each class's pixels: queues of fixed size in buffers, saved and moved with the method's state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.dense_contrast import NEIGHBOURS, NOTHING, density, take


class MemoryBank(nn.Module):
    """For each class the last M pixels seen, first in, first out: feature, projection, and a score given on entry.

    Its size is fixed: 4 K M (C + D + 1) bytes. With K = 21, M = 10 000 and C = D = 256, as published, that is 431 MB;
    with 150 classes and the M = 1400 that `DGCL` gives them it is the same.

    Args:
        num_labels: number of classes K.
        size: entries of each class M, at least the largest scale of the density (32).
        channels: C, of the features.
        projected: D, of the projections.

    Attributes:
        features: (K, M, C) float32, rows of length 1.
        projections: (K, M, D) float32, as they came.
        scores: (K, M) float32.
        added: (K,) int64, entries ever added; the next one goes to place `added % M`.
    """

    features: Tensor
    projections: Tensor
    scores: Tensor
    added: Tensor

    def __init__(self, num_labels: int, size: int, channels: int, projected: int):
        super().__init__()
        if size < max(NEIGHBOURS):
            raise ValueError(f"A memory of {size} entries is too small; the density needs {max(NEIGHBOURS)}.")
        self.size = size
        self.register_buffer("features", torch.zeros(num_labels, size, channels))
        self.register_buffer("projections", torch.zeros(num_labels, size, projected))
        self.register_buffer("scores", torch.zeros(num_labels, size))
        self.register_buffer("added", torch.zeros(num_labels, dtype=torch.long))

    @property
    def count(self) -> Tensor:
        """(K,) int64: entries that each class has."""
        return self.added.clamp(max=self.size)

    @torch.no_grad()
    def add(self, features: Tensor, projections: Tensor, scores: Tensor, present: Tensor) -> None:
        """Put new entries in the place of the oldest.

        Args:
            features, projections, scores: (K, n, C), (K, n, D) and (K, n), n at most M.
            present: (K, n) bool; in each row the first entries are True, the others are ignored.
        """
        place = (self.added[:, None] + torch.arange(present.shape[1], device=present.device)) % self.size
        for own, new in (
            (self.features, F.normalize(features.float(), dim=-1)),
            (self.projections, projections.float()),
            (self.scores, scores.float()),
        ):
            mask, where = (t.view(*t.shape, *[1] * (new.ndim - 2)).expand_as(new) for t in (present, place))
            own.scatter_(1, where, torch.where(mask, new, take(own, place)))
        self.added += present.sum(1)

    @torch.no_grad()
    def density(self, features: Tensor, index: Tensor) -> Tensor:
        """Density of pixels among the entries of a class (see `ops/dense_contrast.py`).

        Args:
            features: (P, C) rows of length 1.
            index: (K, n) which of them are compared with which class.

        Returns:
            (K, n) float32. Classes are computed one after the other, so only n M similarities exist at once.
        """
        return torch.stack(
            [
                density(features[rows], memory, count)
                for rows, memory, count in zip(index, self.features, self.count, strict=True)
            ]
        )

    @torch.no_grad()
    def best(self, number: int, scores: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The projections (K, k, D) with the highest scores (by default those given on entry), k = min(number, M).

        Also (K, k) bool: False where a class has fewer entries.
        """
        filled = torch.arange(self.size, device=self.added.device) < self.count[:, None]
        scores = (self.scores if scores is None else scores).masked_fill(~filled, NOTHING)
        scores, place = scores.topk(min(number, self.size))
        return take(self.projections, place), scores > NOTHING
