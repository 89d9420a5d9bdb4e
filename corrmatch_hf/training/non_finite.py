"""Notices the first non-finite loss without reading anything back until it is asked."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from ..ops.distributed import all_reduce

REMEDY = (
    "No checkpoint was written since: resume from the last one, if there is one, with a lower --learning_rate, "
    "--max_grad_norm 1 or --mixed_precision no."
)


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite. The message names the step, the terms and the files of the batch."""


class NonFiniteWatch:
    """Keeps, on the device, the step and the terms of the first non-finite loss.

    Args:
        device: where the losses are.
        memory: how many steps may pass between two calls of `check`.
    """

    def __init__(self, device: torch.device, memory: int):
        self.first = torch.full((), -1, dtype=torch.int64, device=device)
        self.terms: Tensor | None = None
        self.names: list[str] = []
        self.files: deque[tuple[int, list[str]]] = deque(maxlen=memory)

    def observe(self, step: int, loss: Tensor, logs: dict[str, Tensor], files: list[str]) -> None:
        """Look at one forward pass's loss."""
        self.names = [name for name in logs if name.startswith("loss/")]
        terms = torch.stack([loss.detach().float(), *(logs[name].float() for name in self.names)])
        bad = ~terms.isfinite().all() & (self.first < 0)
        self.first = torch.where(bad, step, self.first)
        self.terms = terms if self.terms is None else torch.where(bad, terms, self.terms)
        self.files.append((step, files))

    def check(self) -> None:
        """Raise `NonFiniteLossError`, on every process, if a loss was not finite on any of them."""
        if int(all_reduce(self.first, "max")) < 0:
            return
        first = int(self.first)
        if first < 0:
            raise NonFiniteLossError(
                "A loss became non-finite on another process; its message names the files."
            )
        values = ", ".join(
            f"{name} {value:.4g}"
            for name, value in zip(["total", *self.names], self.terms.tolist(), strict=True)
        )
        files = sorted({name for step, names in self.files if step == first for name in names})
        raise NonFiniteLossError(
            f"The loss is not finite at step {first} ({values}). Files of the batch: {', '.join(files)}. "
            f"{REMEDY}"
        )
