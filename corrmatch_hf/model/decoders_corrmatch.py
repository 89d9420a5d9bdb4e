"""The DeepLabV3+ decoder, and what all decoders share: the interpolation, and what they give."""

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
