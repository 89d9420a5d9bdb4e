"""The contrastive loss of DGCL: every anchor towards its class's prototype, away from pixels of other classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def prototype_contrast(
    anchors: Tensor, prototypes: Tensor, negatives: Tensor, is_negative: Tensor, temperature: float
) -> Tensor:
    """-log( exp(a.v / T) / (exp(a.v / T) + sum_n exp(a.n / T)) ) of each anchor a, all vectors at length 1.

    Args:
        anchors: (K, A, D) float, with gradient: A of each class.
        prototypes: (K, D) float, v: one of each class.
        negatives: (K, N, D) float, n: pixels that are not of the class.
        is_negative: (K, N) bool, False where there is none.
        temperature: T above 0.

    Returns:
        (K, A) float32. Without any negative it is 0. Gradient reaches the anchors alone.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        anchors = F.normalize(anchors.float(), dim=-1)
        prototypes, negatives = (F.normalize(v.detach().float(), dim=-1) for v in (prototypes, negatives))
        positive = anchors @ prototypes.unsqueeze(-1)
        negative = (anchors @ negatives.mT).masked_fill(~is_negative.unsqueeze(1), float("-inf"))
        logits = torch.cat([positive, negative], dim=-1) / temperature
        return logits.logsumexp(-1) - logits[..., 0]
