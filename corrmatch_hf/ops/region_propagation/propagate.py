"""Region propagation (CorrMatch equations 8-10, algorithm 1): confident labels spread over correlation shapes.

The algorithm exists in three forms with bit-identical results: packed words on a CPU (`packed_cpu.py`), Triton kernels
on a GPU (`triton.py`), and batched tensor operations elsewhere. Only the first needs its tensors on the host.

Which shapes pass the first test does not depend on the painting, because the confident mask does not grow in the loop;
so only those few are walked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .packed_cpu import Canvas, pack

# Shapes packed at once on a CPU: few, so that they stay in the cache.
PORTION = 16


def region_propagation(
    labels: Tensor,
    confident: Tensor,
    shapes: Tensor,
    threshold: Tensor | float,
    num_labels: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Paint every shape that is mostly confident, and mostly of one class, with that class.

    For each image, shapes in order: `seg = shape & confident`; the shape is skipped if `seg` is empty or
    |seg| / |shape| < threshold. `top` is the most frequent label in `seg` (the lowest id on ties); if its share of
    `seg` exceeds the threshold, the whole shape takes that label and becomes confident in the result. Later shapes see
    what earlier ones painted, but `seg` is always made with the input's `confident`. Ratios are compared in float32.

    Args:
        labels: (N, H, W) int64 pseudo-labels, ids >= 0.
        confident: (N, H, W) bool.
        shapes: (N, S, H, W) bool, without the pixels that must not be painted (padding, CutMix box).
        threshold: scalar in [0, 1].
        num_labels: number of classes, used on other devices than the CPU; without it one value is read back.

    Returns:
        labels (N, H, W) int64 and confident (N, H, W) bool after propagation; the inputs are not changed.
    """
    if labels.device.type == "cpu":
        return _propagate_on_cpu(labels, confident, shapes, float(threshold))
    if labels.device.type == "meta":  # sizes alone; the loop over shapes would take a tenth of a second
        return labels.clone(), confident.clone()
    if num_labels is None:
        num_labels = int(labels.max()) + 1
    threshold = torch.as_tensor(threshold, dtype=torch.float32, device=labels.device)
    kernels = _triton_kernels() if labels.device.type == "cuda" else None
    return (kernels or _propagate_batched)(labels, confident, shapes, threshold, num_labels)


@cache
def _triton_kernels() -> Callable[..., tuple[Tensor, Tensor]] | None:
    """None if Triton is not installed."""
    try:
        from .triton import propagate_triton
    except ImportError:
        return None
    return propagate_triton


def _propagate_on_cpu(
    labels: Tensor, confident: Tensor, shapes: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    labels, result = labels.clone(memory_format=torch.contiguous_format), confident.clone()
    for n in range(len(labels)):
        canvas = Canvas(labels[n].view(-1).numpy(), confident[n].flatten().numpy(), threshold)
        for portion in shapes[n].flatten(1).split(PORTION):
            canvas.paint(pack(portion.numpy()))
        result[n] |= torch.from_numpy(canvas.finish()).view_as(confident[n])
    return labels, result


def _propagate_batched(
    labels: Tensor, confident: Tensor, shapes: Tensor, threshold: Tensor, num_labels: int
) -> tuple[Tensor, Tensor]:
    shape = shapes.flatten(2)  # (N, S, P)
    seg = shape & confident.flatten(1).unsqueeze(1)  # (N, S, P)
    seg_size = seg.sum(2)
    share = seg_size.float() / shape.sum(2).clamp(min=1).float()
    candidate = (seg_size > 0) & ~(share < threshold)
    current = labels.flatten(1).clone()
    painted = torch.zeros_like(confident.flatten(1))
    for s in range(shape.shape[1]):
        counts = torch.zeros(labels.shape[0], num_labels, dtype=torch.int64, device=labels.device)
        counts.scatter_add_(1, current, seg[:, s].long())
        most, top = counts.max(1)
        paint = candidate[:, s] & (most.float() / seg_size[:, s].clamp(min=1).float() > threshold)
        region = shape[:, s] & paint.unsqueeze(1)
        current = torch.where(region, top.unsqueeze(1), current)
        painted |= region
    return current.view_as(labels), confident | painted.view_as(confident)
