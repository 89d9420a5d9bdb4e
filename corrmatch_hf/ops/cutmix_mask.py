"""CutMix on a total batch: masks of several boxes, and the images that show through them.

Both are the same for any number of processes with the same total batch.
"""

from __future__ import annotations

import torch
from torch import BoolTensor, Tensor

from .channel_mask import step_generator
from .distributed import all_gather, rank, world_size

BOXES = 3  # of a mask
AREA = (0.25, 0.5)  # of the image, shared out among the boxes


def cutmix_mask(
    rows: int, size: tuple[int, int], device: torch.device | str, *, seed: int, step: int
) -> BoolTensor:
    """(rows, H, W), True where the partner is seen: the boxes of CPS's published runs, whose overlaps cancel.

    A box has the area p / 3 of the image, p uniform in AREA, its height is p^a sqrt(1/3) of the image's with `a`
    uniform in [0, 1], and it lies anywhere inside. A pixel is True when an odd number of boxes covers it.

    Args:
        rows: images of this process; the same number on all of them.
        size: height and width of the images.
        device: of the mask.
        seed, step: of the random draw.
    """
    generator = step_generator(device, seed, step, "cutmix mask")
    total = torch.rand(rows * world_size(), BOXES, 4, generator=generator, device=device)
    area, aspect, *corner = total[rank() * rows : (rank() + 1) * rows].unbind(-1)
    area = AREA[0] + (AREA[1] - AREA[0]) * area
    height = area**aspect
    inside = []
    for length, share, place in zip(size, (height, area / height), corner, strict=True):
        extent = (share * BOXES**-0.5 * length).round()
        start = (place * (length - extent + 1)).floor()
        pixel = torch.arange(length, device=device)
        inside.append(
            (pixel >= start[..., None]) & (pixel < (start + extent)[..., None])
        )  # (rows, BOXES, length)
    boxes = inside[0][..., :, None] & inside[1][..., None, :]
    return boxes.sum(1) % 2 == 1


def next_rows(tensor: Tensor) -> Tensor:
    """For each row of this process the next row of the total batch, cyclic; detached.

    The last one comes from the following process. In a total batch of one row it is that row itself.
    """
    firsts = all_gather(tensor[:1])
    following = (rank() + 1) % world_size()
    return torch.cat([tensor[1:].detach(), firsts[following : following + 1]])
