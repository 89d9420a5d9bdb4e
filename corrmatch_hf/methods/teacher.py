"""A teacher: the exponential moving average (EMA) of a student, part of the method's state."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """A network whose weights follow another's, without gradient.

    At step t (from 0) the weights become a g + (1 - a) f with a = min(1 - 1 / (t + 1), decay), so that the teacher is
    a copy of the student at first. The step is counted in a buffer: it survives resuming, and nothing is read back to
    the host.

    Args:
        student: f; the teacher starts as its copy.
        decay: share of the old weights kept by an update, in [0, 1).
        buffers: whether buffers (BatchNorm's statistics) follow as well; otherwise the teacher keeps its own.
        warm_up: whether `a` rises as above; otherwise it is `decay` from the first update on.
    """

    def __init__(self, student: nn.Module, decay: float, *, buffers: bool = True, warm_up: bool = True):
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False)
        self.decay, self.follow_buffers, self.warm_up = float(decay), buffers, warm_up
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Follow the student by one step."""
        kept: Tensor | float = self.decay
        if self.warm_up:
            kept = (1 - 1 / (self.updates + 1)).clamp(max=self.decay)
        pairs = list(zip(self.network.parameters(), student.parameters(), strict=True))
        if self.follow_buffers:
            pairs += zip(self.network.buffers(), student.buffers(), strict=True)
        for own, theirs in pairs:
            if not own.is_floating_point():
                own.copy_(theirs)
            elif isinstance(kept, float):
                own.lerp_(theirs.detach(), 1 - kept)
            else:  # a tensor, so that nothing is read back
                own.copy_(torch.lerp(theirs.detach(), own, kept.to(own.dtype)))
        self.updates += 1
