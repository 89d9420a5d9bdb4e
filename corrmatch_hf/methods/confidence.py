"""What the methods with a fixed confidence threshold share: their options, and the loss against pseudo-labels."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..ops.distributed import per_process
from ..ops.losses import masked_cross_entropy
from .base import Share
from .inter_pixel import InterPixelOptions
from .pseudo_labels import PseudoLabels


@dataclass
class ConfidenceOptions(InterPixelOptions):
    """A fixed threshold on the pseudo-labels' confidence."""

    confidence_threshold: Share = field(
        default=0.95,
        metadata={"help": "Pseudo-labels at least this confident count (0.95; 0 on Cityscapes)."},
    )


def confident_cross_entropy(logits: Tensor, target: PseudoLabels, valid: Tensor, threshold: float) -> Tensor:
    """Cross-entropy where the target is confident and valid, over the number of ALL valid pixels of the total batch."""
    kept = (target.confidence >= threshold) & valid
    return masked_cross_entropy(logits, target.labels, kept, per_process(valid.sum()))


def kept_ratio(target: PseudoLabels, valid: Tensor, threshold: float) -> Tensor:
    """Share of the valid pixels whose pseudo-label is confident; the mean over processes is that of the total batch."""
    return ((target.confidence >= threshold) & valid).sum() / per_process(valid.sum())
