"""Any timm model as the encoder of a segmentation network, and its pretrained weights.

A pyramid encoder gives two feature maps, at stride 4 and at the output stride; a plain vision transformer gives the
outputs of several blocks.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.models import load_state_dict
from torch import nn
from transformers.utils.versions import require_version

from .configuration_corrmatch import SAFE_TIMM
from .decoders_corrmatch import resize_if_needed
from .encoder_plan_corrmatch import accepts, build, build_on_meta, own_size, plan_encoder

SQUARES = (32, 64, 96, 128, 224, 256, 384, 512)  # image sizes to suggest in an error message
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
SMALL_IN_MEMORY = 2**30  # bytes that the contents of any file may take in memory, however small the file is


class CorrMatchEncoder(nn.Module):
    """Features of a timm model, always NCHW: at stride 4 and at the output stride, or of blocks of a plain transformer.

    Args:
        encoder_name: timm name, with or without a pretrained tag. The weights are initialised by timm, not pretrained.
        output_stride: stride of the last level. For pyramid encoders 8, 16 or 32: below the encoder's own stride its
            last stages are dilated instead of strided, which most convolutional encoders support and most hierarchical
            transformers do not. For plain transformers the patch size. None: 16 where possible, else the encoder's own.
        encoder_kwargs: further arguments for `timm.create_model`.
        out_indices: for plain transformers, the blocks whose outputs are the levels; None: four evenly over its depth.

    Attributes:
        channels: of each level.
        output_stride: in use.
        in_channels: channels of the image.
        plan: how timm builds the encoder, and which image sizes it accepts. For pyramid encoders, images of other sizes
            are padded at the right and bottom and the features are cropped to the image. For plain transformers they
            are resized to the nearest whole number of patches, or to the only size that the encoder accepts (BEiT),
            bilinear with aligned corners.

    Raises:
        ImportError: timm is too old.
        ValueError: unknown name; impossible stride or indices; arguments that timm does not accept.
    """

    def __init__(
        self,
        encoder_name: str,
        output_stride: int | None = None,
        encoder_kwargs: dict | None = None,
        out_indices: Sequence[int] | None = None,
    ):
        super().__init__()
        require_version(
            SAFE_TIMM,
            f"Older releases load some encoders with wrong weights. Run: pip install -U '{SAFE_TIMM}'",
        )
        self.encoder_name = encoder_name
        self.plan = plan_encoder(encoder_name, output_stride, encoder_kwargs or {}, out_indices)
        self.output_stride = self.plan.strides[-1]
        self.body = build(self.plan.options)
        self.channels = self.body.channels if self.plan.plain else self.body.feature_info.channels()
        self.in_channels = self.plan.options.get("in_chans", 3)
        self.channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        self.freeze_unused()
        # PreTrainedModel.post_init would overwrite timm's initialisation, except in tensors with this mark.
        # On the meta device there is nothing to keep: from_pretrained fills those tensors and must see them as empty.
        for tensor in (*self.body.parameters(), *self.body.buffers()):
            if tensor.device.type != "meta":
                tensor._is_hf_initialized = True

    def freeze_unused(self) -> None:
        """Exclude parameters that the features do not depend on from training.

        Data-parallel training fails for parameters that never get a gradient.
        """
        for name, parameter in self.body.named_parameters():
            if name in self.plan.unused:
                parameter.requires_grad_(False)

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """pixel_values (N,C,H,W) -> levels (N,channels[i],~H/strides[i],~W/strides[i]), the last at the output stride.

        Raises:
            ValueError: the image is too small for the encoder, or not of the only size that it accepts.
        """
        if torch.compiler.is_compiling():  # a graph cannot contain error handling
            return self._features(pixel_values)
        try:
            return self._features(pixel_values)
        except (AssertionError, RuntimeError) as error:
            height, width = pixel_values.shape[-2:]
            self._explain_size(height, width, error)
            raise

    def _features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        height, width = pixel_values.shape[-2:]
        size = self.input_size(height, width)
        if self.plan.plain:
            return self.body(resize_if_needed(pixel_values, size))
        if self.plan.size_multiple > 1:
            pixel_values = F.pad(pixel_values, (0, size[1] - width, 0, size[0] - height))
        levels = self.body(pixel_values)
        if self.channels_last:
            levels = [level.permute(0, 3, 1, 2) for level in levels]  # (N,h,w,C) -> (N,C,h,w)
        if self.plan.size_multiple > 1:
            levels = [
                level[..., : -(-height // stride), : -(-width // stride)]
                for level, stride in zip(levels, self.plan.strides, strict=True)
            ]
        return levels

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image is padded or resized to before it enters the encoder."""
        multiple = self.plan.size_multiple
        if self.plan.only_size is not None:
            return self.plan.only_size
        if self.plan.plain:  # the nearest, as UniMatch V2 evaluates
            rows, columns = (max((side + multiple // 2) // multiple, 1) for side in (height, width))
            return rows * multiple, columns * multiple
        return height + -height % multiple, width + -width % multiple

    def _explain_size(self, height: int, width: int, error: Exception) -> None:
        """Raise a ValueError if the encoder failed because of the image size."""
        encoder = build_on_meta(self.plan.options)
        if accepts(encoder, self.in_channels, *self.input_size(height, width)):
            return
        own = own_size(self.plan.options, encoder)
        sizes = sorted({*((side, side) for side in SQUARES), own})
        smallest = next((size for size in sizes if accepts(encoder, self.in_channels, *size)), own)
        accepted = (
            f"the smallest square that it accepts has a side of {smallest[0]}"
            if smallest[0] == smallest[1]
            else f"its own size is {smallest[0]}x{smallest[1]}"
        )
        raise ValueError(
            f"Encoder {self.encoder_name!r} does not accept an image of {height}x{width} pixels; {accepted}. Pad or "
            "resize the image, set encoder_kwargs={'img_size': ...} where the encoder supports it, or use another "
            "encoder."
        ) from error

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether the encoder can recompute its activations in the backward pass."""
        try:
            self._set_grad_checkpointing(True)
            self._set_grad_checkpointing(False)
        except (AttributeError, AssertionError):
            return False
        return True

    def _set_grad_checkpointing(self, enable: bool) -> None:
        wrapped = getattr(self.body, "model", None)  # some of timm's feature extractors delegate to the model
        owner = self.body if hasattr(self.body, "set_grad_checkpointing") else wrapped
        owner.set_grad_checkpointing(enable)  # type: ignore[union-attr]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the encoder's activations in the backward pass instead of keeping them.

        Raises:
            ValueError: the encoder does not support it.
        """
        try:
            self._set_grad_checkpointing(enable)
        except (AttributeError, AssertionError) as error:
            if enable:
                raise ValueError(
                    f"Encoder {self.encoder_name!r} does not support gradient checkpointing."
                ) from error


# -------------------------------------------------------------------------------------------- pretrained weights


def pretrained_encoder_weights(options: dict, weights: str | Path | None = None) -> dict[str, torch.Tensor]:
    """The complete state dict, with pretrained weights, of the timm encoder that `options` describe.

    timm renames and reshapes the weights in files (nested modules, other image sizes, older layouts), so they are
    loaded by timm itself.

    Args:
        options: arguments of `timm.create_model`.
        weights: a .safetensors, .pth, .pt or .bin file with the weights of the whole timm model, whose classifier is
            ignored; `None` downloads the weights of the model's pretrained tag from the Hub.

    Raises:
        ValueError: no such weights; a file that cannot be read safely; weights missing or of another shape.
    """
    name = options["model_name"]
    if weights is None:
        return _download_weights(options)
    state = _read_weights(Path(weights))
    loaded = _load(options, state, weights)
    # timm does not report which weights it did not find. So the same file is loaded with all values NaN: what is not
    # NaN afterwards is missing from the file. (Integers are counters and tables that the model computes.)
    probe = _load(options, {k: torch.full_like(v, torch.nan) for k, v in state.items()}, weights)
    missing = [key for key, value in probe.items() if value.is_floating_point() and not value.isnan().all()]
    if missing:
        shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise ValueError(
            f"{weights} lacks weights of encoder {name!r}: {shown}. Is it a checkpoint of that model?"
        )
    return loaded


def weights_origin(name: str, weights: str | Path | None = None) -> str | None:
    """Where these weights come from: timm's Hub id, such as "timm/resnet50.a1_in1k", or the name of the file."""
    if weights is not None:
        return Path(weights).name
    pretrained = timm.get_pretrained_cfg(name)
    return pretrained.hf_hub_id if pretrained is not None else None


def _download_weights(options: dict) -> dict[str, torch.Tensor]:
    name = options["model_name"]
    try:
        return build(options, pretrained=True).state_dict()
    except RuntimeError as error:
        known = ", ".join(timm.list_pretrained(name.split(".")[0] + ".*")) or "none"
        raise ValueError(f"timm has no pretrained weights for {name!r} (it has: {known}): {error}") from error
    except OSError as error:  # no connection and nothing in the cache, no such repository, a wrong token
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"The pretrained weights of encoder {name!r} could not be downloaded from the Hub: {reason}. Try again "
            "with a connection, give a file of weights instead, or start from random ones."
        ) from error


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The floating-point tensors of a checkpoint file; never runs code from it."""
    if path.suffix not in WEIGHT_SUFFIXES:
        raise ValueError(f"Encoder weights must be a {', '.join(WEIGHT_SUFFIXES)} file, not {path}.")
    if not path.is_file():
        raise ValueError(f"There is no file {path} with encoder weights.")
    if oversize := find_oversize(path):
        raise ValueError(f"{path} is rejected: {oversize}.")
    try:
        state = load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # a corrupt or malicious file can raise anything
        raise ValueError(
            f"{path} cannot be read as plain weights ({type(error).__name__}): it is corrupt, or contains more than "
            "tensors. If you trust it, save its state dict as .safetensors."
        ) from error
    state = {k: v for k, v in state.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    if not state:
        raise ValueError(f"{path} contains no weights.")
    if oversize := find_oversize(path, state.values()):
        raise ValueError(f"{path} is rejected: {oversize}.")
    return state


def find_oversize(path: Path, tensors: Iterable[torch.Tensor] = ()) -> str | None:
    """Why a weights file would take far more memory than its size; `None` if it would not.

    torch reads compressed archives, although it never writes them: a megabyte can expand to gigabytes of zeros. A
    tensor can repeat one number a million times, or be sparse.
    """
    size = path.stat().st_size
    allowed = max(2 * size, SMALL_IN_MEMORY)  # twice, for weights that a model uses in two places
    unpacked = 0
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(each.file_size for each in archive.infolist())
        except Exception:  # zipfile raises many kinds of errors
            return "its archive is corrupt"
    unpacked = max(unpacked, sum(each.numel() * each.element_size() for each in tensors if not each.is_meta))
    return f"its {size:,} bytes would take {unpacked:,} bytes of memory" if unpacked > allowed else None


def _load(options: dict, state: dict[str, torch.Tensor], weights: str | Path) -> dict[str, torch.Tensor]:
    """The encoder's state dict after timm has loaded `state`."""
    # num_classes: a published model with another number of classes than the encoder, which has none, makes timm drop
    # the file's classifier. Most self-supervised models are published with none, where timm would fail on a classifier.
    overlay = {"state_dict": state, "custom_load": False, "num_classes": 1}
    try:
        encoder = build(options, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # timm's renaming may meet names that it does not expect
        reason = " ".join(str(error).split())  # torch lists wrong shapes on separate lines
        raise ValueError(f"{weights} does not fit encoder {options['model_name']!r}: {reason}") from error
    return encoder.state_dict()
