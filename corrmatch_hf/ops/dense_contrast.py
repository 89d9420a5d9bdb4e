"""The parts of DGCL's contrast between pixels: which pixels take part, their density, and the loss.

Everything has a fixed size, because how many pixels each class really has is known on the device only and must not be
read back: places without a pixel have the score `NOTHING`. Draws and ranks are over the total batch of all processes.

    entropy, entropy_threshold      leave out a given share of the least certain pixels
    pixel_scores, draw_per_class    random candidates of each class
    best_of_all                     the highest scores over all processes
    density                         how crowded a feature's surroundings are
    prototype_contrast              the loss
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import all_gather, rank, world_size
from ..model.correlation_corrmatch import full_precision

NOTHING = float("-inf")  # score of an empty place
NEIGHBOURS = (8, 16, 32)  # scales of the density in the published runs


def entropy(logits: Tensor) -> Tensor:
    """-sum_k p_k log p_k of the softmax p of logits (N, K, H, W), in float32: (N, H, W), without gradient."""
    log_p = logits.detach().float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def entropy_threshold(values: Tensor, valid: Tensor, dropped: float) -> Tensor:
    """The entropy above which the share `dropped` of the valid pixels of the total batch lies.

    It is the quantile 1 - `dropped`, interpolated linearly as in `numpy.quantile`, without reading back how many pixels
    are valid.

    Args:
        values: entropies, any shape, the same on all processes.
        valid: bool, same shape; the pixels that count.
        dropped: share in [0, 1].

    Returns:
        Scalar float32; without a valid pixel the largest float, which no entropy reaches.
    """
    largest = torch.finfo(torch.float32).max
    ordered = all_gather(values.float().masked_fill(~valid, largest).flatten()).sort().values
    place = (1 - dropped) * ((ordered < largest).sum() - 1).clamp(min=0)
    around = torch.stack([place.floor(), place.ceil()]).long().clamp(max=len(ordered) - 1)
    below, above = ordered.gather(0, around)  # indexing with a scalar would read it back
    return torch.lerp(below, above, place - place.floor())


def pixel_scores(rows: int, pixels: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """(rows * pixels,) uniform in [0, 1): this process's part of a draw for the total batch.

    `rows` is the number of images of this process, the same on all.
    """
    total = torch.rand(rows * world_size(), pixels, generator=generator, device=device)
    return total[rank() * rows : (rank() + 1) * rows].flatten()


def draw_per_class(labels: Tensor, scores: Tensor, num_labels: int, count: int) -> tuple[Tensor, Tensor]:
    """Up to `count` pixels of each class, by falling score.

    Args:
        labels: (P,) int64; pixels with ids outside 0..K-1 are not drawn.
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
    """The entries of every row with the `count` highest scores over all processes, best first, detached.

    Args:
        scores: (K, n) float, `NOTHING` where there is no entry.
        values: tensors (K, n, ...) that are sorted along with the scores.

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


def density(
    features: Tensor, memory: Tensor, count: Tensor, neighbours: Sequence[int] = NEIGHBOURS
) -> Tensor:
    """1/S sum over the S scales k of the mean of the k largest cosine similarities to the memory.

    Args:
        features: (n, C) rows of length 1.
        memory: (M, C) rows of length 1, the first `count` of them filled; M is at least the largest k.
        count: integer scalar, on the device.
        neighbours: the scales k.

    Returns:
        (n,) float32 in [-1, 1], without gradient; 0 if `count` is below the largest k.
    """
    most = max(neighbours)
    with torch.no_grad(), full_precision(features.device):
        similarity = features.float() @ memory.float().T
        similarity.masked_fill_(torch.arange(len(memory), device=memory.device) >= count, -1.0)
        nearest = similarity.topk(most).values
        scales = [nearest[:, :k].mean(1) for k in neighbours]
        return torch.stack(scales).mean(0) * (count >= most)


def prototype_contrast(
    anchors: Tensor, prototypes: Tensor, negatives: Tensor, is_negative: Tensor, temperature: float
) -> Tensor:
    """-log( exp(a.v / T) / (exp(a.v / T) + sum_n exp(a.n / T)) ) of each anchor a, all vectors at length 1.

    Args:
        anchors: (K, A, D) float, with gradient: A of each class.
        prototypes: (K, D) float, v: one of each class.
        negatives: (K, N, D) float, n: pixels of other classes.
        is_negative: (K, N) bool, False where there is none.
        temperature: T above 0.

    Returns:
        (K, A) float32; 0 without any negative. Only the anchors get a gradient.
    """
    with full_precision(anchors.device):
        anchors = F.normalize(anchors.float(), dim=-1)
        prototypes, negatives = (F.normalize(v.detach().float(), dim=-1) for v in (prototypes, negatives))
        positive = anchors @ prototypes.unsqueeze(-1)
        negative = (anchors @ negatives.mT).masked_fill(~is_negative.unsqueeze(1), float("-inf"))
        logits = torch.cat([positive, negative], dim=-1) / temperature
        return logits.logsumexp(-1) - logits[..., 0]
