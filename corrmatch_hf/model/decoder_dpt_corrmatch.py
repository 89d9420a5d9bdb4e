"""The DPT decoder (Ranftl et al. 2021) for plain vision transformers, as UniMatch V2 uses it.

Four levels of a transformer have the same grid; DPT makes a pyramid of them (4, 2, 1 and 1/2 times the grid) and fuses
it from coarse to fine. There is no BatchNorm anywhere, so a batch of one is like any other.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .decoders_corrmatch import DecoderOutput, resize


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x))))"""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class FusionBlock(nn.Module):
    """What came from the coarser levels, plus this level, refined and enlarged.

    coarsest: there is no coarser level; the block has no unit for its own level then, for only a sum needs one.
    """

    def __init__(self, channels: int, coarsest: bool = False):
        super().__init__()
        self.level = None if coarsest else ResidualUnit(channels)
        self.refine = ResidualUnit(channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor, level: torch.Tensor | None, size: tuple[int, int]) -> torch.Tensor:
        """x (N,C,h,w), level (N,C,h,w) -> (N,C,*size)"""
        if self.level is not None:
            x = x + self.level(level)
        return self.project(resize(self.refine(x), size))


class DPTDecoder(nn.Module):
    """Four levels (N,D,h,w) on one grid -> fused (N,channels,8h,8w) and logits of that size.

    Args:
        level_channels: D of each level.
        num_labels: number of classes.
        channels: of the fused features.
        pyramid_channels: of the four levels once they form a pyramid, the finest first.

    Attributes:
        fused_channels: channels of the fused features.
    """

    def __init__(
        self, level_channels: Sequence[int], num_labels: int, channels: int, pyramid_channels: Sequence[int]
    ):
        super().__init__()
        self.project = nn.ModuleList(
            nn.Conv2d(dim, width, 1) for dim, width in zip(level_channels, pyramid_channels, strict=True)
        )
        first, second, _, last = pyramid_channels
        self.rescale = nn.ModuleList(
            [
                nn.ConvTranspose2d(first, first, 4, stride=4),
                nn.ConvTranspose2d(second, second, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(last, last, 3, stride=2, padding=1),
            ]
        )
        self.narrow = nn.ModuleList(
            nn.Conv2d(width, channels, 3, padding=1, bias=False) for width in pyramid_channels
        )
        self.fuse = nn.ModuleList(FusionBlock(channels, coarsest) for coarsest in (False, False, False, True))
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1)
        self.classify = nn.Conv2d(channels, num_labels, 1)
        self.fused_channels = channels
        # As torch initialises them: these sums of residual units, without any norm, want small weights.
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.keeps_torch_initialisation = True

    def forward(self, levels: Sequence[torch.Tensor]) -> DecoderOutput:
        parts = zip(levels, self.project, self.rescale, self.narrow, strict=True)
        pyramid = [narrow(rescale(project(level))) for level, project, rescale, narrow in parts]
        x = self.fuse[3](pyramid[3], None, pyramid[2].shape[-2:])
        x = self.fuse[2](x, pyramid[2], pyramid[1].shape[-2:])
        x = self.fuse[1](x, pyramid[1], pyramid[0].shape[-2:])
        x = self.fuse[0](x, pyramid[0], tuple(2 * side for side in pyramid[0].shape[-2:]))
        fused = F.relu(self.smooth(x))
        return DecoderOutput(None, fused, self.classify(fused))
