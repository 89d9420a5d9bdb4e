"""The decoders: DeepLabV3+ for pyramid encoders, DPT for plain vision transformers, and a linear one for both.

`build_decoder` makes the one that a configuration names. A decoder maps the encoder's levels (N,C_i,h_i,w_i) to a
`DecoderOutput` and has the attribute `fused_channels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn

from .convolutions_corrmatch import Conv3x3, SeparableConv2d

if TYPE_CHECKING:
    from .configuration_corrmatch import CorrMatchConfig


def resize(tensor: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """tensor (N,C,h,w) -> (N,C,*size), bilinear with aligned corners, as everywhere in this network."""
    return F.interpolate(tensor, size=tuple(size), mode="bilinear", align_corners=True)


def resize_if_needed(tensor: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`resize`, skipped if the tensor already has that size.

    A graph for any size always resizes, which does not change a tensor that has the size already.
    """
    if not torch.compiler.is_compiling() and tuple(tensor.shape[-2:]) == tuple(size):
        return tensor
    return resize(tensor, size)


class CorrMatchFeatures(tuple):
    """The encoder's levels: low (N,C,~H/4,~W/4) and high (N,C,h,w) of a pyramid, or several (N,C,h,w) of a plain
    transformer."""

    @property
    def high(self) -> torch.Tensor:
        """The last level, (N,C,h,w) at the output stride."""
        return self[-1]


class DecoderOutput(NamedTuple):
    """aspp (N,A,h,w), DeepLabV3+ only; fused (N,F,H',W'), the input of the classifier; logits (N,K,H',W')."""

    aspp: torch.Tensor | None
    fused: torch.Tensor
    logits: torch.Tensor


class ConvNormAct(nn.Module):
    """1x1 or 3x3 convolution that keeps the size, BatchNorm, ReLU: (N,in_channels,h,w) -> (N,out_channels,h,w)"""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int = 1,
        bias: bool = False,
        separable: bool = False,
    ):
        super().__init__()
        if kernel_size == 1:
            self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        elif separable:
            self.conv = SeparableConv2d(in_channels, out_channels, dilation)
        else:
            self.conv = Conv3x3(in_channels, out_channels, dilation, bias=bias)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, norm = self.conv(x), self.norm
        if self.training and x.numel() == x.shape[1] and not _synchronised(norm):
            # One value per channel (one image, 1x1 map) has no variance: use running statistics, as in eval mode.
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


# ---------------------------------------------------------------------------- DeepLabV3+ (Chen et al. 2018)


class AtrousPyramid(nn.Module):
    """ASPP: a 1x1 convolution, 3x3 convolutions at several dilations and image pooling, side by side."""

    def __init__(self, in_channels: int, channels: int, rates: list[int], separable: bool = False):
        super().__init__()
        self.point = ConvNormAct(in_channels, channels, 1)
        self.dilated = nn.ModuleList(
            ConvNormAct(in_channels, channels, 3, dilation=rate, separable=separable) for rate in rates
        )
        self.pooled = ConvNormAct(in_channels, channels, 1)
        self.project = ConvNormAct((2 + len(rates)) * channels, channels, 1)

    def forward(self, high: torch.Tensor) -> torch.Tensor:
        """high (N,C,h,w) -> (N,channels,h,w)"""
        pooled = self.pooled(high.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *high.shape[-2:])
        branches = [self.point(high), *(branch(high) for branch in self.dilated), pooled]
        return self.project(torch.cat(branches, dim=1))


class Fusion(nn.Module):
    """Two 3x3 convolutions on the low-level features, reduced to few channels, and the upsampled ASPP output.

    separable: both are depthwise-separable, and the first one works on the ASPP output alone, before it is upsampled,
        on a sixteenth of the pixels.
    """

    def __init__(
        self,
        low_channels: int,
        reduced_channels: int,
        aspp_channels: int,
        channels: int,
        separable: bool = False,
    ):
        super().__init__()
        self.reduce = ConvNormAct(low_channels, reduced_channels, 1)
        self.refine = ConvNormAct(aspp_channels, aspp_channels, 3, separable=True) if separable else None
        self.convs = nn.Sequential(
            ConvNormAct(reduced_channels + aspp_channels, channels, 3, separable=separable)
        )
        if not separable:
            self.convs.append(ConvNormAct(channels, channels, 3))

    def forward(self, low: torch.Tensor, aspp: torch.Tensor) -> torch.Tensor:
        """low (N,C,H/4,W/4), aspp (N,A,h,w) -> (N,channels,H/4,W/4)"""
        if self.refine is not None:
            aspp = self.refine(aspp)
        # low level first, as in the authors' checkpoints
        return self.convs(torch.cat([self.reduce(low), resize(aspp, low.shape[-2:])], dim=1))


class DeepLabV3PlusDecoder(nn.Module):
    """DeepLabV3+ (Chen et al. 2018) as CorrMatch uses it.

    (low (N,L,H/4,W/4), high (N,C,h,w)) -> aspp (N,aspp_channels,h,w), fused (N,channels,H/4,W/4) and logits of that
    size.

    separable: depthwise-separable 3x3 convolutions, as in the paper's fast networks.

    It can train on a single image, although BatchNorm cannot normalise that image's pooled features.

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
        separable: bool = False,
    ):
        super().__init__()
        self.aspp = AtrousPyramid(high_channels, aspp_channels, atrous_rates, separable)
        self.fuse = Fusion(low_channels, low_level_channels, aspp_channels, channels, separable)
        self.classify = nn.Conv2d(channels, num_labels, 1)
        self.fused_channels = channels

    def forward(self, levels: Sequence[torch.Tensor]) -> DecoderOutput:
        low, high = levels
        aspp = self.aspp(high)
        fused = self.fuse(low, aspp)
        return DecoderOutput(aspp, fused, self.classify(fused))


# ---------------------------------------------------------- DPT (Ranftl et al. 2021), as UniMatch V2 uses it
#
# Four levels of a transformer have the same grid; DPT rescales them to a pyramid (4, 2, 1 and 1/2 times the grid) and
# fuses it from coarse to fine. It has no BatchNorm, so a batch of one needs no special treatment.


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x))))"""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = Conv3x3(channels, channels, bias=True)
        self.conv2 = Conv3x3(channels, channels, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(F.relu(self.conv1(F.relu(x)), inplace=True)).add_(x)


class FusionBlock(nn.Module):
    """Adds a level to the fused coarser levels, refines and upsamples the sum.

    coarsest: the block has no coarser input to add to its level, and so no residual unit for that level.
    """

    def __init__(self, channels: int, coarsest: bool = False):
        super().__init__()
        self.level = None if coarsest else ResidualUnit(channels)
        self.refine = ResidualUnit(channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor, level: torch.Tensor | None, size: tuple[int, int]) -> torch.Tensor:
        """x (N,C,h,w), the coarser levels, and level (N,C,h,w) -> (N,C,*size)"""
        if self.level is not None:
            x = self.level(level).add_(x)
        # The 1x1 convolution before resizing, on a quarter of the pixels: bilinear weights sum to 1, so both orders are
        # equal up to rounding, the bias included.
        return resize(self.project(self.refine(x)), size)


class DPTDecoder(nn.Module):
    """Four levels (N,D,h,w) on one grid -> fused (N,channels,8h,8w) and logits of that size.

    Args:
        level_channels: D of each level.
        num_labels: number of classes.
        channels: channels of the fused features.
        pyramid_channels: channels of the four levels of the pyramid, the finest first.

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
        self.narrow = nn.ModuleList(Conv3x3(width, channels) for width in pyramid_channels)
        self.fuse = nn.ModuleList(FusionBlock(channels, coarsest) for coarsest in (False, False, False, True))
        self.smooth = Conv3x3(channels, channels, bias=True)
        self.classify = nn.Conv2d(channels, num_labels, 1)
        self.fused_channels = channels
        # torch's own initialisation: without norms, these sums of residual units need small weights.
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.keeps_torch_initialisation = True

    def forward(self, levels: Sequence[torch.Tensor]) -> DecoderOutput:
        parts = zip(levels, self.project, self.rescale, self.narrow, strict=True)
        pyramid = [narrow(rescale(project(level))) for level, project, rescale, narrow in parts]
        # From h/2 over h, 2h and 4h to 8h.
        x = self.fuse[3](pyramid[3], None, pyramid[2].shape[-2:])
        x = self.fuse[2](x, pyramid[2], pyramid[1].shape[-2:])
        x = self.fuse[1](x, pyramid[1], pyramid[0].shape[-2:])
        x = self.fuse[0](x, pyramid[0], tuple(2 * side for side in pyramid[0].shape[-2:]))
        fused = F.relu(self.smooth(x), inplace=True)
        return DecoderOutput(None, fused, self.classify(fused))


# ----------------------------------------------------------------------------------------------------- linear


class LinearDecoder(nn.Module):
    """A 1x1 convolution on the concatenated levels of any encoder, resized to the first level's resolution.

    Levels (N,C_i,h_i,w_i) -> fused (N,sum C_i,h_0,w_0) and logits (N,K,h_0,w_0).

    Attributes:
        fused_channels: sum of the channels of all levels.
    """

    def __init__(self, level_channels: Sequence[int], num_labels: int):
        super().__init__()
        self.fused_channels = sum(level_channels)
        self.classify = nn.Conv2d(self.fused_channels, num_labels, 1)

    def forward(self, levels: Sequence[torch.Tensor]) -> DecoderOutput:
        size = levels[0].shape[-2:]
        fused = torch.cat([levels[0], *(resize(level, size) for level in levels[1:])], dim=1)
        return DecoderOutput(None, fused, self.classify(fused))


# -------------------------------------------------------------------------------------------- choosing the decoder


def build_decoder(
    config: CorrMatchConfig, channels: Sequence[int], plain: bool
) -> DeepLabV3PlusDecoder | DPTDecoder | LinearDecoder:
    """The decoder that `config` names, for an encoder whose levels have these `channels`.

    Args:
        config: with the output stride in use, not None.
        channels: of each level of the encoder.
        plain: whether the encoder is a plain transformer.

    Raises:
        ValueError: the decoder cannot be combined with this encoder.
    """
    # Not above: what methods use of this file needs no transformers.
    from .configuration_corrmatch import ATROUS_RATES, DPT_LEVELS

    if config.decoder_type == "linear":
        return LinearDecoder(channels, config.num_labels)
    if config.decoder_type == "dpt":
        if not plain:
            raise ValueError(
                f"Decoder 'dpt' needs a plain transformer, but encoder {config.encoder_name!r} has a pyramid of "
                "features: use decoder 'deeplabv3plus' or 'linear', or an encoder such as 'vit_small_patch14_dinov2'."
            )
        if len(channels) != DPT_LEVELS:
            raise ValueError(
                f"Decoder 'dpt' needs {DPT_LEVELS} levels, but encoder {config.encoder_name!r} has "
                f"{len(channels)}: use decoder 'linear', or an encoder of at least {DPT_LEVELS} blocks."
            )
        width = channels[-1]
        pyramid = config.pyramid_channels or [width // 8, width // 4, width // 2, width]
        return DPTDecoder(channels, config.num_labels, config.decoder_channels, pyramid)
    if plain:
        raise ValueError(
            f"Decoder 'deeplabv3plus' needs a pyramid of features, but encoder {config.encoder_name!r} is a plain "
            "transformer: use decoder 'dpt' or 'linear', or an encoder such as 'resnet50'."
        )
    if config.output_stride not in ATROUS_RATES:
        raise ValueError(
            f"Decoder 'deeplabv3plus' needs output stride 8, 16 or 32, but that of encoder {config.encoder_name!r} is "
            f"{config.output_stride}: use decoder 'linear', or an encoder such as 'resnet50'."
        )
    return DeepLabV3PlusDecoder(
        low_channels=channels[0],
        high_channels=channels[-1],
        num_labels=config.num_labels,
        atrous_rates=config.aspp_rates,
        aspp_channels=config.aspp_channels,
        low_level_channels=config.low_level_channels,
        channels=config.decoder_channels,
        separable=config.decoder_separable,
    )
