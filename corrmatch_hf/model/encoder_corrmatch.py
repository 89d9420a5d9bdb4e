"""Any timm encoder as the feature maps that a decoder wants: two of a pyramid, or four levels of a plain
transformer.
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


# -------------------- Levels of a plain vision transformer: outputs of some of its blocks, as pictures.


# -------------------- Pretrained weights for an encoder: timm's own from the Hub, or a file; complete, or an error that says what
# is not.


SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
MODERATE = 2**30  # bytes that any file may take in memory, however small it is


def pretrained_encoder_weights(options: dict, weights: str | Path | None = None) -> dict[str, torch.Tensor]:
    """The state dict of the timm feature encoder that `options` make, with pretrained weights.

    timm renames and reshapes what files hold (nested modules, other image sizes, older layouts), so the
    weights go through its own loading.

    Args:
        options: arguments of `timm.create_model`.
        weights: a .safetensors, .pth, .pt or .bin file with the weights of the whole timm model, whose
            classifier is ignored; `None` downloads those of the model's pretrained tag through the Hub.

    Raises:
        ValueError: no such weights; a file that cannot be read safely; weights missing or of another shape.
    """
    name = options["model_name"]
    if weights is None:
        try:
            return build(options, pretrained=True).state_dict()
        except RuntimeError as error:
            known = ", ".join(timm.list_pretrained(name.split(".")[0] + ".*")) or "none"
            raise ValueError(
                f"timm has no pretrained weights for {name!r} (it has: {known}): {error}"
            ) from error
        except OSError as error:  # no network and nothing in the cache, no such repository, a wrong token
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(
                f"The pretrained weights of encoder {name!r} could not be had from the Hub: {reason}. Try again with a "
                "connection, name a file of weights instead, or start from random ones."
            ) from error

    state = _read(Path(weights))
    loaded = _load(options, state, weights)
    # timm does not say which weights it did not find. The same file full of NaN does: what is not NaN after
    # loading is not in the file. (Integers are counters and tables that the model makes itself.)
    probe = _load(options, {k: torch.full_like(v, torch.nan) for k, v in state.items()}, weights)
    missing = [key for key, value in probe.items() if value.is_floating_point() and not value.isnan().all()]
    if missing:
        shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise ValueError(
            f"{weights} lacks weights of encoder {name!r}: {shown}. Is it a checkpoint of that model?"
        )
    return loaded


def weights_origin(name: str, weights: str | Path | None = None) -> str | None:
    """Where such weights come from: the Hub id of timm's, as "timm/resnet50.a1_in1k", or the name of the file."""
    if weights is not None:
        return Path(weights).name
    pretrained = timm.get_pretrained_cfg(name)
    return pretrained.hf_hub_id if pretrained is not None else None


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The floating-point tensors of a checkpoint file; never runs code from it."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"Encoder weights must be a {', '.join(SUFFIXES)} file, not {path}.")
    if not path.is_file():
        raise ValueError(f"There is no file {path} with encoder weights.")
    if inflated := inflation(path):
        raise ValueError(f"{path} is refused, for {inflated}.")
    try:
        state = load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile file can raise anything
        raise ValueError(
            f"{path} cannot be read as plain weights ({type(error).__name__}): it is damaged, or holds more "
            "than tensors. Save its state dict as .safetensors where you trust it."
        ) from error
    state = {k: v for k, v in state.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    if not state:
        raise ValueError(f"{path} holds no weights.")
    if inflated := inflation(path, state.values()):
        raise ValueError(f"{path} is refused, for {inflated}.")
    return state


def inflation(path: Path, tensors: Iterable[torch.Tensor] = ()) -> str | None:
    """What of a file of weights would take much more memory than it has bytes; `None` where nothing would.

    An archive can be compressed, which torch reads and never writes: gigabytes of zeros in a megabyte. A tensor can be
    one number a million times, or sparse.
    """
    size = path.stat().st_size
    allowed = max(2 * size, MODERATE)  # twice, for weights that a model uses in two places
    unpacked = 0
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(each.file_size for each in archive.infolist())
        except Exception:  # zipfile raises many kinds
            return "its archive is damaged"
    unpacked = max(unpacked, sum(each.numel() * each.element_size() for each in tensors if not each.is_meta))
    return f"its {size:,} bytes stand for {unpacked:,} in memory" if unpacked > allowed else None


def _load(options: dict, state: dict[str, torch.Tensor], weights: str | Path) -> dict[str, torch.Tensor]:
    """Pass a state dict through timm's loading."""
    # Where the model was published with another number of classes than the encoder's none, timm drops a classifier that
    # the file may have; where with none, as most self-supervised ones, it would stumble over one.
    overlay = {"state_dict": state, "custom_load": False, "num_classes": 1}
    try:
        encoder = build(options, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # timm's renaming meets names it does not expect
        reason = " ".join(str(error).split())  # torch lists wrong shapes on lines of their own
        raise ValueError(f"{weights} does not fit encoder {options['model_name']!r}: {reason}") from error
    return encoder.state_dict()
