"""Any timm encoder with a pyramid of features, as the two feature maps that DeepLabV3+ wants."""

import difflib
import math

import timm
import torch
from timm.layers import PatchEmbed
from torch import nn

OUTPUT_STRIDES = (8, 16, 32)
LOW_LEVEL_STRIDE = 4
SUGGESTIONS = "'resnet50', 'convnext_tiny', 'efficientnet_b0', 'swin_tiny_patch4_window7_224' or 'pvt_v2_b2'"


class CorrMatchEncoder(nn.Module):
    """Features of a timm model at stride 4 and at the output stride, always NCHW.

    Args:
        encoder_name: timm name, with or without a pretrained tag. The weights are timm's random ones.
        output_stride: 8, 16 or 32: stride of the high-level features. Below the encoder's own stride its last stages
            are dilated instead of strided, which most convolutional encoders can and most transformers cannot.
        encoder_kwargs: further arguments for `timm.create_model`.

    Attributes:
        low_channels, high_channels: channels of the two feature maps.
        output_stride: as given.
        in_channels: channels of the image.
        build_options: arguments of `timm.create_model` that made the encoder.

    Raises:
        ValueError: unknown name; no pyramid of features (plain vision transformers); output stride not possible.
    """

    def __init__(self, encoder_name: str, output_stride: int = 16, encoder_kwargs: dict | None = None):
        super().__init__()
        self.encoder_name = encoder_name
        self.output_stride = output_stride
        self.build_options, reductions = _plan(encoder_name, output_stride, dict(encoder_kwargs or {}))

        distance = [abs(math.log2(r / LOW_LEVEL_STRIDE)) for r in reductions]
        low = distance.index(min(distance))
        # Nothing but these two levels, so that timm leaves out what only the others need.
        self.build_options["out_indices"] = (low, len(reductions) - 1)
        self.body = timm.create_model(**self.build_options, pretrained=False)
        for module in self.body.modules():
            if isinstance(module, PatchEmbed):
                module.dynamic_img_pad = True  # any image size: pads the image's last, incomplete patches

        self.low_channels, self.high_channels = self.body.feature_info.channels()
        self.in_channels = self.build_options.get("in_chans", 3)
        self.channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        # PreTrainedModel.post_init would overwrite timm's own initialisation; tensors with this mark are left alone.
        # On the meta device there is nothing to keep: from_pretrained fills those and must see them as empty.
        for tensor in (*self.body.parameters(), *self.body.buffers()):
            if tensor.device.type != "meta":
                tensor._is_hf_initialized = True

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixel_values (N,C,H,W) -> low (N,low_channels,~H/4,~W/4), high (N,high_channels,~H/stride,~W/stride).

        Raises:
            ValueError: the image is too small for the encoder, or not of the one size that it takes.
        """
        if torch.compiler.is_compiling():  # a graph can hold no error handling
            low, high = self.body(pixel_values)
        else:
            try:
                low, high = self.body(pixel_values)
            except torch.OutOfMemoryError:
                raise
            except (AssertionError, RuntimeError) as error:
                self._explain_size(pixel_values, error)
                raise
        if self.channels_last:
            low, high = low.permute(0, 3, 1, 2), high.permute(0, 3, 1, 2)
        return low, high

    def _explain_size(self, pixel_values: torch.Tensor, error: Exception) -> None:
        """Raise a ValueError where the image size is likely the cause."""
        height, width = pixel_values.shape[-2:]
        if min(height, width) < 64:
            raise ValueError(
                f"An image of {height}x{width} pixels is too small for encoder {self.encoder_name!r}; "
                f"pad or enlarge it to at least 64x64. ({error})"
            ) from error
        if isinstance(error, AssertionError) or self.has_fixed_size:
            raise ValueError(
                f"Encoder {self.encoder_name!r} cannot take an image of {height}x{width} pixels: {error} "
                "Give its size in encoder_kwargs, such as {'img_size': [height, width]}, or use an encoder that takes "
                f"any size: {SUGGESTIONS}."
            ) from error

    @property
    def has_fixed_size(self) -> bool:
        """Whether timm says that this encoder was made for one image size."""
        return bool((getattr(self.body, "pretrained_cfg", None) or {}).get("fixed_input_size", False))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the encoder's activations in the backward pass instead of keeping them.

        Raises:
            ValueError: the encoder has no such mode.
        """
        owner = self.body if hasattr(self.body, "set_grad_checkpointing") else getattr(self.body, "model", None)
        try:
            owner.set_grad_checkpointing(enable)
        except (AttributeError, AssertionError) as error:
            if enable:
                raise ValueError(f"Encoder {self.encoder_name!r} has no gradient checkpointing.") from error


def _plan(name: str, output_stride: int, kwargs: dict) -> tuple[dict, list[int]]:
    """The arguments of create_model for this encoder, and the strides of the features it then has."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"use for example {SUGGESTIONS}."
        raise ValueError(f"timm has no model named {name!r}: {hint}")

    options = {"model_name": name, "features_only": True, **kwargs}
    if "strict_img_size" not in kwargs and _strides({**options, "strict_img_size": False}):
        options["strict_img_size"] = False  # Swin: attention masks for the image at hand, not for one size
    reductions = _strides(options, report=True)
    if len(set(reductions)) == 1:
        raise ValueError(
            f"Encoder {name!r} has features of one stride only ({reductions[0]}): plain ViT encoders are not "
            f"supported yet. Use one with a pyramid of features, such as {SUGGESTIONS}."
        )
    if reductions[-1] == output_stride:
        return options, reductions
    dilated = {**options, "output_stride": output_stride}
    reductions = _strides(dilated)
    if reductions and reductions[-1] == output_stride:
        return dilated, reductions
    possible = [s for s in OUTPUT_STRIDES if (_strides({**options, "output_stride": s}) or [0])[-1] == s]
    own = _strides(options)[-1]
    possible = sorted({*possible, own} & set(OUTPUT_STRIDES))
    can = f"it can do {' and '.join(map(str, possible))}." if possible else f"its own is {own}; use another encoder."
    raise ValueError(f"Encoder {name!r} cannot have output_stride {output_stride}: {can}")


def _strides(options: dict, report: bool = False) -> list[int] | None:
    """Strides of all features of the model that these arguments make; None (or an error, to report) if they do not.

    Built on the meta device, so that trying costs neither memory nor random numbers.
    """
    try:
        with torch.device("meta"):
            return timm.create_model(**options, pretrained=False).feature_info.reduction()
    except (TypeError, AssertionError, RuntimeError, AttributeError, ValueError) as error:
        # timm rejects an option by whichever of these its model happens to raise
        if report:
            raise ValueError(
                f"timm cannot build {options['model_name']!r} as a feature encoder "
                f"(encoder_kwargs: {({k: v for k, v in options.items() if k not in ('model_name', 'features_only')})}): "
                f"{type(error).__name__}: {error}"
            ) from error
        return None
