"""Features with dropped channels beside the whole ones: the perturbation of UniMatch, which CorrMatch shares."""

from __future__ import annotations

import torch

from ..model.modeling_corrmatch import CorrMatchFeatures
from ..ops.channel_mask import stacked_channel_mask


def with_dropped_channels(
    features: CorrMatchFeatures, probability: float, rows: tuple[int, ...], *, seed: int, step: int
) -> CorrMatchFeatures:
    """The batch twice, (2N,C,h,w): as it is, then with whole channels dropped, each level and image on its own.

    Both halves are decoded together, so the decoder's batch statistics are taken over both, as in the published runs.

    Args:
        features: of N images.
        probability: of a channel to be dropped, in [0, 1).
        rows: how many of the N images belong to each part of the batch, such as (labelled, unlabelled).
        seed, step: of the random draw.
    """
    return CorrMatchFeatures(
        *(
            torch.cat([level, level * drop.to(level.dtype)[:, :, None, None]])
            for level, drop in (
                (
                    level,
                    stacked_channel_mask(
                        rows,
                        level.shape[1],
                        probability,
                        level.device,
                        seed=seed,
                        step=step,
                        use=f"features {i}",
                    ),
                )
                for i, level in enumerate(features)
            )
        )
    )
