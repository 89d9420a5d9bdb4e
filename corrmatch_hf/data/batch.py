"""One micro-batch of one process: the fields that every method trains on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import BoolTensor, Tensor


@dataclass
class SemiBatch:
    """Labelled crops and the views of unlabelled crops that one process trains on in one micro-step.

    B_l, B_u: labelled and unlabelled images of this process; S: strong views; P = len(partner_rows); H = W: crop size.
    Pictures are float32, normalised by the augmentation's mean and std. Without unlabelled images the fields from
    `weak` to `partner_valid` are None; without strong views `strong` and `box` are.
    """

    step: int  # global micro-step, from 0
    image: Tensor  # (B_l, 3, H, W) float32
    label: Tensor  # (B_l, H, W) int64, padding is the ignore value
    weak: Tensor | None = None  # (B_u, 3, H, W) float32
    strong: Tensor | None = None  # (B_u, S, 3, H, W) float32, with the partner pasted into the box
    valid: BoolTensor | None = None  # (B_u, H, W), False where `weak` is padding, whatever the box
    box: BoolTensor | None = None  # (B_u, S, H, W), True where `strong` shows the partner
    partner_rows: list[int] = field(default_factory=list)  # rows of the batch with a box in any view
    # for each of these rows: its partner's row in `weak`, or -1 if the partner is not in this batch
    partner_places: list[int] = field(default_factory=list)
    partner_weak: Tensor | None = None  # (P, 3, H, W) float32, weak views of those rows' partners
    partner_valid: BoolTensor | None = None  # (P, H, W), False where `partner_weak` is padding
    # (B_u, H, W) int64, true classes of `weak`, for diagnosis alone; only with --diagnose_with_masks
    unlabeled_truth: Tensor | None = None
    labeled_files: list[str] = field(default_factory=list)
    unlabeled_files: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # why a sample was replaced, with its file

    def to(self, device: torch.device | str, non_blocking: bool = False, **kwargs) -> SemiBatch:
        """The same batch on `device`; further arguments go to `Tensor.to` of the float32 pictures only."""

        def move(tensor: Tensor) -> Tensor:
            extra = kwargs if tensor.is_floating_point() else {}
            return tensor.to(device, non_blocking=non_blocking, **extra)

        return self._map(move)

    def pin_memory(self) -> SemiBatch:
        """The same batch in page-locked memory; called by a `DataLoader` with `pin_memory=True`."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> SemiBatch:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(
            self, **{k: function(v) for k, v in values.items() if isinstance(v, Tensor)}
        )
