"""The losses of the field, each a mean over the total batch of all processes (see `distributed.py`).

Logits are (N, K, H, W) floats, labels (N, H, W) integers. Everything is computed in float32, under autocast too.
A mean over no pixel is 0 with zero gradient, never NaN.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..distributed import all_gather, per_process


def masked_mean(values: Tensor, mask: Tensor, denominator: Tensor) -> Tensor:
    """Sum of `values` where `mask` holds, over `denominator` (a float scalar, as `per_process` gives it)."""
    return (values * mask).sum() / denominator


def masked_cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor, denominator: Tensor) -> Tensor:
    """Cross-entropy against hard labels where `mask` (N, H, W) holds, divided by `denominator`.

    Methods divide by the number of all valid pixels, not of the kept ones (CorrMatch equation 6): few confident pixels
    then weigh little.
    """
    return masked_mean(F.cross_entropy(logits.float(), labels, reduction="none"), mask, denominator)


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Mean cross-entropy over the pixels that are not `ignore_index`."""
    summed = F.cross_entropy(logits.float(), labels, ignore_index=ignore_index, reduction="sum")
    return summed / per_process((labels != ignore_index).sum())


def ohem_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    ignore_index: int = 255,
) -> Tensor:
    """Cross-entropy over the hard pixels: online hard example mining, the labelled loss of the Cityscapes recipes.

    A pixel is kept if the probability of its true class is at most max(`threshold`, the `min_kept`-th smallest such
    probability). With fewer than `min_kept` valid pixels all of them are kept.

    Args:
        logits: (N, K, H, W) float.
        labels: (N, H, W) int64, ids or `ignore_index`.
        threshold: probability in [0, 1].
        min_kept: smallest number of kept pixels in the total batch of all processes.
        ignore_index: label of the pixels to ignore.

    Returns:
        Scalar float32.
    """
    logits = logits.float()
    valid = labels != ignore_index
    loss = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    # The loss is -log of that probability. Ignored pixels get 2, above any probability, so that they sort last and no
    # boolean indexing is needed.
    probability = loss.detach().neg().exp().masked_fill(~valid, 2.0)
    cut = _kth_smallest(probability.flatten(), min_kept).clamp(min=threshold)
    kept = valid & (probability <= cut)
    return masked_mean(loss, kept, per_process(kept.sum()))


def _kth_smallest(values: Tensor, k: int) -> Tensor:
    """The k-th smallest value over all processes; the largest one if there are fewer than k."""
    k = max(k, 1)
    values = all_gather(values.topk(min(k, values.numel()), largest=False, sorted=False).values)
    if k > values.numel():
        return values.amax()
    return values.kthvalue(k).values


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) per pixel, (N, H, W); the teacher gets no gradient."""
    student = student_logits.float().log_softmax(1)
    teacher = teacher_logits.detach().float().log_softmax(1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy of the student against the teacher's probabilities per pixel, (N, H, W)."""
    teacher = teacher_logits.detach().float().softmax(1)
    return -(teacher * student_logits.float().log_softmax(1)).sum(1)


def cosine_distance(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """1 - cosine similarity of the two probability vectors per pixel, (N, H, W)."""
    teacher = teacher_logits.detach().float().softmax(1)
    return 1 - F.cosine_similarity(student_logits.float().softmax(1), teacher, dim=1)
