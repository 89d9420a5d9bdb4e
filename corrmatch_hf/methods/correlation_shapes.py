"""The shapes that region propagation paints along, from the correlation head's query and key."""

from __future__ import annotations

from torch import Tensor

from ..model.correlation_corrmatch import correlation_rows
from ..ops.row_shapes import row_shapes


def correlation_shapes(
    query: Tensor, key: Tensor, index: Tensor, size: tuple[int, int], scale: str = "scores"
) -> Tensor:
    """The regions that look like the pixels `index`, as binary shapes (equation 7). No gradient.

    Only the rows of the correlation map that are asked for are computed. `propagate_rows` paints along the same shapes
    and never holds them all.

    Args:
        query, key: (N, D, h, w), any floating dtype.
        index: (S,) integers in 0..h*w-1, the pixels p of the rows, the same for every image.
        size: (H, W) of the shapes.
        scale: as in `pixel_propagation`.

    Returns:
        bool (N, S, H, W).
    """
    return row_shapes(correlation_rows(query, key, index, scale), size)
