"""The confidence threshold that follows the model (CorrMatch equations 11 and 13, algorithm 2)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..distributed import all_reduce
from ..errors import unknown_name
from ..ops.per_class import largest_per_class

ThresholdUpdate = Literal["class_max", "global_max", "global_mean", "per_class", "fixed"]
UPDATES: tuple[str, ...] = get_args(ThresholdUpdate)


class DynamicThreshold(nn.Module):
    """A confidence threshold: an exponential average of the model's largest confidences.

    Args:
        num_labels: number of classes K.
        initial: value at the start, in [0, 1].
        momentum: share of the old value kept by an update.
        update: what the average follows (paper table 10 and its appendix):
            "class_max" (official) the mean, over the classes predicted somewhere, of each one's largest confidence;
            "global_max" the largest confidence; "global_mean" the mean confidence; "per_class" one threshold per class,
            following that class's largest confidence; "fixed" nothing.

    Attributes:
        value: the threshold, a float32 buffer: a scalar, or (K,) with "per_class". It is saved with the method's state.
    """

    value: Tensor

    def __init__(
        self, num_labels: int, initial: float = 0.85, momentum: float = 0.999, update: str = "class_max"
    ):
        super().__init__()
        if update not in UPDATES:
            raise unknown_name("threshold update", update, UPDATES)
        self.num_labels, self.momentum, self.update_rule = num_labels, momentum, update
        shape = (num_labels,) if update == "per_class" else ()
        self.register_buffer("value", torch.full(shape, initial, dtype=torch.float32))

    @torch.no_grad()
    def update(self, confidence: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        """Follow one batch and return the new value. If no process has a valid pixel, nothing changes.

        Args:
            confidence: (N, H, W) float, the largest class probability of each pixel.
            labels: (N, H, W) int64, the class that has it.
            valid: (N, H, W) bool, the pixels that count.
        """
        if self.update_rule == "fixed":
            return self.value
        confidence = confidence.float()
        if self.update_rule == "global_mean":
            total = all_reduce(torch.stack([(confidence * valid).sum(), valid.sum().float()]))
            target, seen = total[0] / total[1].clamp(min=1), total[1] > 0
        else:
            # The maximum over processes of K floats replaces gathering their logits: the same value.
            # On a GPU, atomic maxima at only K cells would wait for each other: there every column has its own.
            columns = labels.shape[-1] if labels.is_cuda else 1
            best = largest_per_class(torch.where(valid, confidence, -1.0), labels, self.num_labels, columns)
            best = all_reduce(best, "max")
            predicted = best >= 0
            if self.update_rule == "per_class":
                target, seen = best, predicted
            elif self.update_rule == "global_max":
                target, seen = best.amax(), predicted.any()
            else:
                target, seen = (best * predicted).sum() / predicted.sum().clamp(min=1), predicted.any()
        followed = self.momentum * self.value + (1 - self.momentum) * target
        self.value.copy_(torch.where(seen, followed, self.value))
        return self.value

    def confident(self, confidence: Tensor, labels: Tensor) -> Tensor:
        """(N, H, W) bool: the pixels whose confidence reaches the threshold (of their class)."""
        threshold = self.value[labels] if self.update_rule == "per_class" else self.value
        return confidence >= threshold

    def scalar(self) -> Tensor:
        """One number for the ratios of region propagation and for logs: the value, or its mean over classes."""
        return self.value.mean()
