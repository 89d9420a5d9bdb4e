"""Correlation matching: which pixels look alike, and what follows from it for their labels.

The correlation map of an image with n = h*w pixels is the n x n matrix

    C[p, q] = softmax over q of  query[:, p] . key[:, q] / sqrt(D)       (equation 4; every row sums to 1)

Row p says where the image looks like its pixel p. All of this is computed in float32, under autocast too.
"""

import math

import torch
from torch import nn

from .decoders_corrmatch import ConvNormAct, resize

# Numbers held at once while shapes are upsampled: 2**24 float32 are 64 MiB.
SHAPE_CHUNK = 2**24


def pixel_propagation(
    query: torch.Tensor, key: torch.Tensor, logits: torch.Tensor, scale: str = "scores"
) -> torch.Tensor:
    """Every pixel hands its logits to those it looks like: z[:, q] = sum over p of logits[:, p] C[p, q].

    Equation 5 of the paper.

    Args:
        query, key: (N,D,h,w), any floating dtype.
        logits: (N,K,h,w), treated as constants: the gradient goes to query and key only.
        scale: what is divided by sqrt(D), the "scores" before the softmax or the "rows" after it.

    Returns:
        (N,K,h,w), float32 (float64 for float64 inputs).
    """
    with torch.autocast(query.device.type, enabled=False):
        correlation = _correlation_rows(query, key, scale)
        values = logits.detach().to(correlation.dtype).flatten(2)
        return (values @ correlation).unflatten(2, logits.shape[-2:])


@torch.no_grad()
def correlation_shapes(
    query: torch.Tensor, key: torch.Tensor, index: torch.Tensor, size: tuple[int, int], scale: str = "scores"
) -> torch.Tensor:
    """The regions that look like the pixels `index`, as binary shapes (equation 7).

    Each of the rows of C is brought to `size`, scaled to 0..1 over the image and cut at 0.5. A row that is
    the same everywhere says nothing and gives an empty shape. Only the rows asked for are computed.

    Args:
        query, key: (N,D,h,w), any floating dtype.
        index: (S,) integers in 0..h*w-1, the pixels p of the rows, the same for every image.
        size: (H, W) of the shapes.
        scale: as in `pixel_propagation`.

    Returns:
        bool (N,S,H,W).
    """
    with torch.autocast(query.device.type, enabled=False):
        rows = _correlation_rows(query, key, scale, index).unflatten(2, query.shape[-2:])  # (N,S,h,w)
        at_once = max(1, SHAPE_CHUNK // (len(rows) * size[0] * size[1]))
        shapes = [_upper_half(resize(chunk, size)) for chunk in rows.split(at_once, dim=1)]
        # Of a constant row, the upsampling's rounding would be cut into a shape.
        constant = rows.amax(dim=(2, 3)) == rows.amin(dim=(2, 3))
        return torch.cat(shapes, dim=1) & ~constant[:, :, None, None]


def _correlation_rows(
    query: torch.Tensor, key: torch.Tensor, scale: str, index: torch.Tensor | None = None
) -> torch.Tensor:
    """C (N,n,n), or its rows `index` (N,S,n)."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    query, key = query.to(dtype).flatten(2), key.to(dtype).flatten(2)
    if index is not None:
        query = query[:, :, index]
    root = math.sqrt(query.shape[1])
    scores = query.transpose(1, 2) @ key
    return torch.softmax(scores / root, dim=-1) if scale == "scores" else torch.softmax(scores, dim=-1) / root


def _upper_half(maps: torch.Tensor) -> torch.Tensor:
    """maps (N,S,H,W) -> bool: above the middle between the minimum and the maximum of each map."""
    low = maps.amin(dim=(2, 3), keepdim=True)
    span = maps.amax(dim=(2, 3), keepdim=True) - low
    return (maps - low) / span.clamp_min(torch.finfo(maps.dtype).tiny) > 0.5


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

        channel_mask: (N,channels) factors for the projected channels, in place of the random dropout: for a
            mask drawn elsewhere, which then need not depend on how images are spread over processes.
        """
        projected = self.project(features)
        if channel_mask is None:
            projected = self.dropout(projected)
        else:
            projected = projected * channel_mask.to(projected.dtype)[:, :, None, None]
        return self.query(projected), self.key(projected)
