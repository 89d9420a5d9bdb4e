"""How much of each class a network finds on the labelled images, measured now and then while training runs.

    recall_c = pixels of class c that are predicted as c / pixels of class c     over about the last ten measurements

Both sums are counts that shrink by a tenth with each measurement. They are of the images that the network learns from,
so recall is flattered; a class that is not even found there is not found on other images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..distributed import all_reduce
from ..ops.per_class import sums_per_class

MOMENTUM = 0.9


class ClassRecall(nn.Module):
    """Which of K classes the network has learnt.

    Attributes:
        counts: (2, K) float64 buffer: pixels of each class that were found, and all of them.
        taught: (K,) bool buffer: the classes that had enough recall at the last `decide`; none before it.
    """

    counts: Tensor
    taught: Tensor

    def __init__(self, num_labels: int):
        super().__init__()
        self.register_buffer("counts", torch.zeros(2, num_labels, dtype=torch.float64))
        self.register_buffer("taught", torch.zeros(num_labels, dtype=torch.bool))

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count predictions (N, K, H, W) for labels (N, H, W); ids outside 0..K-1 are ignored."""
        found = logits.argmax(1) == labels
        pixels = torch.stack([found, torch.ones_like(found)], dim=-1).double()
        seen = all_reduce(sums_per_class(pixels, labels, self.counts.shape[1]))
        self.counts.mul_(MOMENTUM).add_(seen.T)

    def recall(self) -> Tensor:
        """(K,) float64 in 0..1; 0 for a class that was not seen."""
        found, seen = self.counts
        return found / seen.clamp(min=1e-9)

    def decide(self, least: float) -> None:
        """From now on the classes with a recall of at least `least` are `taught`."""
        self.taught.copy_(self.recall() >= least)
