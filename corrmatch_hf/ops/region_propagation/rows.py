"""Shapes from low-resolution rows of a correlation map (equation 7), and region propagation along them.

A shape is where a row, interpolated to full resolution, lies above the middle of its range. `row_shapes` computes just
that. `propagate_rows` never holds all shapes at full resolution on a CPU: it finds them per cell, the square between
four neighbouring points of the row. A bilinear value lies between those of the corners, so most cells are all in or all
out; only the pixels of cells that the shape's edge crosses are interpolated. The bits of a shape are kept in the order
of the cells.

This gives the pixels that `F.interpolate` itself puts above the middle, except where the value is so close to the
middle that rounding decides. A row with such a pixel (one in five at a crop of 321) is interpolated to full resolution.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .packed_cpu import Canvas, as_words, pack
from .propagate import region_propagation

# Pixels interpolated to full resolution at once by `row_shapes`: 64 MiB of float32.
PIXELS = 2**24

# Pixels of `propagate_rows` at once on a CPU: few, so that they stay in the cache.
CPU_PIXELS = 2**22

# A value that is nearer than this to the middle of its range may lie above or below it, in units of that middle and for
# non-negative numbers. A bilinear value takes at most 5 roundings of u = eps / 2: 5 u for the value in `F.interpolate`,
# 5 u for the ends of the range there, 3 u for scaling to 0..1 (two differences and a quotient, the range being at most
# twice the middle), 5 u for the value here and 1 u for the bound itself: 19 u.
ROUNDING = 10 * float(np.finfo(np.float32).eps)


@torch.no_grad()
def row_shapes(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """The regions where each row is high: interpolated to `size`, scaled to 0..1 over the image and cut at 0.5.

    A constant row gives an empty shape.

    Args:
        rows: (N, S, h, w) floating, finite; see `correlation_rows`.
        size: (H, W) of the shapes.

    Returns:
        bool (N, S, H, W).
    """
    maps = rows.flatten(0, 1)
    at_once = max(1, PIXELS // (size[0] * size[1]))
    shapes = torch.cat([upper_half(full_size(some, size)) for some in maps.split(at_once)])
    # The interpolation's rounding errors would turn a constant row into a shape.
    varies = maps.amax(dim=(1, 2)) > maps.amin(dim=(1, 2))
    return shapes.logical_and_(varies[:, None, None]).view(*rows.shape[:2], *size)


def full_size(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """maps (S, h, w) -> (S, *size), bilinear with aligned corners, as the network upsamples.

    With one channel each, because `F.interpolate` rounds differently with three channels or with many small ones.
    """
    return F.interpolate(maps.unsqueeze(1), size=tuple(size), mode="bilinear", align_corners=True)[:, 0]


def upper_half(maps: Tensor) -> Tensor:
    """maps (S, H, W) -> bool: above the middle between the minimum and the maximum of each map."""
    low = maps.amin(dim=(1, 2), keepdim=True)
    span = maps.amax(dim=(1, 2), keepdim=True) - low
    return (maps - low) / span.clamp_min(torch.finfo(maps.dtype).tiny) > 0.5


def propagate_rows(
    rows: Tensor,
    labels: Tensor,
    confident: Tensor,
    allowed: Tensor,
    threshold: Tensor | float,
    num_labels: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`region_propagation` along the shapes of `rows` (equation 7), identical to the bit.

    Each row is interpolated to (H, W), scaled to 0..1 over the image and cut at 0.5; then pixels that are not allowed
    are removed. A constant row gives an empty shape.

    Args:
        rows: (N, S, h, w) floating, finite; see `correlation_rows`.
        labels: (N, H, W) int64 pseudo-labels, ids >= 0.
        confident: (N, H, W) bool.
        allowed: (N, H, W) bool, where shapes may lie: neither padding nor CutMix box.
        threshold: scalar in [0, 1].
        num_labels: number of classes, used on other devices than the CPU; without it one value is read back.

    Returns:
        labels (N, H, W) int64 and confident (N, H, W) bool after propagation; the inputs are not changed.
    """
    rows = rows.detach()
    if rows.device.type == "cpu" and rows.dtype == torch.float32:
        return _propagate_cells(rows, labels, confident, allowed, float(threshold))
    shapes = row_shapes(rows, labels.shape[-2:])
    return region_propagation(
        labels, confident, shapes.logical_and_(allowed.unsqueeze(1)), threshold, num_labels
    )


def _propagate_cells(
    rows: Tensor, labels: Tensor, confident: Tensor, allowed: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    cells = _Cells.of(tuple(rows.shape[-2:]), tuple(labels.shape[-2:]))
    at_once = max(1, CPU_PIXELS // labels[0].numel())
    new_labels, new_confident = torch.empty_like(labels), confident.clone()
    for n in range(len(rows)):
        inside = pack(cells.gather(allowed[n].flatten().numpy()) & cells.exists)
        canvas = Canvas(
            cells.gather(labels[n].flatten().numpy()), cells.gather(confident[n].flatten().numpy()), threshold
        )
        for portion in rows[n].split(at_once):
            canvas.paint(cells.shapes(portion) & inside)
        painted = torch.from_numpy(canvas.finish()[cells.bit_of_pixel])
        new_labels[n] = torch.from_numpy(canvas.labels[cells.bit_of_pixel]).view_as(labels[n])
        new_confident[n] |= painted.view_as(confident[n])
    return new_labels, new_confident


class _Axis:
    """Bilinear interpolation from `points` to `pixels` along one axis, by cells: cell i starts at point i.

    The weights are those of `F.interpolate` to the bit, because it computes them.
    """

    def __init__(self, points: int, pixels: int):
        weights = full_size(torch.eye(points)[None], (pixels, points))[0].numpy()  # (pixels, points)
        self.cell = (weights > 0).argmax(axis=1)  # of each pixel
        first = np.searchsorted(self.cell, np.arange(points))
        self.place = np.arange(pixels) - first[self.cell]  # of each pixel in its cell
        self.width = int(self.place.max()) + 1
        # Weights of the cell's first and second point, by cell and place; 0 where there is no pixel.
        self.near = np.zeros((points, self.width), np.float32)
        self.far = np.zeros((points, self.width), np.float32)
        self.near[self.cell, self.place] = weights[np.arange(pixels), self.cell]
        after = np.minimum(self.cell + 1, points - 1)
        self.far[self.cell, self.place] = weights[np.arange(pixels), after] * (after > self.cell)
        # Along a straight piece the extremes lie at its ends: pixels that lie on a point, and those beside a cell's
        # border that has no pixel on it.
        on_point = weights.max(axis=1) == 1
        start = np.concatenate([[True], self.cell[1:] != self.cell[:-1]])
        end = np.concatenate([self.cell[1:] != self.cell[:-1], [True]])
        next_on_point = np.concatenate([on_point[1:], [False]])
        # (ends, points), the weights of those pixels.
        self.ends = weights[on_point | start | (end & ~next_on_point)]


class _Cells:
    """The pixels of a (H, W) image, cell by cell of the (h, w) grid; a cell's bits fill whole bytes."""

    @staticmethod
    @lru_cache(maxsize=8)
    def of(grid: tuple[int, int], size: tuple[int, int]) -> _Cells:
        return _Cells(grid, size)

    def __init__(self, grid: tuple[int, int], size: tuple[int, int]):
        self.grid, self.size = grid, size
        self.y, self.x = _Axis(grid[0], size[0]), _Axis(grid[1], size[1])
        # Every point is a pixel: the extremes are the row's own.
        self.aligned = all(
            np.array_equal(axis.ends, np.eye(points))
            for axis, points in zip((self.y, self.x), grid, strict=True)
        )
        self.bytes = -(-self.y.width * self.x.width // 8)
        cell = self.y.cell[:, None] * grid[1] + self.x.cell
        place = self.y.place[:, None] * self.x.width + self.x.place
        self.bit_of_pixel = (cell * self.bytes * 8 + place).ravel()
        bits = grid[0] * grid[1] * self.bytes * 8
        self.exists = np.zeros(bits, bool)
        self.exists[self.bit_of_pixel] = True
        self.pixel_of_bit = np.zeros(bits, np.int64)
        self.pixel_of_bit[self.bit_of_pixel] = np.arange(size[0] * size[1])

    def gather(self, pixels: np.ndarray) -> np.ndarray:
        """(P,) -> (bits,); bits without a pixel get any value."""
        return pixels[self.pixel_of_bit]

    def shapes(self, rows: Tensor) -> np.ndarray:
        """rows (S, h, w) float32 -> (S, words) uint64; bits without a pixel may be set."""
        maps = rows.numpy()
        constant = maps.min(axis=(1, 2)) == maps.max(axis=(1, 2))
        low, high = self._extremes(maps)
        middle = (low + high) / 2
        slack = middle * ROUNDING
        # ROUNDING holds for non-negative numbers, and if it is small beside the whole range; elsewhere all is unclear.
        slack[(low < 0) | (high - low <= 4 * slack) | (middle < 1e-30)] = np.inf
        over, under = (middle + slack).astype(np.float32), (middle - slack).astype(np.float32)
        over[constant] = under[constant] = np.inf

        corners = self._corners(maps)
        lowest, highest = (
            f(f(corners[0], corners[1]), f(corners[2], corners[3])) for f in (np.minimum, np.maximum)
        )
        inside = lowest > over[:, None, None]
        packed = np.repeat((inside * np.uint8(255)).reshape(*inside.shape, 1), self.bytes, axis=3)

        s, i, j = np.nonzero((highest >= under[:, None, None]) & ~inside)
        a, b, c, d = (corner[s, i, j, None] for corner in corners)
        near, far = self.x.near[j], self.x.far[j]
        upper, lower = a * near + b * far, c * near + d * far
        values = (
            upper[:, None, :] * self.y.near[i][:, :, None] + lower[:, None, :] * self.y.far[i][:, :, None]
        )
        values = values.reshape(len(s), self.y.width * self.x.width)
        bits = np.packbits(values > over[s, None], axis=1)
        unclear = (bits != np.packbits(values >= under[s, None], axis=1)).any(axis=1)
        packed[s, i, j] = bits

        s, i, j = s[unclear], i[unclear], j[unclear]
        if s.size:
            packed[s, i, j] = np.packbits(self._exact(rows, s, i, j), axis=1)
        return as_words(packed.reshape(len(maps), -1))

    def _exact(self, rows: Tensor, s: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Cells (i, j) of the shapes of `rows[s]`, bool (len(s), bits of a cell), from the whole rows at full size."""
        again, s = np.unique(s, return_inverse=True)
        full = full_size(rows[again], self.size).flatten(1)
        pixels = torch.from_numpy(self.pixel_of_bit.reshape(*self.grid, -1)[i, j])
        s = torch.from_numpy(s)
        # The ends of the row's range beside the wanted pixels, so that these are scaled as in the whole row.
        ends = torch.stack([full.amin(dim=1), full.amax(dim=1)], dim=1)
        values = torch.cat([full[s[:, None], pixels], ends[s]], dim=1)
        return upper_half(values[:, None])[:, 0, :-2].numpy()

    def _extremes(self, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest value (S,) float64 of each map at full resolution."""
        if not self.aligned:
            maps = self.y.ends.astype(np.float64) @ maps @ self.x.ends.T
        return maps.min(axis=(1, 2)).astype(np.float64), maps.max(axis=(1, 2)).astype(np.float64)

    @staticmethod
    def _corners(maps: np.ndarray) -> tuple[np.ndarray, ...]:
        """The four corners (S, h, w) of all cells; the last cells of a line have no second point, or itself."""
        padded = np.pad(maps, ((0, 0), (0, 1), (0, 1)), mode="edge")
        return padded[:, :-1, :-1], padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:]
