"""Notices losses and gradients that are not finite, without reading anything back until it is asked."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor, nn

from ..distributed import all_reduce

REMEDY = (
    "No checkpoint was written since: resume from the last one, if there is one, with a lower --learning_rate, "
    "--max_grad_norm 1, --mixed_precision no, or --on_non_finite skip."
)


class NonFiniteLossError(RuntimeError):
    """A loss or gradient became NaN or infinite. The message names the step, the terms and the files of the batch."""


class NonFiniteWatch:
    """Keeps, on the device, the step and the terms of the first loss or gradient that is not finite.

    Args:
        device: where the losses are.
        memory: how many forward passes may lie between two calls of `check`.
    """

    def __init__(self, device: torch.device, memory: int):
        self.files: deque[tuple[int, list[str]]] = deque(maxlen=memory)
        self.names: list[str] = []
        self.device = device
        self.forget()

    def forget(self) -> None:
        """Start anew, after what was seen has been dealt with."""
        self.first = torch.full((), -1, dtype=torch.int64, device=self.device)
        self.terms: Tensor | None = None
        self.gradient: Tensor = torch.zeros((), device=self.device)

    def observe(self, step: int, loss: Tensor, logs: dict[str, Tensor], files: list[str]) -> None:
        """Look at one forward pass's loss."""
        self.names = [name for name in logs if name.startswith("loss/")]
        terms = torch.stack([loss.detach().float(), *(logs[name].float() for name in self.names)])
        bad = ~terms.isfinite().all() & (self.first < 0)
        self.first = torch.where(bad, step, self.first)
        self.terms = terms if self.terms is None else torch.where(bad, terms, self.terms)
        self.latest = terms
        self.files.append((step, files))

    def observe_gradient(self, step: int, norm: Tensor) -> None:
        """Look at the norm of the gradient of an optimiser step, after its losses."""
        bad = ~norm.isfinite() & (self.first < 0)
        self.first = torch.where(bad, step, self.first)
        self.gradient = torch.where(bad, norm, self.gradient)
        self.terms = torch.where(bad, self.latest, self.terms)

    def found(self) -> bool:
        """Whether anything was not finite, on any process. Reads back from the device."""
        return int(all_reduce(self.first, "max")) >= 0

    def describe(self) -> str:
        """What this process saw: step, terms, files."""
        first = int(self.first)
        if first < 0:
            return "A loss or gradient became non-finite on another process; its message names the files."
        terms = [f"{n} {v:.4g}" for n, v in zip(["total", *self.names], self.terms.tolist(), strict=True)]
        what = "loss"
        if not self.gradient.isfinite():
            what = "gradient"
            terms.append(f"norm of the gradient {self.gradient.item():.4g}")
        files = sorted({name for step, names in self.files if step == first for name in names})
        return (
            f"The {what} is not finite at step {first} ({', '.join(terms)}). "
            f"Files of the batch: {', '.join(files)}."
        )

    def check(self) -> None:
        """Raise `NonFiniteLossError`, on every process, if anything was not finite on any of them."""
        if self.found():
            raise NonFiniteLossError(f"{self.describe()} {REMEDY}")


# -------------------- Taking back a training step whose loss or gradient was not finite.


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
