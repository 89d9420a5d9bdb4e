"""Any timm encoder with a pyramid of features, as the two feature maps that DeepLabV3+ wants."""

import torch
import torch.nn.functional as F
from torch import nn

from .encoder_plan_corrmatch import SQUARES, build, build_on_meta, plan_encoder, takes


class CorrMatchEncoder(nn.Module):
    """Features of a timm model at stride 4 and at the output stride, always NCHW.

    Args:
        encoder_name: timm name, with or without a pretrained tag. The weights are timm's random ones.
        output_stride: 8, 16 or 32: stride of the high-level features. Below the encoder's own stride its last
            stages are dilated instead of strided, which most convolutional encoders can and most transformers
            cannot.
        encoder_kwargs: further arguments for `timm.create_model`.

    Attributes:
        low_channels, high_channels: channels of the two feature maps.
        output_stride: as given.
        in_channels: channels of the image.
        plan: how timm builds the encoder, and what images it takes. Images of other sizes are padded at the
            right and bottom, and the features cut back to what shows the image.

    Raises:
        ValueError: unknown name; no pyramid of features (plain vision transformers); impossible stride;
            arguments that timm does not take.
    """

    def __init__(self, encoder_name: str, output_stride: int = 16, encoder_kwargs: dict | None = None):
        super().__init__()
        self.encoder_name = encoder_name
        self.output_stride = output_stride
        self.plan = plan_encoder(encoder_name, output_stride, encoder_kwargs or {})
        self.body = build(self.plan.options)
        self.low_channels, self.high_channels = self.body.feature_info.channels()
        self.in_channels = self.plan.options.get("in_chans", 3)
        self.channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        self.freeze_unused()
        # PreTrainedModel.post_init would overwrite timm's initialisation, but leaves marked tensors alone.
        # On the meta device there is nothing to keep: from_pretrained fills those and must see them as empty.
        for tensor in (*self.body.parameters(), *self.body.buffers()):
            if tensor.device.type != "meta":
                tensor._is_hf_initialized = True

    def freeze_unused(self) -> None:
        """Take parameters that the features do not depend on out of training.

        Data-parallel training fails on parameters that never get a gradient.
        """
        for name, parameter in self.body.named_parameters():
            if name in self.plan.unused:
                parameter.requires_grad_(False)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixel_values (N,C,H,W) -> low (N,low_channels,~H/4,~W/4), high (N,high_channels,h,w) at the stride.

        Raises:
            ValueError: the image is too small for the encoder, or not of the one size that it takes.
        """
        if torch.compiler.is_compiling():  # a graph can hold no error handling
            return self._features(pixel_values)
        try:
            return self._features(pixel_values)
        except (AssertionError, RuntimeError) as error:
            self._explain_size(*pixel_values.shape[-2:], error)
            raise

    def _features(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = pixel_values.shape[-2:]
        multiple = self.plan.size_multiple
        if multiple > 1:
            pixel_values = F.pad(pixel_values, (0, -width % multiple, 0, -height % multiple))
        low, high = self.body(pixel_values)
        if self.channels_last:
            low, high = low.permute(0, 3, 1, 2), high.permute(0, 3, 1, 2)
        if multiple > 1:
            low, high = (
                features[..., : -(-height // stride), : -(-width // stride)]
                for features, stride in ((low, self.plan.low_stride), (high, self.output_stride))
            )
        return low, high

    def _explain_size(self, height: int, width: int, error: Exception) -> None:
        """Raise a ValueError where the image size is what made the encoder fail."""
        encoder, multiple = build_on_meta(self.plan.options), self.plan.size_multiple
        if takes(encoder, self.in_channels, height + -height % multiple, width + -width % multiple):
            return
        smallest = next((side for side in SQUARES if takes(encoder, self.in_channels, side, side)), "unknown")
        raise ValueError(
            f"Encoder {self.encoder_name!r} cannot take an image of {height}x{width} pixels; the smallest "
            f"square that it takes has a side of {smallest}. Pad or resize the image, give its size in "
            "encoder_kwargs ({'img_size': ...}) where the encoder has one, or use another encoder."
        ) from error

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the encoder's activations in the backward pass instead of keeping them.

        Raises:
            ValueError: the encoder has no such mode.
        """
        wrapped = getattr(self.body, "model", None)  # some of timm's feature extractors leave it to the model
        owner = self.body if hasattr(self.body, "set_grad_checkpointing") else wrapped
        try:
            owner.set_grad_checkpointing(enable)
        except (AttributeError, AssertionError) as error:
            if enable:
                raise ValueError(f"Encoder {self.encoder_name!r} has no gradient checkpointing.") from error
