"""The DeepLabV3+ decoder, and what all decoders share: the interpolation, and what they give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn


def resize(tensor: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """tensor (N,C,h,w) -> (N,C,*size), bilinear with aligned corners: the one interpolation of this
    network."""
    return F.interpolate(tensor, size=tuple(size), mode="bilinear", align_corners=True)


def brought_to(tensor: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`resize`, spared where the size is that already. In a graph for any size never: there it changes nothing then."""
    if not torch.compiler.is_compiling() and tuple(tensor.shape[-2:]) == tuple(size):
        return tensor
    return resize(tensor, size)


class DecoderOutput(NamedTuple):
    """aspp (N,A,h,w), of DeepLabV3+ alone; fused (N,F,H',W'), what the classifier sees; logits (N,K,H',W')."""

    aspp: torch.Tensor | None
    fused: torch.Tensor
    logits: torch.Tensor


class ConvNormAct(nn.Module):
    """Convolution that keeps the size, BatchNorm, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1, bias: bool = False
    ):
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=bias
        )
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, norm = self.conv(x), self.norm
        if self.training and x.numel() == x.shape[1] and not _synchronised(norm):
            # One value per channel (one image, 1x1 map) has no variance: running statistics, as in eval mode.
            x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        else:
            x = norm(x)
        return F.relu(x, inplace=True)


def _synchronised(norm: nn.Module) -> bool:
    """Whether other processes add their values to this norm's statistics."""
    return (
        isinstance(norm, nn.SyncBatchNorm)
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


class AtrousPyramid(nn.Module):
    """ASPP: a 1x1 convolution, 3x3 convolutions at several dilations and image pooling, side by side."""

    def __init__(self, in_channels: int, channels: int, rates: list[int]):
        super().__init__()
        self.point = ConvNormAct(in_channels, channels, 1)
        self.dilated = nn.ModuleList(ConvNormAct(in_channels, channels, 3, dilation=rate) for rate in rates)
        self.pooled = ConvNormAct(in_channels, channels, 1)
        self.project = ConvNormAct((2 + len(rates)) * channels, channels, 1)

    def forward(self, high: torch.Tensor) -> torch.Tensor:
        """high (N,C,h,w) -> (N,channels,h,w)"""
        pooled = self.pooled(high.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *high.shape[-2:])
        branches = [self.point(high), *(branch(high) for branch in self.dilated), pooled]
        return self.project(torch.cat(branches, dim=1))


class Fusion(nn.Module):
    """Low-level features, reduced to few channels, and the enlarged ASPP output through two 3x3
    convolutions."""

    def __init__(self, low_channels: int, reduced_channels: int, aspp_channels: int, channels: int):
        super().__init__()
        self.reduce = ConvNormAct(low_channels, reduced_channels, 1)
        self.convs = nn.Sequential(
            ConvNormAct(reduced_channels + aspp_channels, channels, 3), ConvNormAct(channels, channels, 3)
        )

    def forward(self, low: torch.Tensor, aspp: torch.Tensor) -> torch.Tensor:
        """low (N,C,H/4,W/4), aspp (N,A,h,w) -> (N,channels,H/4,W/4)"""
        # low level first, as in the authors' checkpoints
        return self.convs(torch.cat([self.reduce(low), resize(aspp, low.shape[-2:])], dim=1))


class DeepLabV3PlusDecoder(nn.Module):
    """DeepLabV3+ (Chen et al. 2018) as CorrMatch uses it.

    (low (N,L,H/4,W/4), high (N,C,h,w)) -> aspp (N,aspp_channels,h,w), fused (N,channels,H/4,W/4) and logits of that
    size.

    In train mode it also takes a single image, whose pooled features BatchNorm cannot normalise.

    Attributes:
        fused_channels: channels of the fused features.
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        num_labels: int,
        atrous_rates: list[int],
        aspp_channels: int = 256,
        low_level_channels: int = 48,
        channels: int = 256,
    ):
        super().__init__()
        self.aspp = AtrousPyramid(high_channels, aspp_channels, atrous_rates)
        self.fuse = Fusion(low_channels, low_level_channels, aspp_channels, channels)
        self.classify = nn.Conv2d(channels, num_labels, 1)
        self.fused_channels = channels

    def forward(self, levels: Sequence[torch.Tensor]) -> DecoderOutput:
        low, high = levels
        aspp = self.aspp(high)
        fused = self.fuse(low, aspp)
        return DecoderOutput(aspp, fused, self.classify(fused))


# -------------------- The DPT decoder (Ranftl et al. 2021) for plain vision transformers, as UniMatch V2 uses it.
#
# Four levels of a transformer have the same grid; DPT makes a pyramid of them (4, 2, 1 and 1/2 times the grid) and fuses
# it from coarse to fine. There is no BatchNorm anywhere, so a batch of one is like any other.


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


# -------------------- The lightest decoder: one linear map on the features of each position.


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
