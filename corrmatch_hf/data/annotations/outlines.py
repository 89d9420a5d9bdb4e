"""A mask -> polygons that contain exactly its pixels.

The outline goes through the middles of the pixels' edges, so no centre of a pixel is nearer to it than sqrt(2) / 4 =
0.354. Leaving out points that lie within TOLERANCE of the shortened outline therefore moves no centre to the other
side: filling the polygons again gives the same mask, up to the rounding of the tool that does it.
"""

from __future__ import annotations

import itertools
from typing import Any

import contourpy
import numpy as np

from .draw import tight

TOLERANCE = 0.3  # pixels


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """(H, W) bool -> polygons (N, 2) of x, y, one for each connected part; the image's corner is the origin.

    A hole is joined to the outline around it by a cut of width 0, since many tools know no holes.
    """
    if not mask.any():
        return []
    part, left, top = tight(mask)
    padded = np.pad(part, 1).astype(np.float32)
    generator = contourpy.contour_generator(z=padded, name="serial", fill_type=contourpy.FillType.OuterOffset)
    lines: Any = generator.filled(0.5, np.inf)  # for each part its points and where its rings begin
    polygons = []
    for points, starts in zip(*lines, strict=True):
        points = points - 0.5 + (left, top)  # the centre of the first pixel is 0.5, after a margin of 1
        rings = [points[a : b - 1] for a, b in itertools.pairwise(starts.tolist())]
        polygons.append(_without_holes(rings))
    return polygons


def _without_holes(rings: list[np.ndarray]) -> np.ndarray:
    """An outer ring and its holes -> one ring, simplified.

    The leftmost point of a hole is the middle of a pixel's left edge. In the row of that pixel, the nearest edge
    further left belongs to the outer ring or to a hole that lies further left, whose point there has the same y.
    """
    outer, *holes = rings
    fixed = np.zeros(len(outer), dtype=bool)
    for hole in sorted(holes, key=lambda ring: ring[:, 0].min()):
        start = int(hole[:, 0].argmin())
        x, y = hole[start]
        there = np.flatnonzero((outer[:, 1] == y) & (outer[:, 0] < x))
        end = int(there[outer[there, 0].argmax()])
        ring = np.concatenate([hole[start:], hole[: start + 1]])
        ends = np.zeros(len(ring), dtype=bool)
        ends[[0, -1]] = True  # the cut must be the same line in both directions
        outer = np.concatenate([outer[: end + 1], ring, outer[end:]])
        fixed = np.concatenate([fixed[:end], [True], ends, [True], fixed[end + 1 :]])
    return _simplify(outer, fixed)


def _simplify(ring: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Ramer, Douglas and Peucker's method, between the `fixed` points or two points far from each other."""
    keep = fixed.copy()
    keep[[0, int(((ring - ring[0]) ** 2).sum(1).argmax())]] = True
    closed = np.concatenate([ring, ring[:1]])
    stops = [*np.flatnonzero(keep), len(ring)]
    waiting = list(itertools.pairwise(stops))
    while waiting:
        a, b = waiting.pop()
        if b - a < 2:
            continue
        inner, base = closed[a + 1 : b] - closed[a], closed[b] - closed[a]
        length = np.hypot(*base)
        if length == 0:
            distances = np.hypot(inner[:, 0], inner[:, 1])
        else:  # to the segment, not the line: a thin part turns back
            along = np.clip(inner @ base / length**2, 0, 1)
            distances = np.hypot(*(inner - along[:, None] * base).T)
        worst = int(distances.argmax())
        if distances[worst] > TOLERANCE:
            middle = a + 1 + worst
            keep[middle] = True
            waiting += [(a, middle), (middle, b)]
    return ring[keep]
