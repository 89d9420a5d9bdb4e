"""Taking back a training step whose loss or gradient was not finite."""

from __future__ import annotations

from torch import Tensor, nn

from .non_finite import NonFiniteLossError


class SkippedSteps:
    """Puts the method's buffers back to what they were before the step, and counts.

    A forward pass changes them before anyone knows its loss: running statistics, thresholds, memory banks. Parameters
    change in the optimiser and in `after_step` only, which a skipped step never reaches.

    Args:
        method: the method that trains.
        limit: steps in a row that may be skipped.

    Attributes:
        total, in_a_row: steps that were skipped.
    """

    def __init__(self, method: nn.Module, limit: int):
        self.method, self.limit = method, limit
        self.total = self.in_a_row = 0
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def remember(self) -> None:
        self._buffers = [(buffer, buffer.clone()) for buffer in self.method.buffers()]

    def undo(self, what: str) -> None:
        """Take the step back; `NonFiniteLossError`, saying `what` was seen, where there are too many in a row."""
        for buffer, before in self._buffers:
            buffer.copy_(before)
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row > self.limit:
            raise NonFiniteLossError(
                f"{what} {self.in_a_row} steps in a row had to be skipped, so this will not pass: lower "
                "--learning_rate, or give --max_grad_norm 1 or --mixed_precision no."
            )
