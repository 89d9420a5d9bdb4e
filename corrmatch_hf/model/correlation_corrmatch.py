"""Correlation matching: the similarity of all pairs of pixels of an image, and logits propagated along it.

The correlation map of an image with n = h*w pixels is the n x n matrix

    C[p, q] = softmax over q of  query[:, p] . key[:, q] / sqrt(D)       (equation 4; every row sums to 1)

Row p shows where the image looks like its pixel p. All of this is computed in float32, under autocast too.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from .decoders_corrmatch import ConvNormAct

# Numbers in a block of the correlation map: 2 MiB of float32 for each CPU thread, which fit its cache and keep the
# threads busy. A GPU uses the largest block, 32 MiB: fewer, larger kernels.
BLOCK, LARGEST_BLOCK = 2**19, 2**23


def pixel_propagation(
    query: torch.Tensor, key: torch.Tensor, logits: torch.Tensor, scale: str = "scores"
) -> torch.Tensor:
    """Every pixel passes its logits to similar pixels: z[:, q] = sum over p of logits[:, p] C[p, q].

    Equation 5 of the paper. C is never stored as a whole: memory grows with h*w, not with its square. There is no
    second derivative.

    Args:
        query, key: (N,D,h,w), any floating dtype.
        logits: (N,K,h,w), treated as constants: the gradient goes to query and key only.
        scale: what is divided by sqrt(D), the "scores" before the softmax or the "rows" after it.

    Raises:
        ValueError: query and key of different shapes, or another `scale`.

    Returns:
        (N,K,h,w), float32 (float64 for float64 inputs).
    """
    _check(query, key, scale)
    with full_precision(query.device):
        dtype = torch.promote_types(query.dtype, torch.float32)
        query, key, values = (t.to(dtype).flatten(2).contiguous() for t in (query, key, logits.detach()))
        root = math.sqrt(query.shape[1])
        if scale == "scores":
            query = query / root
        else:
            values = values / root
        return _propagate(query, key, values).unflatten(2, logits.shape[-2:])


def full_precision(device: torch.device) -> AbstractContextManager:
    """Autocast switched off. The meta device has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _check(query: torch.Tensor, key: torch.Tensor, scale: str) -> None:
    if query.shape != key.shape:
        raise ValueError(
            f"query is {tuple(query.shape)} and key {tuple(key.shape)}; both must be (batch, dim, height, width)."
        )
    if scale not in ("scores", "rows"):
        raise ValueError(f"scale is {scale!r}: choose 'scores' or 'rows'.")


# Blocks of rows of C are computed, used and discarded, in the forward pass and again in the backward pass. With query
# a (D,n), key b (D,n), values v (K,n) and S = a^T b, row p of C is the softmax of row p of S, and for rows p in a block
#
#     forward     z += v[:, p] C[p]                                   z = v C, a sum over p
#     backward    with g the gradient of z: that of C is v^T g, and, through the softmax of each row,
#                 that of S is  E = C * (v^T g - t),  t[p] = sum over q of C[p, q] (v^T g)[p, q]
#                 that of a is  b E^T, column by column, and that of b is  a E, a sum over p.
#
# A softmax needs its whole row and nothing else, so blocks of rows are exact. Both passes are custom operators, so that
# each is one node for torch.compile, which would otherwise unroll the loops.


@torch.library.custom_op("corrmatch_hf::propagate", mutates_args=())
def _propagate(query: torch.Tensor, key: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """(N,D,n), (N,D,n), (N,K,n), contiguous -> (N,K,n), with C the plain softmax of query^T key."""
    propagated = torch.zeros_like(values)
    for image, p, correlation, _ in _blocks(query, key):
        propagated[image].baddbmm_(values[image, :, p], correlation)
    return propagated


@torch.library.custom_op("corrmatch_hf::propagate_backward", mutates_args=())
def _propagate_backward(
    query: torch.Tensor, key: torch.Tensor, values: torch.Tensor, grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of query and key."""
    grad_query, grad_key = torch.empty_like(query), torch.zeros_like(key)
    with full_precision(query.device):  # it may be on where backward() is called
        for image, p, correlation, errors in _blocks(query, key):
            torch.bmm(values[image, :, p].mT, grad[image], out=errors)
            errors *= correlation
            errors.addcmul_(correlation, errors.sum(-1, keepdim=True), value=-1)
            grad_query[image, :, p] = key[image] @ errors.mT
            grad_key[image].baddbmm_(query[image, :, p], errors)
    return grad_query, grad_key


def _blocks(
    query: torch.Tensor, key: torch.Tensor
) -> Iterator[tuple[slice, slice, torch.Tensor, torch.Tensor]]:
    """C in blocks: slices of images and of rows p, that part of C (images,p,n), and a tensor of this shape to write to.

    The next block overwrites both tensors.
    """
    images, _, n = query.shape
    numbers = LARGEST_BLOCK
    if query.device.type == "cpu":
        numbers = min(BLOCK * torch.get_num_threads(), LARGEST_BLOCK)
    rows = min(n, max(numbers // n, 16))  # matrix products of fewer rows are slow
    at_once = max(1, min(images, numbers // (rows * n)))
    work = query.new_empty(2, at_once * rows * n)
    for i in range(0, images, at_once):
        for first in range(0, n, rows):
            image, p = slice(i, i + at_once), slice(first, first + rows)
            block = query[image, :, p]
            shape = (len(block), block.shape[2], n)
            correlation, scores = (buffer[: math.prod(shape)].view(shape) for buffer in work)
            torch.bmm(block.mT, key[image], out=scores)
            torch.softmax(scores, dim=-1, out=correlation)
            yield image, p, correlation, scores


@_propagate.register_fake
def _(query, key, values):
    return torch.empty_like(values)


@_propagate_backward.register_fake
def _(query, key, values, grad):
    return torch.empty_like(query), torch.empty_like(key)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    return *_propagate_backward(*ctx.saved_tensors, grad.contiguous()), None


_propagate.register_autograd(_backward, setup_context=_save)


@torch.no_grad()
def correlation_rows(
    query: torch.Tensor, key: torch.Tensor, index: torch.Tensor, scale: str = "scores"
) -> torch.Tensor:
    """Rows of the correlation map as images: where the image looks like the pixels `index`. No gradient.

    Only these rows are computed.

    Args:
        query, key: (N,D,h,w), any floating dtype.
        index: (S,) integers in 0..h*w-1, the pixels p of the rows, the same for every image.
        scale: as in `pixel_propagation`.

    Returns:
        (N,S,h,w), float32 (float64 for float64 inputs), each row summing to 1 (to 1/sqrt(D) with "rows").
    """
    _check(query, key, scale)
    with full_precision(query.device):
        dtype = torch.promote_types(query.dtype, torch.float32)
        rows = query.to(dtype).flatten(2)[:, :, index].mT @ key.to(dtype).flatten(2)
        root = math.sqrt(query.shape[1])
        rows = torch.softmax(rows / root, dim=-1) if scale == "scores" else torch.softmax(rows, dim=-1) / root
        return rows.unflatten(2, query.shape[-2:])


class CorrelationHead(nn.Module):
    """Features to query and key: 3x3 projection, channel dropout, and a 1x1 convolution for each.

    Args:
        in_channels: channels of the features.
        channels: channels of the projection.
        dim: channels D of query and key.
        dropout: probability of dropping a projected channel while training.
    """

    def __init__(self, in_channels: int, channels: int, dim: int, dropout: float = 0.1):
        super().__init__()
        self.project = ConvNormAct(in_channels, channels, 3, bias=True)
        self.dropout = nn.Dropout2d(dropout)
        self.query = nn.Conv2d(channels, dim, 1)
        self.key = nn.Conv2d(channels, dim, 1)

    def forward(
        self, features: torch.Tensor, channel_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """features (N,C,h,w) -> query, key (N,dim,h,w).

        channel_mask: (N,channels) factors for the projected channels, instead of the random dropout: a mask drawn
            by the caller need not depend on how images are distributed over processes.
        """
        projected = self.project(features)
        if channel_mask is None:
            projected = self.dropout(projected)
        else:
            projected = projected * channel_mask.to(projected.dtype)[:, :, None, None]
        return self.query(projected), self.key(projected)
