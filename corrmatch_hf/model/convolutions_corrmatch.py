"""3x3 convolutions of the decoders: the same results for less work, and depthwise-separable ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

# Whether this CPU takes long for the weight gradients of channels_last convolutions.
SLOW_GRADIENTS = not torch.backends.cpu.get_cpu_capability().startswith("AVX512")


class Conv3x3(nn.Conv2d):
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
        rows, columns = self.only_centre(x)
        if rows:
            weight, padding[0] = weight[:, :, 1:2], 0
        if columns:
            weight, padding[1] = weight[..., 1:2], 0
        if SLOW_GRADIENTS and self._learns_in_channels_last(x, weight):
            return _ChannelsLastConvolution.apply(x, weight, self.bias, padding, self.dilation)
        return F.conv2d(x, weight, self.bias, padding=padding, dilation=rate, groups=self.groups)

    def only_centre(self, x: torch.Tensor) -> tuple[bool, bool]:
        """Whether only the centre of the kernel meets the map: in its height, and in its width."""
        return self.dilation[0] >= x.shape[-2], self.dilation[0] >= x.shape[-1]

    def _learns_in_channels_last(self, x: torch.Tensor, weight: torch.Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == torch.float32
            and self.groups == 1
            and weight.shape[-2:] == self.kernel_size
            and weight.requires_grad
            and weight.is_contiguous(memory_format=torch.channels_last)
            and torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )


class _ChannelsLastConvolution(torch.autograd.Function):
    """A channels_last convolution whose weight gradient is computed in torch's default layout.

    Without AVX-512 that is two to three times as fast; everything else is faster in channels_last.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, padding, dilation):
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        ctx.geometry = [1, 1], padding, list(dilation), False, [0, 0], 1
        return F.conv2d(x, weight, bias, padding=padding, dilation=dilation)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        backward, grad_x = torch.ops.aten.convolution_backward, None
        if ctx.needs_input_grad[0]:
            grad = grad.contiguous(memory_format=torch.channels_last)
            grad_x = backward(grad, x, weight, ctx.bias_sizes, *ctx.geometry, [True, False, False])[0]
        _, grad_weight, grad_bias = backward(
            grad.contiguous(), x.contiguous(), weight.contiguous(), ctx.bias_sizes, *ctx.geometry,
            [False, True, ctx.bias_sizes is not None],
        )  # fmt: skip
        return grad_x, grad_weight, grad_bias, None, None


class DepthwiseConv2d(Conv3x3):
    """A 3x3 convolution of each channel alone: (N,channels,h,w) -> (N,channels,h,w)"""

    def __init__(self, channels: int, dilation: int = 1):
        super().__init__(channels, channels, dilation, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.dilation[0] == 1 or torch.compiler.is_exporting() or torch.jit.is_tracing():
            return super().forward(x)
        if all(self.only_centre(x)):
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
