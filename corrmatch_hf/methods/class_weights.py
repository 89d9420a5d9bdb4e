"""Class weights from the class frequencies of the labelled masks, counted while training runs.

    w_c = f_c^-p / sum over k of f_k^(1-p)            f_c: share of class c in all labelled pixels seen so far

so the mean weight of a labelled pixel is 1: the balance between loss terms does not depend on p. Nothing is read in
advance: the labelled masks are few, and after some batches their counts have settled.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..distributed import all_reduce
from ..ops.per_class import sums_per_class


class ClassWeights(nn.Module):
    """Weights frequency^-power, normalised over the labelled pixels seen so far.

    Args:
        num_labels: number of classes K.
        power: p; 0 gives every class the weight 1.

    Attributes:
        counts: (K,) float64 buffer, labelled pixels of each class seen so far, over all processes.
    """

    counts: Tensor

    def __init__(self, num_labels: int, power: float):
        super().__init__()
        self.power = power
        self.register_buffer("counts", torch.zeros(num_labels, dtype=torch.float64))

    @torch.no_grad()
    def update(self, labels: Tensor) -> None:
        """Count labels (N, H, W); ids outside 0..K-1 are ignored."""
        pixels = torch.ones_like(labels, dtype=torch.float64)
        self.counts += all_reduce(sums_per_class(pixels, labels, len(self.counts)))

    def weights(self) -> Tensor:
        """(K,) float32. A class without a pixel so far counts as one pixel."""
        share = self.counts.clamp(min=1)
        share = share / share.sum()
        weights = share**-self.power
        return (weights / (share * weights).sum()).float()
