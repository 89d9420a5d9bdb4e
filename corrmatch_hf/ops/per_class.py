"""Sums and maxima over the pixels of each class."""

from __future__ import annotations

import torch
from torch import Tensor


def sums_per_class(values: Tensor, labels: Tensor, num_labels: int, counted: Tensor | None = None) -> Tensor:
    """The sum of the values of each class's pixels, (num_labels, ...), of the values' dtype.

    Args:
        values: (N, H, W, ...), numbers; one or several of each pixel.
        labels: (N, H, W) int64; pixels whose id is outside 0..num_labels-1 are left out.
        num_labels: number of classes.
        counted: (N, H, W) bool, the pixels that are summed; all by default.
    """
    inside = (labels >= 0) & (labels < num_labels)
    if counted is not None:
        inside &= counted
    place = torch.where(inside, labels, num_labels).flatten()
    rest = values.shape[labels.ndim :]
    sums = values.new_zeros(num_labels + 1, *rest)  # the last row takes what is left out
    return sums.index_add_(0, place, values.reshape(-1, *rest))[:-1]


def largest_per_class(values: Tensor, labels: Tensor, num_labels: int, columns: int = 1) -> Tensor:
    """The largest value of each class, (num_labels,); -1 where a class has none.

    Args:
        values: (N, H, W) float, -1 or above.
        labels: (N, H, W) int64 in 0..num_labels-1.
        num_labels: number of classes.
        columns: intermediate maxima per class; N*H*W must be a multiple of it. It does not change the result.
    """
    best = values.new_full((num_labels, columns), -1.0)
    # Transposed, because on a CPU one long line takes less than half the time of as many lines of one pixel.
    best.T.scatter_reduce_(1, labels.reshape(-1, columns).T, values.reshape(-1, columns).T, reduce="amax")
    return best.amax(1)
