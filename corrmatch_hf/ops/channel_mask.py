"""Dropout masks over channels that do not depend on the number of processes.

`nn.Dropout2d` draws from the process's own generator, so two processes would drop other channels than one process with
the same total batch, and a resumed run others than an uninterrupted one. Here the mask of the total batch is drawn from
a generator that depends on the seed, the step and the place of use only, and each process takes its rows.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from .distributed import rank, world_size


def step_generator(device: torch.device | str, seed: int, step: int, use: str) -> torch.Generator:
    """A generator for one use ("feature dropout", ...) in one step, the same on every process."""
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

    One draw a part: the rows of the total batch keep their order whatever the number of processes.
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

    A channel that one view lacks counts double in the other. Equal numbers of channels get the same masks.

    Args:
        rows: images of this process, the same on all of them.
        channels, device: of the masks.
        seed, step, use: of the random draw.
        whole: leave a random half of the total batch's pairs, rounded down, as they are: 1 everywhere. They are the
            same pairs whatever `channels` is.
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
