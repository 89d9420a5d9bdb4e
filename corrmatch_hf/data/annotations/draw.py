"""Regions -> a mask of class ids."""

from __future__ import annotations

import numpy as np

from .form import BACKGROUND, Region, Report, Unusable

IGNORED = 255


def draw(
    regions: list[Region], width: int, height: int, ids: dict[str, int], report: Report, name: str
) -> tuple[np.ndarray, set[str | None]]:
    """(H, W) uint8 class ids: background's where no region is, 255 to ignore; and the labels of the regions drawn.

    Args:
        ids: the class id of each label.
        report: gets what cannot be drawn, with the photo's `name`.
    """
    patches = []
    for region in regions:
        with report.skip(name):
            patch, x, y = rasterize(region, width, height)
            area = int(np.count_nonzero(patch))
            if area == 0:
                raise Unusable("annotations that cover no pixel of their photo")
            patches.append((region.layer, -area, patch, x, y, region.label))
    mask = np.full((height, width), ids[BACKGROUND], dtype=np.uint8)
    for _, _, patch, x, y, label in sorted(patches, key=lambda entry: entry[:2]):
        part = mask[y : y + patch.shape[0], x : x + patch.shape[1]]
        part[patch] = IGNORED if label is None else ids[label]
    return mask, {patch[-1] for patch in patches}


def rasterize(region: Region, width: int, height: int) -> tuple[np.ndarray, int, int]:
    """A region as a bool array inside the image, with the x and y of its upper left corner."""
    if region.bitmap is not None:
        return _inside(*region.bitmap(), width, height)
    # A polygon that goes far beyond the photo belongs to another one, or is damaged; pycocotools would draw for ever.
    reach, every = width + height, np.concatenate(region.polygons + region.holes)
    if (every < -reach).any() or (every > 2 * reach).any():
        raise Unusable("polygons that reach far beyond their photo")
    points = np.concatenate(region.polygons)
    left, top = np.clip(np.floor(points.min(0)), 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(points.max(0)), 0, (width, height)).astype(int)
    size = (bottom - top, right - left)
    if 0 in size:
        return np.zeros((0, 0), dtype=bool), 0, 0
    patch = fill(region.polygons, (left, top), size)
    if region.holes:
        patch &= ~fill(region.holes, (left, top), size)
    return patch, int(left), int(top)


def fill(polygons: list[np.ndarray], origin: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """The union of polygons as a bool array of `size` (height, width), whose corner lies at `origin` (x, y)."""
    from pycocotools import mask as coco_masks

    height, width = map(int, size)
    moved = [(points - origin).ravel().tolist() for points in polygons]
    runs = coco_masks.merge(coco_masks.frPyObjects(moved, height, width))
    return coco_masks.decode(runs).astype(bool)


def _inside(bitmap: np.ndarray, x: int, y: int, width: int, height: int) -> tuple[np.ndarray, int, int]:
    """The part of a bitmap that lies inside the image."""
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + bitmap.shape[1], width), min(y + bitmap.shape[0], height)
    if right <= left or bottom <= top:
        return np.zeros((0, 0), dtype=bool), 0, 0
    return bitmap[top - y : bottom - y, left - x : right - x], left, top


def tight(bitmap: np.ndarray) -> tuple[np.ndarray, int, int]:
    """A bool array without its empty margins, and where the rest begins; copied, so that the whole can be freed."""
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    if rows.size == 0:
        return np.zeros((0, 0), dtype=bool), 0, 0
    x, y = int(columns[0]), int(rows[0])
    return bitmap[y : rows[-1] + 1, x : columns[-1] + 1].copy(), x, y
