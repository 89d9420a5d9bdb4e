"""Random masks of a training step: dropped channels, and the boxes of CPS's CutMix.

They do not depend on the number of processes or on resuming. `nn.Dropout2d`, which draws from the process's own
generator, would drop other channels in two processes than in one with the same total batch, and others in a resumed run
than in an uninterrupted one. Here the mask of the total batch is drawn from a generator that depends on the seed, the
step and the use only, and each process takes its rows.
"""

from __future__ import annotations

import zlib

import torch
from torch import BoolTensor, Tensor

from ..distributed import all_gather, rank, world_size

CUTMIX_BOXES = 3  # of a mask
CUTMIX_AREA = (
    0.25,
    0.5,
)  # share of the image that the boxes of a mask cover together, if they do not overlap


def step_generator(device: torch.device | str, seed: int, step: int, use: str) -> torch.Generator | None:
    """A generator for one use ("feature dropout", ...) in one step, the same on every process.

    None on the meta device, where tensors have no contents.
    """
    if torch.device(device).type == "meta":
        return None
    key = zlib.crc32(f"{seed}/{step}/{use}".encode())
    return torch.Generator(device).manual_seed(key)


def channel_mask(
    rows: int,
    channels: int,
    probability: float,
    device: torch.device | str,
    *,
    seed: int,
    step: int,
    use: str,
) -> Tensor:
    """(rows, channels) float32: 0 at dropped channels, 1 / (1 - probability) elsewhere, as `nn.Dropout2d` scales.

    `rows` is the number of images of this process; it must be the same on all of them.
    """
    if probability == 0:
        return torch.ones(rows, channels, device=device)
    generator = step_generator(device, seed, step, use)
    total = torch.rand(rows * world_size(), channels, generator=generator, device=device)
    own = total[rank() * rows : (rank() + 1) * rows]
    return (own >= probability).float() / (1 - probability)


def stacked_channel_mask(
    rows: tuple[int, ...],
    channels: int,
    probability: float,
    device: torch.device | str,
    *,
    seed: int,
    step: int,
    use: str,
) -> Tensor:
    """(sum(rows), channels): a mask for each part of a batch that stacks several, such as labelled and unlabelled.

    Each part has a draw of its own, so that the rows of the total batch keep their order for any number of processes.
    """
    return torch.cat(
        [
            channel_mask(count, channels, probability, device, seed=seed, step=step, use=f"{use} {i}")
            for i, count in enumerate(rows)
        ]
    )


def complementary_channel_masks(
    rows: int,
    channels: int,
    device: torch.device | str,
    *,
    seed: int,
    step: int,
    use: str,
    whole: bool,
) -> Tensor:
    """(2 * rows, channels) float32, for two views of `rows` images: 0 or 2 for the first, 2 minus that for the second.

    A channel dropped in one view is doubled in the other. Equal numbers of channels get the same masks.

    Args:
        rows: images of this process, the same on all of them.
        channels, device: of the masks.
        seed, step, use: of the random draw.
        whole: give a random half of the total batch's pairs, rounded down, a mask of ones. They are the same pairs
            for any `channels`.
    """
    total = rows * world_size()
    drawn = torch.rand(
        total, channels, generator=step_generator(device, seed, step, f"{use} {channels}"), device=device
    )
    first = 2.0 * (drawn < 0.5)
    if whole:
        place = torch.rand(total, generator=step_generator(device, seed, step, f"{use} whole"), device=device)
        first = torch.where((place.argsort() < total // 2)[:, None], 1.0, first)
    own = first[rank() * rows : (rank() + 1) * rows]
    return torch.cat([own, 2 - own])


def cutmix_mask(
    rows: int, size: tuple[int, int], device: torch.device | str, *, seed: int, step: int
) -> BoolTensor:
    """(rows, H, W), True where the partner is pasted: the boxes of CPS's published runs, whose overlaps cancel.

    A box has the area p / 3 of the image, p uniform in CUTMIX_AREA; its height is p^a sqrt(1/3) of the image's with `a`
    uniform in [0, 1]; its place is uniform inside the image. A pixel is True if an odd number of boxes covers it.

    Args:
        rows: images of this process; the same number on all of them.
        size: height and width of the images.
        device: of the mask.
        seed, step: of the random draw.
    """
    generator = step_generator(device, seed, step, "cutmix mask")
    total = torch.rand(rows * world_size(), CUTMIX_BOXES, 4, generator=generator, device=device)
    area, aspect, *corner = total[rank() * rows : (rank() + 1) * rows].unbind(-1)
    area = CUTMIX_AREA[0] + (CUTMIX_AREA[1] - CUTMIX_AREA[0]) * area
    height = area**aspect
    inside = []
    for length, share, place in zip(size, (height, area / height), corner, strict=True):
        extent = (share * CUTMIX_BOXES**-0.5 * length).round()
        start = (place * (length - extent + 1)).floor()
        pixel = torch.arange(length, device=device)
        # (rows, CUTMIX_BOXES, length)
        inside.append((pixel >= start[..., None]) & (pixel < (start + extent)[..., None]))
    boxes = inside[0][..., :, None] & inside[1][..., None, :]  # (rows, CUTMIX_BOXES, H, W)
    return boxes.sum(1) % 2 == 1


def next_rows(tensor: Tensor) -> Tensor:
    """For each row of this process the next row of the total batch, cyclically; detached.

    That of the last row comes from the following process. In a total batch of one row it is that row itself.
    """
    firsts = all_gather(tensor[:1])
    following = (rank() + 1) % world_size()
    return torch.cat([tensor[1:].detach(), firsts[following : following + 1]])
