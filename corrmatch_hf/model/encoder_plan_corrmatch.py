"""Finding out how a timm model is to be built as an encoder, and what images it takes.

timm tells little of this without building the model, and its thousand models reject what they cannot do in
many ways. So everything is tried on the meta device, where tensors have shapes and no contents: trying costs
neither memory nor random numbers.
"""

import difflib
import functools
import json
import math
import threading
from typing import NamedTuple

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import FeatureListNet
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

OUTPUT_STRIDES = (8, 16, 32)
LOW_LEVEL_STRIDE = 4
SUGGESTIONS = "'resnet50', 'convnext_tiny', 'efficientnet_b0', 'swin_tiny_patch4_window7_224' or 'pvt_v2_b2'"
SQUARES = (32, 64, 96, 128, 224, 256, 384, 512)  # image sizes to name in a message
REJECTIONS = (
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

    options: arguments of `timm.create_model`; its features are those of low and high level, in this order.
    low_stride: image pixels per pixel of the low-level features.
    size_multiple: heights and widths of images must be multiples of this.
    unused: names of parameters that neither feature map depends on.
    """

    options: dict
    low_stride: int
    size_multiple: int
    unused: frozenset[str]


def plan_encoder(name: str, output_stride: int, kwargs: dict) -> EncoderPlan:
    """The plan of an encoder with high-level features at `output_stride`.

    Raises:
        ValueError: unknown name; no pyramid of features (plain vision transformers); impossible stride;
            arguments that timm does not take.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"use for example {SUGGESTIONS}."
        raise ValueError(f"timm has no model named {name!r}: {hint}")
    return _plan(name, output_stride, json.dumps(kwargs, sort_keys=True))


@functools.lru_cache(maxsize=64)
def _plan(name: str, output_stride: int, kwargs: str) -> EncoderPlan:
    options = {"model_name": name, "features_only": True, **json.loads(kwargs)}
    options, strides = _at_stride(options, output_stride)
    distance = [abs(math.log2(stride / LOW_LEVEL_STRIDE)) for stride in strides]
    low = distance.index(min(distance))
    # Only the two levels in use, so that timm leaves out what the others alone need.
    options["out_indices"] = (low, len(strides) - 1)
    encoder = build_on_meta(options)

    own = options.get("img_size") or encoder.pretrained_cfg.get("input_size") or 224
    own = own if isinstance(own, int) else own[-1]
    in_channels = options.get("in_chans", 3)
    # The least of 1, 32 and the encoder's own image size of which it takes every multiple. HRNet, for one,
    # wants multiples of 32, MaxViT of 224. Where it takes its own size only, it will say so when it sees
    # another.
    trials = ((1, 129, 193), (32, 128, 192), (own, own, 2 * own))
    multiple = next((m for m, height, width in trials if takes(encoder, in_channels, height, width)), 1)
    unused = frozenset()
    if not isinstance(encoder, FeatureListNet) and takes(encoder, in_channels, own, own):
        # HRNet computes more than is asked for. (A FeatureListNet holds nothing that it does not use.)
        with torch.enable_grad():
            features = encoder(torch.empty(1, in_channels, own, own, device="meta"))
            sum(each.sum() for each in features).backward()
        unused = frozenset(key for key, parameter in encoder.named_parameters() if parameter.grad is None)
    return EncoderPlan(options, strides[low], multiple, unused)


def _at_stride(options: dict, output_stride: int) -> tuple[dict, list[int]]:
    """The options with those added that give `output_stride`, and the strides of all features they give."""
    name = options["model_name"]
    try:
        # Where it exists (Swin): attention masks for the image at hand instead of for one size.
        any_size = {"strict_img_size": False, **options}
        strides = _strides(any_size)
        options = any_size
    except REJECTIONS:
        try:
            strides = _strides(options)
        except REJECTIONS as error:
            given = {key: options[key] for key in options.keys() - {"model_name", "features_only"}}
            raise ValueError(
                f"timm cannot build {name!r} as an encoder with arguments {given}: {error}"
            ) from error
    if len(set(strides)) == 1:
        raise ValueError(
            f"Encoder {name!r} has features of one stride only ({strides[0]}): plain ViT encoders are not "
            f"supported yet. Use one with a pyramid of features, such as {SUGGESTIONS}."
        )
    if strides[-1] == output_stride:
        return options, strides

    own = strides[-1]
    possible = {own} & set(OUTPUT_STRIDES)
    for stride in (output_stride, *OUTPUT_STRIDES):
        dilated = {**options, "output_stride": stride}
        try:
            strides = _strides(dilated)
        except REJECTIONS:
            continue
        if strides[-1] == output_stride:
            return dilated, strides
        possible |= {strides[-1]} & {stride}
    can = f"it can have {' and '.join(map(str, sorted(possible)))}." if possible else f"its own is {own}."
    raise ValueError(f"Encoder {name!r} cannot have output_stride {output_stride}: {can}")


def _strides(options: dict) -> list[int]:
    return build_on_meta(options).feature_info.reduction()


def build(options: dict) -> nn.Module:
    """The timm encoder that these options make, with random weights."""
    encoder = timm.create_model(**options, pretrained=False)
    for module in encoder.modules():
        if isinstance(module, PatchEmbed):
            module.dynamic_img_pad = True  # pads the image's last, incomplete patches
    return encoder


def build_on_meta(options: dict) -> nn.Module:
    """The same without contents, in eval mode.

    Raises:
        ValueError: it has more than `MAX_MODULES` parts. Without contents these cost no memory to speak of, but hours.
    """
    count, thread = 0, threading.get_ident()

    def count_modules(*_):
        nonlocal count
        count += threading.get_ident() == thread
        if count > MAX_MODULES:
            raise ValueError(f"it would have more than {MAX_MODULES} layers")

    with register_module_module_registration_hook(count_modules), torch.device("meta"):
        return build(options).eval()


def takes(encoder: nn.Module, in_channels: int, height: int, width: int) -> bool:
    """Whether an encoder on the meta device can process images of this size."""
    try:
        with torch.no_grad():
            encoder(torch.empty(1, in_channels, height, width, device="meta"))
    except REJECTIONS:
        return False
    return True
