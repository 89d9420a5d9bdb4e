"""3x3 convolutions of the decoders: dilated ones that skip what they only multiply with zeros, and separable ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class DilatedConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 1 that keeps the size: (N,in_channels,h,w) -> (N,out_channels,h,w)

    Where the dilation reaches the height or the width of the map, the outer taps only ever read the padding, and they
    are left out: with rate >= h and rate >= w it is the 1x1 convolution of the centre, nine times cheaper. Results and
    gradients are those of the whole kernel, up to the rounding of another order of summation; the gradients of the
    outer taps are exactly 0. The weight stays (out_channels,in_channels / groups,3,3).
    """

    def __init__(
        self, in_channels: int, out_channels: int, dilation: int = 1, groups: int = 1, bias: bool = False
    ):
        super().__init__(
            in_channels, out_channels, 3, padding=dilation, dilation=dilation, groups=groups, bias=bias
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # An exported graph is for images of any size: it keeps the whole kernel. torch.compile guards on the size.
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            return super().forward(x)
        rate, weight, padding = self.dilation[0], self.weight, list(self.padding)
        if rate >= x.shape[-2]:
            weight, padding[0] = weight[:, :, 1:2], 0
        if rate >= x.shape[-1]:
            weight, padding[1] = weight[..., 1:2], 0
        return F.conv2d(x, weight, self.bias, padding=padding, dilation=rate, groups=self.groups)


class DepthwiseConv2d(DilatedConv2d):
    """A 3x3 convolution of each channel alone: (N,channels,h,w) -> (N,channels,h,w)"""

    def __init__(self, channels: int, dilation: int = 1):
        super().__init__(channels, channels, dilation, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rate = self.dilation[0]
        if rate == 1 or torch.compiler.is_exporting() or torch.jit.is_tracing():
            return super().forward(x)
        if rate >= x.shape[-2] and rate >= x.shape[-1]:
            return x * self.weight[:, 0, 1, 1, None, None]
        if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
            # torch's kernel for dilation and this layout takes up to ten times as long as that for the other one.
            return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)
        return super().forward(x)


class SeparableConv2d(nn.Sequential):
    """A 3x3 convolution of each channel alone, then a 1x1 convolution over the channels: about a ninth of the work."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1):
        super().__init__()
        self.depthwise = DepthwiseConv2d(in_channels, dilation)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
