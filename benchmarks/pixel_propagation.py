"""Pixel propagation, forward and backward, and the sampled rows of the correlation map, against the whole n x n matrix.

The reference is equations 4 and 5 of the paper as they stand, differentiated by autograd.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from corrmatch_hf.model.correlation_corrmatch import correlation_rows, pixel_propagation

from .measure import Row, extra_mib, milliseconds

CHANNELS = 21  # D and K: as many as classes
# Side of the map (crops 321, 513, 801 at stride 8), images, and the share of memory that may be needed.
SIZES = ((41, 4, 3), (65, 2, 10), (101, 2, 40))
ROWS = 128


def rows(
    device: str, sizes: tuple[tuple[int, int, int], ...] = SIZES, count: int = ROWS, repeats: int = 3
) -> Iterator[Row]:
    for side, images, less_memory in sizes:
        query, key, logits, weight = (
            torch.randn(images, CHANNELS, side, side, generator=torch.Generator().manual_seed(i)).to(device)
            for i in range(4)
        )
        query.requires_grad_(), key.requires_grad_()

        def reference(query=query, key=key, logits=logits, weight=weight) -> tuple[Tensor, ...]:
            return forward_backward(whole_matrix, query, key, logits, weight)

        def ours(query=query, key=key, logits=logits, weight=weight) -> tuple[Tensor, ...]:
            return forward_backward(pixel_propagation, query, key, logits, weight)

        same = close(ours(), reference())
        what = f"pixel propagation, forward and backward, {images} x {side}^2"
        note = "results and gradients to 1e-4 of the largest"
        yield Row(what, *milliseconds(reference, ours, device, repeats), "ms", same, 2, note)
        memory = extra_mib(reference, device), extra_mib(ours, device)
        yield Row(f"{what}: extra memory", *memory, "MiB", same, less_memory, note)

    side, images, _ = sizes[0]
    index = torch.randint(side**2, (count,), generator=torch.Generator().manual_seed(5)).to(device)
    query, key = (
        torch.randn(images, CHANNELS, side, side, generator=torch.Generator().manual_seed(i)).to(device)
        for i in (6, 7)
    )

    def from_matrix() -> Tensor:
        with torch.no_grad():
            return correlation_matrix(query, key)[:, index].unflatten(2, (side, side))

    def only_those() -> Tensor:
        return correlation_rows(query, key, index)

    yield Row(
        f"{count} rows of the correlation map, {images} x {side}^2",
        *milliseconds(from_matrix, only_those, device, 5 * repeats),
        "ms",
        close((only_those(),), (from_matrix(),)),
        10,
        "to 1e-4 of the largest",
    )


def correlation_matrix(query: Tensor, key: Tensor) -> Tensor:
    """C (N,n,n) of equation 4."""
    scores = query.flatten(2).transpose(1, 2) @ key.flatten(2)
    return torch.softmax(scores / math.sqrt(query.shape[1]), dim=-1)


def whole_matrix(query: Tensor, key: Tensor, logits: Tensor) -> Tensor:
    """Equation 5."""
    return (logits.flatten(2) @ correlation_matrix(query, key)).view_as(logits)


def forward_backward(function, query: Tensor, key: Tensor, logits: Tensor, weight: Tensor):
    propagated = function(query, key, logits)
    return propagated.detach(), *torch.autograd.grad(propagated, (query, key), weight)


def close(ours: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> bool:
    return all(
        bool((a - b).abs().amax() <= 1e-4 * b.abs().amax()) for a, b in zip(ours, reference, strict=True)
    )
