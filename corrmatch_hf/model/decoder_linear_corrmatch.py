"""The lightest decoder: one linear map on the features of each position."""

from collections.abc import Sequence

import torch
from torch import nn

from .decoders_corrmatch import DecoderOutput, resize


class LinearDecoder(nn.Module):
    """Levels (N,C_i,h_i,w_i) of any encoder -> fused, all of them side by side at the finest level's size, and logits.

    Attributes:
        fused_channels: channels of the fused features, the sum of all levels'.
    """

    def __init__(self, level_channels: Sequence[int], num_labels: int):
        super().__init__()
        self.fused_channels = sum(level_channels)
        self.classify = nn.Conv2d(self.fused_channels, num_labels, 1)

    def forward(self, levels: Sequence[torch.Tensor]) -> DecoderOutput:
        size = levels[0].shape[-2:]
        fused = torch.cat([levels[0], *(resize(level, size) for level in levels[1:])], dim=1)
        return DecoderOutput(None, fused, self.classify(fused))
