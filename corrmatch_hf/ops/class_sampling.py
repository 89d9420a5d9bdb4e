"""Pixels of each class, in tensors of fixed size: how many there really are is known to the device alone."""

from __future__ import annotations

import torch
from torch import Tensor

from .distributed import all_gather, rank, world_size

NOTHING = float("-inf")  # score of an empty place


def pixel_scores(rows: int, pixels: int, generator: torch.Generator) -> Tensor:
    """(rows * pixels,) uniform in [0, 1): this process's part of a draw for the total batch.

    `rows` is the number of images of this process, the same on all.
    """
    total = torch.rand(rows * world_size(), pixels, generator=generator, device=generator.device)
    return total[rank() * rows : (rank() + 1) * rows].flatten()


def draw_per_class(labels: Tensor, scores: Tensor, num_labels: int, count: int) -> tuple[Tensor, Tensor]:
    """Up to `count` pixels of each class, by falling score.

    Args:
        labels: (P,) int64; ids outside 0..K-1 belong to no class.
        scores: (P,) float; random ones make a random draw.

    Returns:
        Places (K, n) int64 in 0..P-1, n = min(count, P), and their scores (K, n), `NOTHING` where the class has
        fewer pixels.
    """
    order = scores.argsort(descending=True)
    order = order[labels[order].argsort(stable=True)]
    ordered = labels[order]
    classes = torch.arange(num_labels, device=labels.device)
    start = torch.searchsorted(ordered, classes)
    stop = torch.searchsorted(ordered, classes, right=True)
    place = start[:, None] + torch.arange(min(count, len(labels)), device=labels.device)
    index = order[place.clamp(max=len(labels) - 1)]
    return index, scores[index].masked_fill(place >= stop[:, None], NOTHING)


def best_of_all(scores: Tensor, count: int, *values: Tensor) -> tuple[Tensor, ...]:
    """Of every row, the entries with the `count` highest scores over all processes, best first, detached.

    Args:
        scores: (K, n) float, `NOTHING` where there is no entry.
        values: what belongs to the entries, (K, n, ...) each.

    Returns:
        Scores (K, m), m at most `count`, and the values (K, m, ...). The same on all processes.
    """
    scores, place = scores.topk(min(count, scores.shape[1]))
    kept = [scores, *(take(value, place) for value in values)]
    if world_size() == 1:
        return tuple(value.detach() for value in kept)
    scores, *values = (_side_by_side(value) for value in kept)
    scores, place = scores.topk(min(count, scores.shape[1]))
    return scores, *(take(value, place) for value in values)


def take(values: Tensor, place: Tensor) -> Tensor:
    """values (K, n, ...) at place (K, m) of their second dimension: (K, m, ...)."""
    place = place.view(*place.shape, *[1] * (values.ndim - 2))
    return values.gather(1, place.expand(*place.shape[:2], *values.shape[2:]))


def _side_by_side(values: Tensor) -> Tensor:
    """(K, n, ...) of each of W processes -> (K, W n, ...)."""
    return all_gather(values).unflatten(0, (world_size(), len(values))).transpose(0, 1).flatten(1, 2)
