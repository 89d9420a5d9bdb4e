"""Levels of a plain vision transformer: outputs of some of its blocks, as pictures."""

from collections.abc import Sequence

import torch
from torch import nn


class TransformerLevels(nn.Module):
    """Outputs of the blocks `indices` of a timm transformer, each through its final norm, without class and register
    tokens: (N,3,H,W) -> [(N,D,H/patch,W/patch), ...]

    What lies behind the last of these blocks is removed.

    Attributes:
        channels: of each level.
    """

    def __init__(self, model: nn.Module, indices: Sequence[int]):
        super().__init__()
        self.indices = list(indices)
        if isinstance(getattr(model, "norm", None), nn.Identity) and hasattr(model, "fc_norm"):
            # Models that average their tokens have the final norm behind that; it would go with the head.
            model.norm, model.fc_norm = model.fc_norm, nn.Identity()
        model.prune_intermediate_layers(self.indices, prune_norm=False, prune_head=True)
        self.model = model
        self.pretrained_cfg = model.pretrained_cfg
        levels = [model.feature_info[i] for i in self.indices]
        # Where the final norm is more than a norm, it gives other channels than the blocks (SAM's).
        self.channels = [level.get("num_chs_norm", level["num_chs"]) for level in levels]

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        return self.model.forward_intermediates(
            pixel_values, indices=self.indices, norm=True, output_fmt="NCHW", intermediates_only=True
        )
