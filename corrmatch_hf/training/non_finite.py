"""Losses and gradients that are NaN or infinite: noticing them, and undoing the step that produced them.

`NonFiniteWatch` looks at every step on the device and reads nothing back to the host before `check` or `found` is
called. `SkippedSteps` restores the method after a step that `--on_non_finite skip` leaves out.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor, nn

from ..distributed import all_reduce
from ..methods.base import Method

REMEDY = (
    "No checkpoint was written since: resume from the last one, if there is one, with a lower --learning_rate, "
    "--max_grad_norm 1, --mixed_precision no, or --on_non_finite skip."
)


class NonFiniteLossError(RuntimeError):
    """A loss or gradient became NaN or infinite. The message names the step, the loss terms and the batch's files."""


class NonFiniteWatch:
    """Keeps, on the device, the step and the terms of the first loss or gradient that is not finite.

    Args:
        device: where the losses are.
        memory: the largest number of forward passes between two calls of `check`.
    """

    def __init__(self, device: torch.device, memory: int):
        self.device = device
        self.files: deque[tuple[int, list[str]]] = deque(maxlen=memory)  # (step, files) of the latest passes
        self.names: list[str] = []  # of the loss terms
        self.forget()

    def forget(self) -> None:
        """Start anew, once a non-finite step has been handled."""
        self.first = torch.full((), -1, dtype=torch.int64, device=self.device)  # the step; -1: none so far
        self.terms: Tensor | None = None
        self.gradient: Tensor = torch.zeros((), device=self.device)

    def observe(self, step: int, loss: Tensor, logs: dict[str, Tensor], files: list[str]) -> None:
        """Look at the loss of one forward pass."""
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
        """Step, loss terms and files of what this process found."""
        first = int(self.first)
        if first < 0:
            return "A loss or gradient became non-finite on another process; its message names the files."
        terms = [f"{n} {v:.4g}" for n, v in zip(["total", *self.names], self.terms.tolist(), strict=True)]
        kind = "loss"
        if not self.gradient.isfinite():
            kind = "gradient"
            terms.append(f"norm of the gradient {self.gradient.item():.4g}")
        files = sorted({name for step, names in self.files if step == first for name in names})
        return (
            f"The {kind} is not finite at step {first} ({', '.join(terms)}). "
            f"Files of the batch: {', '.join(files)}."
        )

    def check(self) -> None:
        """Raise `NonFiniteLossError` on every process if anything was not finite on any of them."""
        if self.found():
            raise NonFiniteLossError(f"{self.describe()} {REMEDY}")


class SkippedSteps:
    """Restores the method's buffers after a step that is skipped, and counts such steps.

    A forward pass changes buffers before its loss is known: running statistics, thresholds, memory banks. Parameters
    change in the optimiser and in `after_step`, neither of which a skipped step reaches. What the method renews as a
    whole (`renewed`) stays as it is.

    Args:
        method: the method that trains.
        limit: the largest number of steps skipped in a row.

    Attributes:
        total, in_a_row: skipped steps so far.
    """

    def __init__(self, method: Method, limit: int):
        self.method, self.limit = method, limit
        self.total = self.in_a_row = 0
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def remember(self) -> None:
        """Copy the buffers before a step."""
        self._buffers = [
            (buffer, buffer.clone())
            for name, buffer in self.method.named_buffers()
            if not name.startswith(self.method.renewed)
        ]

    def undo(self, description: str) -> None:
        """Restore the buffers; raise `NonFiniteLossError` with `description` after too many skipped steps in a row."""
        for buffer, before in self._buffers:
            buffer.copy_(before)
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row > self.limit:
            raise NonFiniteLossError(
                f"{description} {self.in_a_row} steps in a row had to be skipped: lower --learning_rate, or give "
                "--max_grad_norm 1 or --mixed_precision no."
            )


def check_weights(networks: list[nn.Module], step: int) -> None:
    """Raise `NonFiniteLossError` where a weight or buffer is not finite, so that it never replaces a good checkpoint.

    A gradient can be infinite, and spoil the weights, where the loss is finite.
    """
    tensors = [tensor for network in networks for tensor in network.state_dict().values()]
    sums = torch.stack([tensor.detach().float().sum() for tensor in tensors])
    if not bool(sums.isfinite().all()):
        raise NonFiniteLossError(f"The weights are not finite after step {step}. {REMEDY}")
