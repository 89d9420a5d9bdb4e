"""The layout of CorrMatch's and UniMatch V1's checkpoints.

Both methods use the same network, DeepLabV3+ on a ResNet whose stem is three 3x3 convolutions (timm's resnet50s and
resnet101s); CorrMatch adds the correlation head. The weights determine encoder, widths, number of classes and whether
there is a correlation head, but not the output stride.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from ..errors import InputError
from ..model import CorrMatchForSegmentation
from .checkpoint_file import first

METHODS = "CorrMatch or UniMatch V1"
PREFIXES = {  # theirs: ours
    "backbone.": "encoder.body.",
    "head.b0.0.": "decoder.aspp.point.conv.",
    "head.b0.1.": "decoder.aspp.point.norm.",
    **{f"head.b{i}.0.": f"decoder.aspp.dilated.{i - 1}.conv." for i in (1, 2, 3)},
    **{f"head.b{i}.1.": f"decoder.aspp.dilated.{i - 1}.norm." for i in (1, 2, 3)},
    "head.b4.gap.1.": "decoder.aspp.pooled.conv.",
    "head.b4.gap.2.": "decoder.aspp.pooled.norm.",
    "head.project.0.": "decoder.aspp.project.conv.",
    "head.project.1.": "decoder.aspp.project.norm.",
    "reduce.0.": "decoder.fuse.reduce.conv.",
    "reduce.1.": "decoder.fuse.reduce.norm.",
    "fuse.0.": "decoder.fuse.convs.0.conv.",
    "fuse.1.": "decoder.fuse.convs.0.norm.",
    "fuse.3.": "decoder.fuse.convs.1.conv.",
    "fuse.4.": "decoder.fuse.convs.1.norm.",
    "classifier.": "decoder.classify.",
    "proj.0.": "correlation.project.conv.",
    "proj.1.": "correlation.project.norm.",
    "corr.conv1.": "correlation.query.",
    "corr.conv2.": "correlation.key.",
}
# Blocks of the four stages: timm's name.
ENCODERS: dict[tuple[int, ...], str] = {(3, 4, 6, 3): "resnet50s", (3, 4, 23, 3): "resnet101s"}
COUNTER = ".num_batches_tracked"  # BatchNorm had none before PyTorch 0.4.1; the network does not depend on it


def config_arguments(shapes: Mapping[str, tuple], path: Path) -> dict:
    """The arguments of `CorrMatchConfig` for weights of these shapes.

    Raises:
        InputError: the encoder is not one of the authors'.
    """
    blocks = [0, 0, 0, 0]  # of each stage
    for name in shapes:
        if match := re.match(r"backbone\.layer([1-4])\.(\d{1,5})\.", name):
            stage = int(match[1]) - 1
            blocks[stage] = max(blocks[stage], int(match[2]) + 1)
    encoder = ENCODERS.get(tuple(blocks))
    if encoder is None:
        known = " or ".join(f"{name} {blocks}" for blocks, name in ENCODERS.items())
        raise InputError(
            f"{path} is not a checkpoint of {METHODS} with a ResNet, nor of UniMatch V2: stages backbone.layer1 to 4 "
            f"have {tuple(blocks)} blocks instead of {known}; its weights are {first(shapes)}."
        )

    def channels(name: str, default: int) -> int:
        return (shapes.get(name) or (default,))[0]

    labels = channels("classifier.weight", channels("classifier.bias", 1))
    head = any(name.startswith(("corr.", "proj.")) for name in shapes)
    found = {
        "encoder_name": encoder,
        "output_stride": 8 if head else 16,  # as published
        "num_labels": labels,
        "aspp_channels": channels("head.b0.0.weight", 256),
        "low_level_channels": channels("reduce.0.weight", 48),
        "decoder_channels": channels("fuse.0.weight", 256),
        "correlation_head": head,
    }
    if head:
        dim = channels("corr.conv1.weight", labels)
        found["correlation_channels"] = channels("proj.0.weight", 256)
        found["correlation_dim"] = None if dim == labels else dim
    return found


def differences(model: CorrMatchForSegmentation) -> list[str]:
    """How a network differs from the authors', apart from its numbers of channels."""
    config, found = model.config, []
    if config.encoder_name.split(".")[0] not in ENCODERS.values():
        found.append(f"encoder {config.encoder_name} instead of {' or '.join(ENCODERS.values())}")
    if own := {k: v for k, v in (config.encoder_kwargs or {}).items() if not k.startswith("drop_")}:
        found.append(f"an encoder built with {own}")
    if len(config.aspp_rates) != 3:
        found.append(f"{len(config.aspp_rates)} dilation rates instead of 3")
    if config.decoder_separable:
        found.append("separable convolutions")
    if config.correlation_head and config.correlation_position != "encoder":
        found.append(f"a correlation head on the {config.correlation_position} instead of the encoder")
    if config.correlation_head and config.correlation_scale != "scores":
        found.append(f"correlation_scale {config.correlation_scale} instead of scores")
    return found


def is_unused(name: str) -> bool:
    """Whether our network does not depend on this weight of the authors' layout."""
    return name.endswith(COUNTER)


def unused_weights(model: CorrMatchForSegmentation) -> dict[str, torch.Tensor]:
    """Weights of the authors' layout that our network does not have: none."""
    return {}
