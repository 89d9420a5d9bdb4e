"""Region propagation (CorrMatch equations 8-10, algorithm 1): confident labels spread over correlation shapes.

Two forms of one algorithm, identical to the bit. On a CPU the pixels of an image are packed into 64-bit words, one
plane per class, so that counting labels inside a shape is a few `and`s and population counts. On other devices the
shapes are walked with batched tensor operations and nothing is read back to the host.

Which shapes can pass the first test does not depend on the painting, because the confident mask does not grow while
looping; so only those few are walked.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def region_propagation(
    labels: Tensor,
    confident: Tensor,
    shapes: Tensor,
    threshold: Tensor | float,
    num_labels: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Paint every shape that is mostly confident, and mostly of one class, with that class.

    For each image, shapes in order: `seg = shape & confident`; the shape is skipped when `seg` is empty or
    |seg| / |shape| < threshold. `top` is the most frequent label in `seg` (the lowest id on ties); when its share of
    `seg` exceeds the threshold the whole shape takes that label and counts as confident afterwards. Later shapes see
    what earlier ones painted, but `confident` stays as it was at the start. Ratios are compared in float32.

    Args:
        labels: (N, H, W) int64 pseudo-labels, ids >= 0.
        confident: (N, H, W) bool.
        shapes: (N, S, H, W) bool, what must not be painted (padding, CutMix box) already removed.
        threshold: scalar in [0, 1].
        num_labels: number of classes; only asked for off the CPU, where leaving it out costs one read-back.

    Returns:
        labels (N, H, W) int64 and confident (N, H, W) bool after propagation; the inputs are not changed.
    """
    if labels.device.type == "cpu":
        return _propagate_words(labels, confident, shapes, float(threshold))
    if num_labels is None:
        num_labels = int(labels.max()) + 1
    threshold = torch.as_tensor(threshold, dtype=torch.float32, device=labels.device)
    return _propagate_batched(labels, confident, shapes, threshold, num_labels)


def _words(bits: np.ndarray) -> np.ndarray:
    """(..., P) bool -> (..., ceil(P / 64)) uint64."""
    packed = np.packbits(bits, axis=-1)
    missing = -packed.shape[-1] % 8
    if missing:
        packed = np.concatenate([packed, np.zeros((*packed.shape[:-1], missing), np.uint8)], axis=-1)
    return packed.view(np.uint64)


def _bits(words: np.ndarray, count: int) -> np.ndarray:
    """The inverse of `_words`."""
    return np.unpackbits(words.view(np.uint8), axis=-1, count=count).view(bool)


def _popcount(words: np.ndarray) -> np.ndarray:
    return np.bitwise_count(words).sum(axis=-1, dtype=np.int64)


def _propagate_words(
    labels: Tensor, confident: Tensor, shapes: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    tau = np.float32(threshold)
    new_labels, new_confident = labels.clone(), confident.clone()
    for n in range(labels.shape[0]):
        flat = labels[n].flatten().numpy()
        shape = _words(shapes[n].flatten(1).numpy())  # (S, words)
        seg = shape & _words(confident[n].flatten().numpy())
        seg_size = _popcount(seg)
        share = seg_size.astype(np.float32) / np.maximum(_popcount(shape), 1).astype(np.float32)
        candidates = np.flatnonzero((seg_size > 0) & ~(share < tau))
        if candidates.size == 0:
            continue
        classes = np.unique(flat)
        planes = _words(flat == classes[:, None])  # (classes present, words)
        painted = np.zeros_like(planes[0])
        for s in candidates:
            counts = _popcount(planes & seg[s])
            top = counts.argmax()  # the first maximum: the lowest id
            if np.float32(counts[top]) / np.float32(seg_size[s]) > tau:
                planes &= ~shape[s]
                planes[top] |= shape[s]
                painted |= shape[s]
        plane_of_pixel = _bits(planes, flat.size).argmax(axis=0)
        new_labels[n] = torch.from_numpy(classes[plane_of_pixel]).view_as(labels[n])
        new_confident[n] |= torch.from_numpy(_bits(painted, flat.size)).view_as(confident[n])
    return new_labels, new_confident


def _propagate_batched(
    labels: Tensor, confident: Tensor, shapes: Tensor, threshold: Tensor, num_labels: int
) -> tuple[Tensor, Tensor]:
    shape = shapes.flatten(2)  # (N, S, P)
    seg = shape & confident.flatten(1).unsqueeze(1)
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
