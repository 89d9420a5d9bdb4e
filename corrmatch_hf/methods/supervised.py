"""The baseline: the labelled images alone.

L = L_x        mean cross-entropy (or OHEM) over the labelled pixels
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..data.batch import SemiBatch
from .base import Logs, Method, MethodOptions, loss_logs


@dataclass
class SupervisedOptions(MethodOptions):
    """Options of the supervised baseline: the labelled loss."""


class Supervised(Method):
    """The supervised baseline. Unlabelled images are not even loaded."""

    name = "supervised"
    Options = SupervisedOptions
    uses_unlabeled = False
    strong_views = 0

    def forward(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        loss = self.labeled_loss(self.model(batch.image).logits, batch.label)
        return loss, loss_logs({"x": loss})
