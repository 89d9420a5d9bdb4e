"""Features with dropped channels: the perturbations of UniMatch and UniMatch V2, which CorrMatch shares."""

from __future__ import annotations

import torch

from ..model import CorrMatchFeatures
from ..ops.random_masks import complementary_channel_masks, stacked_channel_mask


def with_dropped_channels(
    features: CorrMatchFeatures, probability: float, rows: tuple[int, ...], *, seed: int, step: int
) -> CorrMatchFeatures:
    """The batch twice, levels (2N, C, h, w): as it is, then with whole channels dropped for each level and image.

    Both halves are decoded together, so the decoder's batch statistics are taken over both, as in the published runs.

    Args:
        features: of N images.
        probability: of a channel to be dropped, in [0, 1).
        rows: how many of the N images belong to each part of the batch, such as (labelled, unlabelled).
        seed, step: of the random draw.
    """
    levels = []
    for i, level in enumerate(features):
        mask = stacked_channel_mask(
            rows, level.shape[1], probability, level.device, seed=seed, step=step, use=f"features {i}"
        )
        levels.append(torch.cat([level, level * mask.to(level.dtype)[:, :, None, None]]))
    return CorrMatchFeatures(levels)


def with_complementary_channels(
    features: CorrMatchFeatures, *, seed: int, step: int, whole: bool
) -> CorrMatchFeatures:
    """Two views of N images, levels (2N, C, h, w), that share out their channels: each is doubled in one of them.

    Levels with equally many channels, such as a plain transformer's, drop the same ones; others drop their own.

    Args:
        features: of the first views, then of the second ones.
        seed, step: of the random draw.
        whole: leave a random half of the total batch's pairs, rounded down, as they are.
    """
    levels = []
    for level in features:
        mask = complementary_channel_masks(
            len(level) // 2,
            level.shape[1],
            level.device,
            seed=seed,
            step=step,
            use="complementary features",
            whole=whole,
        )
        levels.append(level * mask.to(level.dtype)[:, :, None, None])
    return CorrMatchFeatures(levels)
