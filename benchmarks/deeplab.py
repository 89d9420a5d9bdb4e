"""DeepLabV3+: separable against segmentation_models.pytorch, and dilated convolutions that reach the padding.

Both networks have the same timm encoder at stride 16, 256 decoder channels and random weights; ours in the
layout that the trainer chooses, theirs in torch's default one, as it is published. Without the package
(pip install segmentation-models-pytorch) these rows are left out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor, nn

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, TrainingConfig
from corrmatch_hf.model.convolutions_corrmatch import Conv3x3
from corrmatch_hf.training.optimizer import memory_format

from .measure import Row, least_milliseconds

CLASSES = 11
ENCODERS = ("mobilenetv2_100", "resnet18", "resnet50")
SIDE, IMAGES = {"cpu": 256, "cuda": 512}, {"cpu": 2, "cuda": 8}
CROP = 161  # of the recipes for a CPU


def rows(device: str) -> Iterator[Row]:
    yield shortcut(device)
    if importlib.util.find_spec("segmentation_models_pytorch"):
        for encoder in ENCODERS:
            yield separable(encoder, device)


def network(encoder: str, **options) -> CorrMatchForSegmentation:
    config = {"encoder_name": encoder, "num_labels": CLASSES, "correlation_head": False, **options}
    return CorrMatchForSegmentation(CorrMatchConfig(**config))


def layout(model: CorrMatchForSegmentation, device: str) -> torch.memory_format:
    return memory_format(model, TrainingConfig(), torch.device(device))


def separable(encoder: str, device: str) -> Row:
    import segmentation_models_pytorch as smp

    theirs = smp.DeepLabV3Plus(f"tu-{encoder}", encoder_weights=None, classes=CLASSES).to(device).train()
    ours = network(encoder, output_stride=16, decoder_separable=True)
    ours = ours.to(device, memory_format=layout(ours, device)).train()
    image = torch.randn(IMAGES[device], 3, SIDE[device], SIDE[device], device=device)
    times = least_milliseconds(
        lambda: step(theirs, lambda: theirs(image)),
        lambda: step(ours, lambda: ours(image).logits),
        device,
    )
    return Row(
        f"separable DeepLabV3+ with {encoder}, forward and backward, {len(image)} x {SIDE[device]}²",
        *times, "ms", None, 1.0, f"segmentation_models.pytorch {smp.__version__}",
    )  # fmt: skip


def shortcut(device: str, encoder: str = "resnet50") -> Row:
    """A step of the network with whole kernels and without what only multiplies with zeros."""
    torch.manual_seed(0)
    model = network(encoder, output_stride=8).train()
    model.to(device, memory_format=layout(model, device))
    image = torch.randn(IMAGES[device], 3, CROP, CROP, device=device)

    def ours() -> list[Tensor]:
        return step(model, lambda: model(image).logits)

    def reference() -> list[Tensor]:
        with mock.patch.object(Conv3x3, "only_centre", lambda self, x: (False, False)):
            return ours()

    equal = all((a - b).abs().max() <= 1e-3 * b.abs().max() for a, b in zip(ours(), reference(), strict=True))
    return Row(
        f"DeepLabV3+ with {encoder}, stride 8, crop {CROP}: without taps in the padding",
        *least_milliseconds(reference, ours, device, repeats=3), "ms", equal, 1.05,
        "to 1e-2 of their norms",
    )  # fmt: skip


def step(model: nn.Module, forward: Callable[[], Tensor]) -> list[Tensor]:
    """Logits and gradients of the parameters."""
    logits = forward()
    logits.square().mean().backward()
    found = [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    model.zero_grad()
    return found
