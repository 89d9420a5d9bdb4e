"""The baseline: the labelled images alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..data.batch import SemiBatch
from .base import Logs, Method, MethodOptions


@dataclass
class SupervisedOptions(MethodOptions):
    """Options of the supervised baseline: those of the labelled loss."""


class Supervised(Method):
    """Mean cross-entropy (or OHEM) on the labelled images. Unlabelled images are not even loaded."""

    name = "supervised"
    Options = SupervisedOptions
    uses_unlabeled = False
    strong_views = 0

    def forward(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        logits = self.model(batch.image).logits
        loss = self.labeled_loss(logits, batch.label)
        return loss, {"loss/x": loss.detach()}
