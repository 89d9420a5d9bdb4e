"""The layout of UniMatch V2's checkpoints: DPT on a DINOv2 vision transformer, whose weights have timm's names.

The weights determine encoder, widths, number of classes and the grid of the position embeddings. Two of them are unused
in the authors' network, and ours does not have them: the mask token, and the residual unit of the coarsest level, which
has no coarser level to be added to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F

from ..errors import InputError
from ..model import CorrMatchForSegmentation

METHODS = "UniMatch V2"
PATCH = 14
IMAGE_SIZE = 518  # the image size of the position embeddings: 37 patches a side
MAX_IMAGE_SIZE = 4096  # its position embeddings take 350 MB
HEAD_WIDTH = 64  # channels of an attention head
ENCODERS = {  # channels and blocks: timm's name
    (384, 12): "vit_small_patch14_dinov2",
    (768, 12): "vit_base_patch14_dinov2",
    (1024, 24): "vit_large_patch14_dinov2",
}
LEVELS = {24: [4, 11, 17, 23]}  # number of blocks: levels, if they are not this package's default
POSITIONS = "backbone.pos_embed"
PREFIXES = {  # theirs: ours
    "backbone.": "encoder.body.model.",
    "head.projects.": "decoder.project.",
    "head.resize_layers.": "decoder.rescale.",
    **{f"head.scratch.layer{i}_rn.": f"decoder.narrow.{i - 1}." for i in (1, 2, 3, 4)},
    **{
        f"head.scratch.refinenet{i}.{theirs}.": f"decoder.fuse.{i - 1}.{ours}."
        for i in (1, 2, 3, 4)
        for theirs, ours in (("resConfUnit1", "level"), ("resConfUnit2", "refine"), ("out_conv", "project"))
    },
    "head.scratch.output_conv.0.": "decoder.smooth.",
    "head.scratch.output_conv.2.": "decoder.classify.",
}
UNUSED = ("backbone.mask_token", "head.scratch.refinenet4.resConfUnit1.")


def recognises(names: Mapping[str, object]) -> bool:
    """Whether these are the names of a vision transformer's weights."""
    return any(name.startswith(("backbone.blocks.", "backbone.patch_embed.")) for name in names)


def config_arguments(shapes: Mapping[str, tuple], path: Path) -> dict:
    """The arguments of `CorrMatchConfig` for weights of these shapes.

    Raises:
        InputError: another patch size; a width that is not a multiple of an attention head's; gated layers.
    """
    if any(".mlp.w12." in name for name in shapes):
        raise InputError(
            f"{path} has the gated layers (mlp.w12, mlp.w3) of DINOv2's giant transformer, for which no checkpoint of "
            f"{METHODS} is published: only the small, base and large models can be converted."
        )
    blocks = (re.match(r"backbone\.blocks\.(\d{1,5})\.", name) for name in shapes)
    depth = max((int(found[1]) + 1 for found in blocks if found), default=0)

    def size(name: str, dim: int, default: int) -> int:
        shape = shapes.get(name, ())
        return shape[dim] if len(shape) > dim else default

    width, patch = (size("backbone.patch_embed.proj.weight", *each) for each in ((0, 384), (2, PATCH)))
    if patch != PATCH or not depth or not width or width % HEAD_WIDTH:
        raise InputError(
            f"{path} is not a checkpoint of {METHODS}: its transformer has {depth} blocks of {width} channels and "
            f"patches of {patch} pixels; DINOv2 has patches of {PATCH} pixels and a multiple of {HEAD_WIDTH} channels."
        )
    found = {
        "encoder_name": ENCODERS.get((width, depth), "vit_small_patch14_dinov2"),
        "num_labels": size("head.scratch.output_conv.2.weight", 0, 1),
        "decoder_type": "dpt",
        "decoder_channels": size("head.scratch.layer1_rn.weight", 0, 64),
        "pyramid_channels": [size(f"head.projects.{i}.weight", 0, width) for i in range(4)],
        "correlation_head": False,
    }
    kwargs = {}
    if (width, depth) not in ENCODERS:
        kwargs = {"embed_dim": width, "depth": depth, "num_heads": width // HEAD_WIDTH}
    side = math.isqrt(max(size(POSITIONS, 1, 1 + (IMAGE_SIZE // PATCH) ** 2) - 1, 1)) * PATCH
    if side != IMAGE_SIZE:
        kwargs["img_size"] = side
    if kwargs:
        found["encoder_kwargs"] = kwargs
    if depth in LEVELS:
        found["out_indices"] = LEVELS[depth]
    return found


def differences(model: CorrMatchForSegmentation) -> list[str]:
    """How a network differs from the authors', apart from its numbers of channels."""
    config = model.config
    if config.encoder_name.split(".")[0] not in ENCODERS.values():
        return [f"encoder {config.encoder_name} instead of {' or '.join(ENCODERS.values())}"]
    vit, found = model.encoder.body.model, []
    theirs = ("embed_dim", "depth", "num_heads", "img_size")
    kwargs = config.encoder_kwargs or {}
    if own := {k: v for k, v in kwargs.items() if k not in theirs and not k.startswith("drop_")}:
        found.append(f"an encoder built with {own}")
    if (heads := vit.blocks[0].attn.num_heads) * HEAD_WIDTH != vit.embed_dim:
        found.append(f"{heads} attention heads for {vit.embed_dim} channels instead of one for {HEAD_WIDTH}")
    if vit.patch_embed.img_size != (IMAGE_SIZE, IMAGE_SIZE):
        size = "x".join(map(str, vit.patch_embed.img_size))
        found.append(f"position embeddings for images of {size} pixels instead of {IMAGE_SIZE}x{IMAGE_SIZE}")
    levels = list(model.encoder.plan.options["out_indices"])
    if levels != (right := LEVELS.get(len(vit.blocks), levels)):
        found.append(f"levels after the blocks {levels} instead of {right}")
    if config.correlation_head:
        found.append("a correlation head, which save_pretrained(..., inference_only=True) leaves out")
    return found


def is_unused(name: str) -> bool:
    """Whether our network does not depend on this weight of the authors' layout."""
    return name.startswith(UNUSED)


def unused_weights(model: CorrMatchForSegmentation) -> dict[str, torch.Tensor]:
    """Weights of the authors' layout that our network does not have, as zeros."""
    token, unit = UNUSED
    channels, zeros = model.config.decoder_channels, model.decoder.smooth.weight.new_zeros
    return {token: zeros(1, model.encoder.channels[-1])} | {
        f"{unit}conv{i}.{name}": zeros(shape)
        for i in (1, 2)
        for name, shape in (("weight", (channels, channels, 3, 3)), ("bias", (channels,)))
    }


def interpolate_positions(positions: torch.Tensor, image_size: int) -> torch.Tensor:
    """Position embeddings (1, 1 + n * n, D) for square images of this side, interpolated as in UniMatch V2.

    Embeddings of any other shape are returned unchanged: the check of all shapes reports them.

    The interpolation is bicubic, over a grid whose sides are a tenth of a patch longer, which shifts the samples a
    little. timm interpolates for other image sizes at run time, without this shift and with another kernel.
    """
    target = image_size // PATCH
    side = math.isqrt(positions.shape[1] - 1) if positions.ndim == 3 and positions.shape[1] > 1 else 0
    if side == target or positions.shape != (1, 1 + side**2, positions.shape[-1]):
        return positions
    grid = positions[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = (target + 0.1) / side
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions[:, :1], grid.flatten(2).mT.to(positions.dtype)], dim=1)
