"""Pseudo-labels: what a network predicts for unlabelled images, as the target of another prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from ..data.batch import SemiBatch
from ..distributed import per_process
from ..evaluation.inference import evaluating
from ..ops.losses import masked_cross_entropy
from ..options import option
from .base import Method
from .inter_pixel import InterPixelOptions, inter_pixel_terms

LOWER_THRESHOLD = "a lower --confidence_threshold"


@dataclass(eq=False)
class PseudoLabels:
    """The class of each pixel of N images, how certain it is, and which pixels count. Without gradient.

    Attributes:
        labels: (N, H, W) int64, the most probable class.
        confidence: (N, H, W) float32, its probability or another measure of certainty.
        valid: (N, H, W) bool, False in padding.
    """

    labels: Tensor
    confidence: Tensor
    valid: Tensor
    _logits: Tensor = field(repr=False)
    _pasted: tuple[Tensor, Tensor] | None = field(default=None, repr=False)  # a partner's logits, and the box

    @classmethod
    def of(cls, logits: Tensor, valid: Tensor) -> PseudoLabels:
        """From logits (N, K, H, W) and validity (N, H, W)."""
        logits = logits.detach()
        confidence, labels = logits.float().softmax(1).max(1)
        return cls(labels, confidence, valid, logits)

    def mixed(self, partner: PseudoLabels, box: Tensor) -> PseudoLabels:
        """As CutMix mixes the images: the partner's inside `box` (N, H, W) bool, these outside it."""
        return PseudoLabels(
            torch.where(box, partner.labels, self.labels),
            torch.where(box, partner.confidence, self.confidence),
            torch.where(box, partner.valid, self.valid),
            self.logits,
            (partner.logits, box),
        )

    @property
    def logits(self) -> Tensor:
        """(N, K, H, W) float. Mixed only when read, because most losses do not need them."""
        if self._pasted is None:
            return self._logits
        pasted, box = self._pasted
        return torch.where(box.unsqueeze(1), pasted, self._logits)

    @cached_property
    def count(self) -> Tensor:
        """Scalar float: valid pixels of the total batch, per process (see `distributed.py`)."""
        return per_process(self.valid.sum())

    def confident(self, threshold: Tensor | float) -> Tensor:
        """(N, H, W) bool: valid pixels whose confidence reaches the threshold."""
        return (self.confidence >= threshold) & self.valid

    def observe(self, method: Method, threshold: Tensor | float, batch: SemiBatch) -> None:
        """Count these labels of the weak views of `batch` for the log; those that reach the threshold are kept."""
        kept = self.confident(threshold)
        method.class_statistics.observe(
            self.labels, self.confidence, kept, self.valid, truth=batch.unlabeled_truth
        )

    def ratio(self, kept: Tensor) -> Tensor:
        """Share of `kept` (N, H, W) bool among the valid pixels; the processes' mean is that of the total batch."""
        return kept.sum() / self.count

    def cross_entropy(self, logits: Tensor, kept: Tensor) -> Tensor:
        """Cross-entropy of logits (N, K, H, W) where `kept` (N, H, W) holds, over the number of ALL valid pixels."""
        return masked_cross_entropy(logits, self.labels, kept, self.count)


def teacher_pseudo_labels(teacher: nn.Module, batch: SemiBatch) -> tuple[PseudoLabels, PseudoLabels]:
    """A teacher's pseudo-labels of the weak views and of their CutMix partners, in evaluation mode."""
    with evaluating(teacher):
        weak = teacher(batch.weak).logits
    return PseudoLabels.of(weak, batch.valid), partner_pseudo_labels(teacher, batch, weak)


def partner_pseudo_labels(
    model: nn.Module, batch: SemiBatch, weak_logits: Tensor | None = None
) -> PseudoLabels:
    """The pseudo-labels of the CutMix partners; arguments as for `partner_logits`."""
    return PseudoLabels.of(*partner_logits(model, batch, weak_logits))


def partner_logits(
    model: nn.Module, batch: SemiBatch, weak_logits: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`model`'s predictions for the partners that CutMix pastes, in evaluation mode and without gradient.

    Args:
        model: a `CorrMatchForSegmentation`.
        batch: its `partner_weak` (P, 3, H, W) are the partners of its rows `partner_rows`.
        weak_logits: the model's logits (N, K, H, W) of `batch.weak`, in evaluation mode too. If they are given,
            partners that are among the weak views are looked up instead of computed.

    Returns:
        Logits (N, K, H, W) float32 and validity (N, H, W) bool. Rows without a box are zero and False: nothing of
        them is pasted.
    """
    n, _, height, width = batch.weak.shape
    logits = batch.weak.new_zeros(n, model.config.num_labels, height, width, dtype=torch.float32)
    valid = torch.zeros_like(batch.valid)

    def index(numbers: list[int]) -> Tensor:
        return torch.tensor(numbers).to(batch.weak.device, non_blocking=True)

    rows = batch.partner_rows
    places = batch.partner_places if weak_logits is not None and batch.partner_places else [-1] * len(rows)
    if known := [i for i, place in enumerate(places) if place >= 0]:
        found = weak_logits.detach().index_select(0, index([places[i] for i in known]))
        logits.index_copy_(0, index([rows[i] for i in known]), found.float())
    if unknown := [i for i, place in enumerate(places) if place < 0]:
        images = batch.partner_weak if not known else batch.partner_weak.index_select(0, index(unknown))
        with evaluating(model):
            logits.index_copy_(0, index([rows[i] for i in unknown]), model(images).logits.float())
        # Autocast caches weights that it has cast. Those cast without gradient must not be reused with one, as torch
        # before 2.10 does.
        torch.clear_autocast_cache()
    if rows:
        valid.index_copy_(0, index(rows), batch.partner_valid)
    return logits, valid


@dataclass
class ConfidenceOptions(InterPixelOptions):
    """Options of the methods with a fixed threshold on the pseudo-labels' confidence."""

    confidence_threshold: float = option(
        0.95,
        "Pseudo-labels with at least this confidence count (0.95; 0 on Cityscapes).",
        group="Method",
        at_least=0,
        at_most=1,
    )


def strong_view_terms(
    method: Method, strong: Sequence[Tensor], weak: PseudoLabels, partner: PseudoLabels, batch: SemiBatch
) -> dict[str, Tensor]:
    """{"s1": ..., "s2": ...}: each strong view against the confident pseudo-labels, mixed with the view's own box.

    With --inter_pixel_loss also "inter_pixel", its mean over the views.

    Args:
        method: with `ConfidenceOptions`.
        strong: logits (N, K, H, W) of each strong view.
        weak, partner: pseudo-labels of the weak views and of the CutMix partners.
        batch: gives the boxes and the step.
    """
    terms, views = {}, []
    for i, logits in enumerate(strong):
        target = weak.mixed(partner, batch.box[:, i])
        kept = target.confident(method.options.confidence_threshold)
        terms[f"s{i + 1}"] = target.cross_entropy(logits, kept)
        views.append((logits, target, kept))
    return terms | inter_pixel_terms(method, views, batch.step)
