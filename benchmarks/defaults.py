"""What is chosen by device: the precision that is warned about, the evaluation batch, and counted work.

The reference of the first two rows is what is not chosen on a CPU: bf16 and batches of four.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation
from corrmatch_hf.evaluation.inference import default_batch_size, predict_probabilities
from corrmatch_hf.evaluation.optimize import bfloat16_is_slow

from .counting import flops, without_contents
from .measure import Row, least_milliseconds


def rows(device: str, encoder: str = "mobilenetv2_100", side: int = 241, repeats: int = 5) -> Iterator[Row]:
    torch.manual_seed(0)
    config = CorrMatchConfig(
        encoder_name=encoder, num_labels=11, correlation_head=False, decoder_separable=True
    )
    model = CorrMatchForSegmentation(config).to(device).train()
    yield mixed_precision(model, side, device, repeats)
    yield evaluation_batch(model.eval(), side, device, repeats)
    yield depthwise_backward()


def mixed_precision(model: nn.Module, side: int, device: str, repeats: int) -> Row:
    image = torch.randn(2, 3, side, side, device=device)

    def step(bf16: bool) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = model(image).logits.square().mean()
        loss.backward()
        model.zero_grad()

    times = least_milliseconds(lambda: step(True), lambda: step(False), device, repeats)
    warned = bfloat16_is_slow(device)
    return Row(
        f"a step in bf16 and in float32, 2 x {side}²", *times, "ms", warned == (times[0] > times[1]),
        note="identical: is bf16 warned about where it is slower, and only there?",
    )  # fmt: skip


def evaluation_batch(model: nn.Module, side: int, device: str, repeats: int) -> Row:
    images = torch.randn(4, 3, side, side, device=device)

    def predict(batch_size: int) -> torch.Tensor:
        return torch.cat([predict_probabilities(model, part) for part in images.split(batch_size)])

    batch, other = default_batch_size(device), 5 - default_batch_size(device)
    equal = bool((predict(batch).argmax(1) == predict(other).argmax(1)).float().mean() > 0.999)
    times = least_milliseconds(lambda: predict(other), lambda: predict(batch), device, repeats)
    return Row(f"4 images of {side}², {other} and {batch} at a time", *times, "ms", equal, 1.0)


def depthwise_backward(channels: int = 256, side: int = 65) -> Row:
    """FLOPs of the backward pass as torch counts them, as we do, and by hand."""
    layer = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    with without_contents(layer):
        image = torch.empty(1, channels, side, side, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            output = layer(image)
            forward = counter.get_total_flops()
            output.sum().backward()
        theirs = counter.get_total_flops() - forward
        ours = flops(lambda: layer(image).sum().backward()) - forward
    by_hand = 2 * 2 * 9 * channels * side**2  # two gradients, a product and a sum for each tap
    return Row(
        f"counted backward of a depthwise 3x3 convolution, {channels} channels",
        theirs / 1e6,
        ours / 1e6,
        "MFLOP",
        ours == by_hand,
    )
