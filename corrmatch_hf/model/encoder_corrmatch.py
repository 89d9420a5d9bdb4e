"""Any timm encoder as the feature maps that a decoder wants: two of a pyramid, or four levels of a plain
transformer."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .decoders_corrmatch import brought_to
from .encoder_plan_corrmatch import SQUARES, build, build_on_meta, own_size, plan_encoder, takes


class CorrMatchEncoder(nn.Module):
    """Features of a timm model, always NCHW: at stride 4 and at the output stride, or of blocks of a plain transformer.

    Args:
        encoder_name: timm name, with or without a pretrained tag. The weights are timm's random ones.
        output_stride: stride of the last level. Of encoders with a pyramid 8, 16 or 32: below the encoder's own its
            last stages are dilated instead of strided, which most convolutional encoders can and most hierarchical
            transformers cannot. Of a plain transformer the side of its patches. None: 16 where it can, else its own.
        encoder_kwargs: further arguments for `timm.create_model`.
        out_indices: of a plain transformer, the blocks whose outputs are the levels; None: four evenly over its depth.

    Attributes:
        channels: of each level.
        output_stride: in use.
        in_channels: channels of the image.
        plan: how timm builds the encoder, and what images it takes. For an encoder with a pyramid, images of other
            sizes are padded at the right and bottom, and the features cut back to what shows the image. For a plain
            transformer they are resized to the nearest number of whole patches, or to the only size that it takes (as
            BEiT does), bilinear with aligned corners.

    Raises:
        ValueError: unknown name; impossible stride or indices; arguments that timm does not take.
    """

    def __init__(
        self,
        encoder_name: str,
        output_stride: int | None = None,
        encoder_kwargs: dict | None = None,
        out_indices: Sequence[int] | None = None,
    ):
        super().__init__()
        self.encoder_name = encoder_name
        self.plan = plan_encoder(encoder_name, output_stride, encoder_kwargs or {}, out_indices)
        self.output_stride = self.plan.strides[-1]
        self.body = build(self.plan.options)
        self.channels = self.body.channels if self.plan.plain else self.body.feature_info.channels()
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

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """pixel_values (N,C,H,W) -> levels (N,channels[i],~H/strides[i],~W/strides[i]), the last at the output stride.

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

    def _features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        height, width = pixel_values.shape[-2:]
        size = self.taken_size(height, width)
        if self.plan.plain:
            return self.body(brought_to(pixel_values, size))
        if self.plan.size_multiple > 1:
            pixel_values = F.pad(pixel_values, (0, size[1] - width, 0, size[0] - height))
        levels = self.body(pixel_values)
        if self.channels_last:
            levels = [level.permute(0, 3, 1, 2) for level in levels]
        if self.plan.size_multiple > 1:
            levels = [
                level[..., : -(-height // stride), : -(-width // stride)]
                for level, stride in zip(levels, self.plan.strides, strict=True)
            ]
        return levels

    def taken_size(self, height: int, width: int) -> tuple[int, int]:
        """The size that an image is brought to for the encoder."""
        multiple = self.plan.size_multiple
        if self.plan.only_size is not None:
            return self.plan.only_size
        if self.plan.plain:  # the nearest, as UniMatch V2 evaluates
            return tuple(max((side + multiple // 2) // multiple, 1) * multiple for side in (height, width))
        return height + -height % multiple, width + -width % multiple

    def _explain_size(self, height: int, width: int, error: Exception) -> None:
        """Raise a ValueError where the image size is what made the encoder fail."""
        encoder = build_on_meta(self.plan.options)
        if takes(encoder, self.in_channels, *self.taken_size(height, width)):
            return
        own = own_size(self.plan.options, encoder)
        sizes = sorted({*((side, side) for side in SQUARES), own})
        smallest = next((size for size in sizes if takes(encoder, self.in_channels, *size)), own)
        taken = (
            f"the smallest square that it takes has a side of {smallest[0]}"
            if smallest[0] == smallest[1]
            else f"its own size is {smallest[0]}x{smallest[1]}"
        )
        raise ValueError(
            f"Encoder {self.encoder_name!r} cannot take an image of {height}x{width} pixels; {taken}. Pad or resize "
            "the image, give its size in encoder_kwargs ({'img_size': ...}) where the encoder has one, or use another "
            "encoder."
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
