"""Hard pseudo-labels, their confidence, and those of the CutMix partner."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..data.batch import SemiBatch
from ..distributed import per_process
from ..evaluation.inference import evaluating
from ..ops.losses import masked_cross_entropy
from .base import Share
from .inter_pixel import InterPixelOptions


@dataclass
class PseudoLabels:
    """What a view's logits say, without gradient: probabilities' maximum and the class that has it, both (N, H, W)."""

    confidence: Tensor
    labels: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> PseudoLabels:
        confidence, labels = logits.detach().float().softmax(1).max(1)
        return cls(confidence, labels)

    def pasted(self, other: PseudoLabels, box: Tensor) -> PseudoLabels:
        """These with `other`'s inside the box (N, H, W)."""
        return PseudoLabels(
            torch.where(box, other.confidence, self.confidence), torch.where(box, other.labels, self.labels)
        )


def taught_logits(teacher: nn.Module, batch: SemiBatch) -> tuple[Tensor, Tensor, Tensor]:
    """What a teacher, in evaluation mode and without gradient, says of the weak views, and as `partner_logits`."""
    with evaluating(teacher):
        weak = teacher(batch.weak).logits
    return weak, *partner_logits(teacher, batch, weak)


def partner_logits(model: nn.Module, batch: SemiBatch, weak: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What `model`, in evaluation mode and without gradient, says of the partners that CutMix pastes.

    weak: what it says, in the same way, of the weak views, (N, K, H, W); then partners among them need no pass.

    Returns:
        Logits (N, K, H, W) float32 and validity (N, H, W) bool. Rows without a box stay zero and False, unread.
    """
    n, _, height, width = batch.weak.shape
    logits = batch.weak.new_zeros(n, model.config.num_labels, height, width, dtype=torch.float32)
    valid = torch.zeros_like(batch.valid)

    def index(numbers: list[int]) -> Tensor:
        return torch.tensor(numbers).to(batch.weak.device, non_blocking=True)

    rows = batch.partner_rows
    places = batch.partner_places if weak is not None and batch.partner_places else [-1] * len(rows)
    if seen := [i for i, place in enumerate(places) if place >= 0]:
        there = weak.detach().index_select(0, index([places[i] for i in seen]))
        logits.index_copy_(0, index([rows[i] for i in seen]), there.float())
    if unseen := [i for i, place in enumerate(places) if place < 0]:
        images = batch.partner_weak if not seen else batch.partner_weak.index_select(0, index(unseen))
        with evaluating(model):
            logits.index_copy_(0, index([rows[i] for i in unseen]), model(images).logits.float())
        # Weights that autocast cast without gradient must not be reused with one (torch before 2.10 would).
        torch.clear_autocast_cache()
    if rows:
        valid.index_copy_(0, index(rows), batch.partner_valid)
    return logits, valid


# -------------------- What the methods with a fixed confidence threshold share: their options, and the loss against pseudo-labels.


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
