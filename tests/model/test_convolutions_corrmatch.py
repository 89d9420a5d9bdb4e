"""Dilated convolutions that skip taps in the padding equal the whole ones; separable ones equal one kernel."""

import pytest
import torch
import torch.nn.functional as F

from corrmatch_hf.model import convolutions_corrmatch
from corrmatch_hf.model.convolutions_corrmatch import Conv3x3, DepthwiseConv2d, SeparableConv2d
from corrmatch_hf.model.decoders_corrmatch import DeepLabV3PlusDecoder

MAKERS = {
    "dense": lambda rate: Conv3x3(4, 6, rate, bias=True),
    "depthwise": lambda rate: DepthwiseConv2d(6, rate),
}
GRIDS = [(1, 1), (3, 4), (4, 9), (9, 5), (5, 5), (9, 11)]  # smaller than the rate, on one side, equal, larger


def whole(conv, x):
    """torch's convolution with all taps."""
    return F.conv2d(
        x, conv.weight, conv.bias, padding=conv.padding, dilation=conv.dilation, groups=conv.groups
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", MAKERS)
def test_results_and_gradients_are_those_of_the_whole_kernel(kind, grid, layout):
    conv = MAKERS[kind](5).double().to(memory_format=layout)
    x = torch.randn(2, conv.in_channels, *grid, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    found, expected = conv(x), whole(conv, x)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    out = torch.randn_like(expected)
    inputs = (x, *conv.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, out), torch.autograd.grad(expected, inputs, out), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-12)


def test_gradients_of_skipped_taps_are_zero_and_keep_the_layout_of_the_weight():
    conv = Conv3x3(4, 6, 5).to(memory_format=torch.channels_last)
    conv(torch.randn(2, 4, 5, 3)).sum().backward()
    outer = conv.weight.grad.clone()
    outer[:, :, 1, 1] = 0
    assert not outer.any() and conv.weight.grad[:, :, 1, 1].all()
    assert conv.weight.grad.stride() == conv.weight.stride()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rate", [1, 2])
def test_channels_last_gradients_on_a_cpu_without_avx512(rate, bias, monkeypatch):
    monkeypatch.setattr(convolutions_corrmatch, "SLOW_GRADIENTS", True)
    conv = Conv3x3(4, 6, rate, bias=bias).to(memory_format=torch.channels_last)
    for learned in (True, False):  # images need no gradient
        x = torch.randn(2, 4, 7, 8, requires_grad=learned)
        found, expected = conv(x), whole(conv, x)
        assert "ChannelsLastConvolution" in type(found.grad_fn).__name__
        assert found.is_contiguous(memory_format=torch.channels_last)
        inputs, out = (*conv.parameters(), *([x] if learned else [])), torch.randn_like(expected)
        for ours, theirs in zip(
            (found, *torch.autograd.grad(found, inputs, out)),
            (expected, *torch.autograd.grad(expected, inputs, out)),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        conv(torch.randn(2, 4, 7, 8)).sum().backward()
    assert conv.weight.grad.stride() == conv.weight.stride()


@pytest.mark.parametrize("dynamic", [False, None])
def test_compiled_for_each_size(dynamic):
    torch._dynamo.reset()
    conv = Conv3x3(4, 6, 5)
    compiled = torch.compile(conv, backend="eager", fullgraph=True, dynamic=dynamic)
    for grid in ((4, 4), (9, 9), (3, 8), (8, 3), (12, 12), (4, 4)):
        x = torch.randn(2, 4, *grid)
        torch.testing.assert_close(compiled(x), whole(conv, x))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_graph_traced_on_a_small_map_works_on_a_large_one(kind):
    conv = MAKERS[kind](5).eval()
    small, large = torch.randn(2, conv.in_channels, 4, 3), torch.randn(1, conv.in_channels, 9, 11)
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        exported = torch.export.export(conv, (small,), dynamic_shapes=(sizes,)).module()
        traced = torch.jit.trace(conv, small)
    for graph in (exported, traced):
        torch.testing.assert_close(graph(large), whole(conv, large))


def test_a_separable_convolution_is_one_kernel_of_products():
    conv = SeparableConv2d(4, 6, dilation=2).double()
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    kernel = conv.pointwise.weight * conv.depthwise.weight.transpose(0, 1)  # (6,4,1,1) * (1,4,3,3)
    torch.testing.assert_close(conv(x), F.conv2d(x, kernel, padding=2, dilation=2))


def test_a_separable_decoder_has_a_tenth_of_the_3x3_weights():
    size = {"low_channels": 24, "high_channels": 320, "num_labels": 11, "atrous_rates": [6, 12, 18]}
    whole, separable = (DeepLabV3PlusDecoder(**size, separable=each) for each in (False, True))

    def count(decoder):
        return sum(p.numel() for p in decoder.parameters() if p.ndim == 4)

    points = sum(p.numel() for p in whole.parameters() if p.ndim == 4 and p.shape[-1] == 1)
    assert count(separable) - points < (count(whole) - points) / 8
    levels = [torch.randn(2, 24, 9, 11), torch.randn(2, 320, 3, 3)]
    output = separable.train()(levels)
    assert output.fused.shape == (2, 256, 9, 11) and output.aspp.shape == (2, 256, 3, 3)
    output.logits.sum().backward()
    assert all(p.grad is not None for p in separable.parameters())
    assert separable.train()([level[:1, ..., :1, :1] for level in levels]).logits.isfinite().all()
