"""How to build a timm model as an encoder, and which image sizes it accepts.

timm reports little of this before a model is built, and its thousand models reject what they cannot do in many ways. So
candidates are built and run on the meta device, where tensors have shapes but no contents: trying costs neither memory
nor random numbers.
"""

import difflib
import functools
import json
import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import FeatureInfo, FeatureListNet
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

OUTPUT_STRIDES = (8, 16, 32)
DEFAULT_OUTPUT_STRIDE = 16
LOW_LEVEL_STRIDE = 4
PLAIN_LEVELS = 4  # levels of a plain transformer, evenly over its depth
SUGGESTIONS = "'resnet50', 'convnext_tiny', 'efficientnet_b0', 'swin_tiny_patch4_window7_224' or 'pvt_v2_b2'"
REJECTIONS = (  # what timm's models raise for arguments or image sizes that they cannot handle
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    RuntimeError,
    LookupError,
    ArithmeticError,
    ImportError,
)
MAX_MODULES = 10_000  # timm's largest models have 2,000; a number in encoder_kwargs could ask for millions


class EncoderPlan(NamedTuple):
    """How to build and use an encoder.

    options: arguments of `build`; its features are the levels in use, the finest or earliest first.
    strides: image pixels per feature pixel, for each level.
    size_multiple: image heights and widths must be multiples of this.
    unused: names of parameters that no level depends on.
    plain: whether all levels have the same stride, as in plain vision transformers.
    only_size: (height, width), where a plain transformer accepts images of one size only.
    """

    options: dict
    strides: tuple[int, ...]
    size_multiple: int
    unused: frozenset[str]
    plain: bool
    only_size: tuple[int, int] | None = None


def plan_encoder(
    name: str, output_stride: int | None, kwargs: dict, out_indices: Sequence[int] | None = None
) -> EncoderPlan:
    """The plan of an encoder whose last level has `output_stride`.

    A pyramid encoder has two levels, near stride 4 and at the output stride. A plain transformer has the outputs of the
    blocks `out_indices`, by default four evenly over its depth, each through the final norm.

    Raises:
        ValueError: unknown name; impossible stride or indices; arguments that timm does not accept.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"use for example {SUGGESTIONS}."
        raise ValueError(f"timm has no model named {name!r}: {hint}")
    indices = None if out_indices is None else tuple(out_indices)
    return _plan(name, output_stride, json.dumps(kwargs, sort_keys=True), indices)


@functools.lru_cache(maxsize=64)
def _plan(name: str, output_stride: int | None, kwargs: str, indices: tuple[int, ...] | None) -> EncoderPlan:
    """`plan_encoder` with hashable arguments: `kwargs` is JSON."""
    options, info = _all_features({"model_name": name, "features_only": True, **json.loads(kwargs)})
    strides = info.reduction()
    if len(set(strides)) == 1:
        return _plan_plain(name, output_stride, json.loads(kwargs), indices, strides[0], depth=len(info.info))
    if indices is not None:
        raise ValueError(
            f"out_indices select blocks of a plain transformer, but encoder {name!r} has a pyramid of features: leave "
            "them out."
        )
    return _plan_pyramid(options, strides, output_stride)


# ---------------------------------------------------------------------------------------- pyramids of features


def _all_features(options: dict) -> tuple[dict, FeatureInfo]:
    """Options for images of any size where possible, and timm's description of all features of the encoder."""
    try:
        # Swin: attention masks for the image at hand instead of for one size.
        any_size = {"strict_img_size": False, **options}
        return any_size, build_on_meta(any_size).feature_info
    except REJECTIONS:
        return options, _build_checked(options).feature_info


def _plan_pyramid(options: dict, strides: list[int], output_stride: int | None) -> EncoderPlan:
    options, strides = _at_stride(options, strides, output_stride)
    distance = [abs(math.log2(stride / LOW_LEVEL_STRIDE)) for stride in strides]
    low = distance.index(min(distance))
    # Only the two levels in use, so that timm leaves out what only the others need.
    options["out_indices"] = (low, len(strides) - 1)
    encoder = _build_checked(options)

    own = own_size(options, encoder)[-1]
    in_channels = options.get("in_chans", 3)
    # The smallest of 1, 32 and the encoder's own size that works: HRNet needs multiples of 32, MaxViT of 224. An
    # encoder that accepts its own size only raises an error when it gets another.
    trials = ((1, 129, 193), (32, 128, 192), (own, own, 2 * own))
    multiple = next((m for m, height, width in trials if accepts(encoder, in_channels, height, width)), 1)
    unused = frozenset()
    if not isinstance(encoder, FeatureListNet) and accepts(encoder, in_channels, own, own):
        # HRNet computes more than these levels. (A FeatureListNet keeps only what it uses.)
        unused, _ = _find_unused(encoder, in_channels, own, own)
    return EncoderPlan(options, (strides[low], strides[-1]), multiple, unused, plain=False)


def _at_stride(options: dict, strides: list[int], output_stride: int | None) -> tuple[dict, list[int]]:
    """Options that give `output_stride`, and the resulting strides of all features.

    None: the default stride where the encoder supports it, else its own.
    """
    if output_stride is None:
        try:
            return _at_stride(options, strides, DEFAULT_OUTPUT_STRIDE)
        except ValueError:
            return options, strides
    if strides[-1] == output_stride:
        return options, strides

    name, own = options["model_name"], strides[-1]
    possible = {own} & set(OUTPUT_STRIDES)
    for stride in (output_stride, *OUTPUT_STRIDES):
        dilated = {**options, "output_stride": stride}
        try:
            strides = build_on_meta(dilated).feature_info.reduction()
        except REJECTIONS:
            continue
        if strides[-1] == output_stride:
            return dilated, strides
        possible |= {strides[-1]} & {stride}
    can = f"it can have {' and '.join(map(str, sorted(possible)))}." if possible else f"its own is {own}."
    raise ValueError(f"Encoder {name!r} cannot have output_stride {output_stride}: {can}")


# ------------------------------------------------------------------------------------------ plain transformers


def _plan_plain(
    name: str,
    output_stride: int | None,
    kwargs: dict,
    indices: tuple[int, ...] | None,
    patch: int,
    depth: int,
) -> EncoderPlan:
    """The plan of a plain transformer of `depth` blocks and patches of `patch` pixels."""
    if output_stride not in (None, patch):
        raise ValueError(
            f"Encoder {name!r} cannot have output_stride {output_stride}: the stride of a plain transformer is its "
            f"patch size. Set output_stride to {patch}, or leave it out."
        )
    if indices is None:
        indices = tuple(
            dict.fromkeys(max((i + 1) * depth // PLAIN_LEVELS - 1, 0) for i in range(PLAIN_LEVELS))
        )
    elif not indices or list(indices) != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < depth:
        raise ValueError(
            f"out_indices must be increasing block numbers of encoder {name!r}, 0 to {depth - 1}, not {list(indices)}."
        )
    options = {"model_name": name, "num_classes": 0, **kwargs, "out_indices": indices}
    try:
        # Any number of patches where possible; timm interpolates the position embeddings.
        any_size = {"dynamic_img_size": True, **options}
        encoder, options = _build_checked(any_size), any_size
    except ValueError:
        encoder = _build_checked(options)
    height, width = own = own_size(options, encoder)
    any_grid = accepts(encoder, options.get("in_chans", 3), height + patch, width + patch)
    unused = _check_plain(encoder, options, patch)
    only_size = None if any_grid else own
    return EncoderPlan(options, (patch,) * len(indices), patch, unused, plain=True, only_size=only_size)


def _check_plain(encoder: nn.Module, options: dict, patch: int) -> frozenset[str]:
    """Names of the unused parameters, after a run at the encoder's own size.

    Raises:
        ValueError: the levels do not have the shapes that timm reports.
    """
    height, width = own_size(options, encoder)
    try:
        unused, features = _find_unused(encoder, options.get("in_chans", 3), height, width)
    except REJECTIONS as error:
        raise ValueError(
            f"Encoder {options['model_name']!r} cannot be used: timm cannot extract its features at its own size of "
            f"{height}x{width} pixels ({' '.join(str(error).split())[:200]})."
        ) from error
    grid = (height // patch, width // patch)
    if [level.shape[1:] for level in features] != [(channels, *grid) for channels in encoder.channels]:
        raise ValueError(
            f"Encoder {options['model_name']!r} cannot be used: its features are not a grid of {patch}-pixel patches."
        )
    return unused


class TransformerLevels(nn.Module):
    """Outputs of the blocks `indices` of a timm transformer, each through its final norm, without class and register
    tokens: (N,3,H,W) -> [(N,D,H/patch,W/patch), ...]

    Later blocks are removed.

    Attributes:
        channels: of each level.
    """

    def __init__(self, model: nn.Module, indices: Sequence[int]):
        super().__init__()
        self.indices = list(indices)
        if isinstance(getattr(model, "norm", None), nn.Identity) and hasattr(model, "fc_norm"):
            # Models that average their tokens apply the final norm after that; it would be removed with the head.
            model.norm, model.fc_norm = model.fc_norm, nn.Identity()
        model.prune_intermediate_layers(self.indices, prune_norm=False, prune_head=True)
        self.model = model
        self.pretrained_cfg = model.pretrained_cfg
        levels = [model.feature_info[i] for i in self.indices]
        # SAM's final norm contains convolutions that change the number of channels.
        self.channels = [level.get("num_chs_norm", level["num_chs"]) for level in levels]

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        # Accelerate fetches offloaded weights when their module's `forward` is called. timm calls other methods, and
        # reads weights of modules that it does not call.
        offloaded = [] if torch.compiler.is_compiling() else _offloaded(self.model)
        for module in offloaded:
            module._hf_hook.pre_forward(module)
        try:
            return self.model.forward_intermediates(
                pixel_values, indices=self.indices, norm=True, output_fmt="NCHW", intermediates_only=True
            )
        finally:
            for module in offloaded:
                module._hf_hook.post_forward(module, None)


def _offloaded(model: nn.Module) -> list[nn.Module]:
    """The parts whose weights Accelerate keeps elsewhere."""
    return [
        module
        for module in model.modules()
        if hasattr(module, "_hf_hook")
        and any(
            tensor.is_meta
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        )
    ]


# --------------------------------------------------------------------------------------- building and trying


def build(options: dict, pretrained: bool = False, **pretrained_options) -> nn.Module:
    """The timm encoder with these options: a pyramid of features, or levels of a plain transformer."""
    if "features_only" not in options:
        model = timm.create_model(
            **{key: value for key, value in options.items() if key != "out_indices"},
            pretrained=pretrained,
            **pretrained_options,
        )
        # timm's own features_only wrapper omits the final norm.
        return TransformerLevels(model, options["out_indices"])
    encoder = timm.create_model(**options, pretrained=pretrained, **pretrained_options)
    for module in encoder.modules():
        if isinstance(module, PatchEmbed):
            module.dynamic_img_pad = True  # pads the image's last, incomplete patches
    return encoder


def build_on_meta(options: dict) -> nn.Module:
    """`build` without contents, in eval mode.

    Raises:
        ValueError: more than `MAX_MODULES` modules, which would take hours to build even without contents.
    """
    count, thread = 0, threading.get_ident()

    def count_modules(*_):
        nonlocal count
        count += threading.get_ident() == thread
        if count > MAX_MODULES:
            raise ValueError(f"it would have more than {MAX_MODULES} layers")

    with register_module_module_registration_hook(count_modules), torch.device("meta"):
        return build(options).eval()


def _build_checked(options: dict) -> nn.Module:
    """`build_on_meta`.

    Raises:
        ValueError: timm cannot build the encoder, or its weights could not be saved.
    """
    name = options["model_name"]
    try:
        encoder = build_on_meta(options)
    except REJECTIONS as error:
        given = {key: options[key] for key in options.keys() - {"model_name", "features_only", "out_indices"}}
        reason = " ".join(str(error).split())
        raise ValueError(
            f"timm cannot build {name!r} as an encoder with arguments {given}: {reason}"
        ) from error
    if len(list(encoder.named_parameters(remove_duplicate=False))) > len(list(encoder.parameters())):
        raise ValueError(
            f"Encoder {name!r} cannot be used: some of its layers share their weights, which could not be saved. Use "
            f"for example {SUGGESTIONS}."
        )
    return encoder


def own_size(options: dict, encoder: nn.Module) -> tuple[int, int]:
    """(height, width) of the images that an encoder was designed for."""
    own = options.get("img_size") or encoder.pretrained_cfg.get("input_size") or 224
    return (own, own) if isinstance(own, int) else tuple(own[-2:])


def accepts(encoder: nn.Module, in_channels: int, height: int, width: int) -> bool:
    """Whether an encoder on the meta device can process images of this size."""

    def reject_empty(_module, _inputs, output):
        if output.numel() == 0:
            raise RuntimeError("The kernel of a convolution is larger than its input.")

    # On the meta device, torch 2.8 accepts such kernels.
    convolutions = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_hook(reject_empty) for module in convolutions]
    try:
        with torch.no_grad():
            encoder(torch.empty(1, in_channels, height, width, device="meta"))
    except REJECTIONS:
        return False
    finally:
        for hook in hooks:
            hook.remove()
    return True


def _find_unused(
    encoder: nn.Module, in_channels: int, height: int, width: int
) -> tuple[frozenset[str], list[torch.Tensor]]:
    """Names of the parameters that the features do not depend on, and the features."""
    with torch.enable_grad():
        features = encoder(torch.empty(1, in_channels, height, width, device="meta"))
        sum(each.sum() for each in features).backward()
    return frozenset(key for key, parameter in encoder.named_parameters() if parameter.grad is None), features
