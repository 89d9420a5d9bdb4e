"""The CorrMatch segmentation network: a decoder on a timm encoder, and the correlation head that trains it.

Inference runs encoder and decoder only; the correlation head is computed for a loss or on request.
"""

import copy
import pickle
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils.generic import can_return_tuple

from .configuration_corrmatch import ATROUS_RATES, DPT_LEVELS, CorrMatchConfig
from .correlation_corrmatch import CorrelationHead, pixel_propagation
from .decoders_corrmatch import (
    DecoderOutput,
    DeepLabV3PlusDecoder,
    DPTDecoder,
    LinearDecoder,
    brought_to,
    resize,
)
from .encoder_corrmatch import CorrMatchEncoder, pretrained_encoder_weights, weights_origin

MAX_MISSING_NUMBERS = 2**28  # a GiB: no decoder and correlation head are larger than this


class CorrMatchFeatures(tuple):
    """The levels that the encoder gives: low (N,C,~H/4,~W/4) and high (N,C,h,w) of a pyramid, or those of a plain
    transformer, all (N,C,h,w)."""

    def __new__(cls, *levels: torch.Tensor):
        return super().__new__(cls, levels)

    def __getnewargs__(self):  # for copies
        return tuple(self)

    @property
    def high(self) -> torch.Tensor:
        """The last level, (N,C,h,w) at the output stride."""
        return self[-1]


@dataclass
class CorrMatchOutput(SemanticSegmenterOutput):
    """Output of [`CorrMatchForSegmentation`].

    Args:
        loss: scalar, where labels were given.
        logits: (N,K,H,W), at the size of the image.
        correlation_logits: (N,K,H,W) float32, the logits after pixel propagation; with labels or on request.
        query, key: (N,D,h,w), from which correlation maps are made; with labels or on request.
    """

    correlation_logits: torch.FloatTensor | None = None
    query: torch.FloatTensor | None = None
    key: torch.FloatTensor | None = None


class CorrMatchPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and gradient checkpointing."""

    config: CorrMatchConfig
    base_model_prefix = "corrmatch"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = []  # noqa: RUF012  (transformers reads it from the class)

    @torch.no_grad()
    def _init_weights(self, module):
        if getattr(module, "keeps_torch_initialisation", False):
            module.reset_parameters()  # transformers has taught torch's functions to leave alone what was loaded
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)
        # Tables that timm computes and does not save; from_pretrained leaves them as uninitialised memory.
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

    def _set_gradient_checkpointing(self, enable=True, gradient_checkpointing_func=None, every_n_layers=1):
        self.encoder.set_grad_checkpointing(enable)
        self.encoder.gradient_checkpointing = enable  # where transformers looks for it

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        output_loading_info=False,
        ignore_mismatched_sizes=False,
        **kwargs,
    ):
        """As [`PreTrainedModel.from_pretrained`], for files that nobody vouches for.

        An incomplete encoder is an error, not a warning. Weights are read from .safetensors files alone, unless
        `use_safetensors=False` asks for pytorch_model.bin; even then as plain tensors, and no code of the file runs.

        Raises:
            ValueError: weights that cannot be read as such, or that do not fit the configuration; an encoder that is
                not complete; a configuration with values that cannot be.
            OSError: no such folder, repository or file.
        """
        name = pretrained_model_name_or_path
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True
        try:
            model, info = super().from_pretrained(
                name, *model_args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except OSError as error:
            if kwargs["use_safetensors"] and Path(str(name), "pytorch_model.bin").is_file():
                raise ValueError(
                    f"{name} holds its weights as pytorch_model.bin, a format that can carry programs, and no "
                    "model.safetensors: save them in that one, or pass use_safetensors=False where you trust the file."
                ) from error
            raise
        except (ValueError, ImportError):
            raise
        except Exception as error:  # a broken or hostile file can raise anything
            raise ValueError(_unreadable(name, error)) from error
        mismatched = {key: shapes for key, *shapes in info["mismatched_keys"]}
        wrong = [key for key in {*info["missing_keys"], *mismatched} if key.startswith("encoder.")]
        if wrong:
            raise ValueError(
                f"{name} lacks weights of encoder {model.config.encoder_name!r}, or has them in another shape: "
                f"{_some(sorted(wrong))}."
            )
        if mismatched and not ignore_mismatched_sizes:
            shown = (
                f"{key} {tuple(found)} instead of {tuple(expected)}"
                for key, (found, expected) in sorted(mismatched.items())
            )
            raise ValueError(
                f"The weights of {name} do not fit its configuration: {_some(shown)}. To start these anew, as for "
                "other classes, pass ignore_mismatched_sizes=True."
            )
        model.encoder.freeze_unused()  # loading made all parameters trainable
        return (model, info) if output_loading_info else model

    def _move_missing_keys_from_meta_to_device(self, missing_keys, *args, **kwargs):
        # Where transformers takes memory for what a file of weights lacks. What the configuration asks for is not
        # bounded by the size of that file, so it is bounded here.
        buffers = [buffer for _, buffer in self.named_non_persistent_buffers()]
        numbers = sum(each.numel() for each in (*map(self.get_parameter_or_buffer, missing_keys), *buffers))
        if numbers > MAX_MISSING_NUMBERS:
            raise ValueError(
                f"The configuration asks for {numbers:,} numbers that the weights do not hold, such as "
                f"{_some(sorted(missing_keys), 3) or 'tables of the encoder'}: it belongs to another model."
            )
        return super()._move_missing_keys_from_meta_to_device(missing_keys, *args, **kwargs)


class CorrMatchForSegmentation(CorrMatchPreTrainedModel):
    """A timm encoder, a decoder (DeepLabV3+, DPT, linear) and a correlation head, for semantic segmentation.

    ```python
    >>> import torch
    >>> from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation

    >>> model = CorrMatchForSegmentation(CorrMatchConfig(encoder_name="resnet18", num_labels=5)).eval()
    >>> model(torch.randn(1, 3, 65, 97)).logits.shape
    torch.Size([1, 5, 65, 97])
    ```

    Raises:
        ValueError: the configuration's encoder does not exist, cannot have its output stride, or does not go with its
            decoder.
    """

    def __init__(self, config: CorrMatchConfig):
        super().__init__(config)
        self.encoder = CorrMatchEncoder(
            config.encoder_name, config.output_stride, config.encoder_kwargs, config.out_indices
        )
        config.output_stride = self.encoder.output_stride  # what None meant
        self.decoder = self._make_decoder()
        self.correlation = None
        if config.correlation_head:
            channels = {
                "encoder": self.encoder.channels[-1],
                "aspp": config.aspp_channels,
                "fusion": self.decoder.fused_channels,
                "classifier": config.num_labels,
            }
            self.correlation = CorrelationHead(
                in_channels=channels[config.correlation_position],
                channels=config.correlation_channels,
                dim=config.correlation_dim or config.num_labels,
                dropout=config.correlation_dropout,
            )
        self.post_init()

    def _make_decoder(self) -> DeepLabV3PlusDecoder | DPTDecoder | LinearDecoder:
        config, channels, plain = self.config, self.encoder.channels, self.encoder.plan.plain
        if config.decoder == "linear":
            return LinearDecoder(channels, config.num_labels)
        if config.decoder == "dpt":
            if not plain:
                raise ValueError(
                    f"Decoder 'dpt' needs a plain transformer, and encoder {config.encoder_name!r} has a pyramid of "
                    "features: take decoder 'deeplabv3plus' or 'linear', or an encoder such as "
                    "'vit_small_patch14_dinov2'."
                )
            if len(channels) != DPT_LEVELS:
                raise ValueError(
                    f"Decoder 'dpt' needs {DPT_LEVELS} levels, and encoder {config.encoder_name!r} gives "
                    f"{len(channels)}: take decoder 'linear', or an encoder of at least {DPT_LEVELS} blocks."
                )
            width = channels[-1]
            pyramid = config.pyramid_channels or [width // 8, width // 4, width // 2, width]
            return DPTDecoder(channels, config.num_labels, config.decoder_channels, pyramid)
        if plain:
            raise ValueError(
                f"Decoder 'deeplabv3plus' needs a pyramid of features, and encoder {config.encoder_name!r} is a plain "
                "transformer: take decoder 'dpt' or 'linear', or an encoder such as 'resnet50'."
            )
        if self.encoder.output_stride not in ATROUS_RATES:
            raise ValueError(
                f"Decoder 'deeplabv3plus' needs output stride 8, 16 or 32, and that of encoder {config.encoder_name!r} "
                f"is {self.encoder.output_stride}: take decoder 'linear', or an encoder such as 'resnet50'."
            )
        return DeepLabV3PlusDecoder(
            low_channels=channels[0],
            high_channels=channels[-1],
            num_labels=config.num_labels,
            atrous_rates=config.aspp_rates,
            aspp_channels=config.aspp_channels,
            low_level_channels=config.low_level_channels,
            channels=config.decoder_channels,
        )

    @classmethod
    def from_encoder_pretrained(cls, config: CorrMatchConfig, weights: str | Path | None = None):
        """A new model whose encoder has pretrained weights; the only place that loads such.

        Args:
            config: of the model.
            weights: a .safetensors, .pth, .pt or .bin file of the whole timm model (its classifier is
                ignored); `None` downloads the weights of the encoder's pretrained tag through the Hub.

        Raises:
            ValueError: weights that do not exist, cannot be read safely, lack something or have another
                shape.
        """
        model = cls(config)
        model.encoder.body.load_state_dict(pretrained_encoder_weights(model.encoder.plan.options, weights))
        model.config.encoder_origin = weights_origin(config.encoder_name, weights)
        return model

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        *args,
        inference_only: bool = False,
        **kwargs,
    ):
        """As [`PreTrainedModel.save_pretrained`], with or without what only training needs.

        Args:
            save_directory: folder to write to.
            inference_only: leave the correlation head out and say so in the saved config
                (`correlation_head: false`). The logits are the same, the files smaller; propagated logits
                and correlation maps cannot be had from them. The model itself stays as it is.
            is_main_process, state_dict, args, kwargs: as in transformers; with `push_to_hub=True` what is pushed is
                what was saved.
        """
        arguments = (save_directory, is_main_process)
        if not inference_only or self.correlation is None:
            return super().save_pretrained(*arguments, state_dict, *args, **kwargs)
        whole = self.config
        slim = {
            k: v for k, v in (state_dict or self.state_dict()).items() if not k.startswith("correlation.")
        }
        self.config = copy.deepcopy(whole)
        self.config.correlation_head = False
        try:
            return super().save_pretrained(*arguments, slim, *args, **kwargs)
        finally:
            self.config = whole

    def encode(self, pixel_values: torch.Tensor) -> CorrMatchFeatures:
        """pixel_values (N,C,H,W) float, normalised -> features."""
        return CorrMatchFeatures(*self.encoder(pixel_values))

    def decode(self, features: CorrMatchFeatures) -> DecoderOutput:
        """Features -> ASPP output (of DeepLabV3+), fused features and logits at the decoder's resolution."""
        return self.decoder(features)

    def correlate(
        self, features: CorrMatchFeatures, decoded: DecoderOutput, channel_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Query and key (N,D,h,w) of the features at `config.correlation_position`, at the output stride.

        channel_mask: (N,correlation_channels) factors in place of the head's random channel dropout.

        Raises:
            ValueError: the network has no correlation head.
        """
        if self.correlation is None:
            raise ValueError("This network has no correlation head; build it with correlation_head=True.")
        grid = features.high.shape[-2:]
        match self.config.correlation_position:
            case "encoder":
                seen = features.high
            case "aspp":
                seen = decoded.aspp
            case "fusion":
                seen = resize(decoded.fused, grid)
            case "classifier":
                seen = resize(decoded.logits, grid)
        return self.correlation(seen, channel_mask)

    def upsample(self, tensor: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """tensor (N,C,h,w) -> (N,C,*size), bilinear with aligned corners.

        For an image that was resized to whole patches by way of that size, as UniMatch V2 evaluates.
        """
        if self.encoder.plan.plain:
            # Nothing lies between where the image had that size already.
            taken = self.encoder.taken_size(*size)
            return brought_to(resize(tensor, taken), size)
        return resize(tensor, size)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        labels: torch.LongTensor | None = None,
        output_correlation: bool = False,
        **kwargs,
    ) -> CorrMatchOutput:
        """Segment images, and score the result where labels are given.

        Args:
            pixel_values: (N,C,H,W) float, normalised; any height and width that the encoder takes.
            labels: (N,H,W) integers, class ids or `config.ignore_index`. The loss is the cross-entropy of the
                logits or, with a correlation head, its mean with that of the propagated logits (the paper's
                L_s); 0 if every pixel is ignored.
            output_correlation: return query, key and propagated logits even without labels.

        Raises:
            ValueError: inputs of other shapes; correlation asked of a network without a correlation head.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.encoder.in_channels:
            raise ValueError(
                f"pixel_values must be (batch, {self.encoder.in_channels}, height, width), "
                f"not {tuple(pixel_values.shape)}; CorrMatchImageProcessor makes them so."
            )
        size = pixel_values.shape[-2:]
        if labels is not None and labels.shape != (len(pixel_values), *size):
            raise ValueError(
                f"labels must be (batch, height, width) like the images, {(len(pixel_values), *size)}, "
                f"not {tuple(labels.shape)}."
            )
        if output_correlation and self.correlation is None:
            raise ValueError("output_correlation needs a network built with correlation_head=True.")

        features = self.encode(pixel_values)
        decoded = self.decode(features)
        logits = self.upsample(decoded.logits, size)

        query = key = correlation_logits = None
        if self.correlation is not None and (output_correlation or labels is not None):
            query, key = self.correlate(features, decoded)
            source = resize(logits.detach(), query.shape[-2:])
            propagated = pixel_propagation(query, key, source, self.config.correlation_scale)
            correlation_logits = self.upsample(propagated, size)

        loss = None
        if labels is not None:
            loss = self._cross_entropy(logits, labels)
            if correlation_logits is not None:
                loss = (loss + self._cross_entropy(correlation_logits, labels)) / 2

        return CorrMatchOutput(
            loss=loss, logits=logits, correlation_logits=correlation_logits, query=query, key=key
        )

    def _cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over the labelled pixels, 0 if there are none."""
        total = F.cross_entropy(
            logits.float(), labels.long(), ignore_index=self.config.ignore_index, reduction="sum"
        )
        return total / (labels != self.config.ignore_index).sum().clamp_min(1)


def _unreadable(name: str | Path, error: Exception) -> str:
    """What to say of a model whose files made reading fail with neither an OSError nor a ValueError."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL (\S+)", str(error))
        return f"The weights pytorch_model.bin of {name} are refused, and nothing of them was run: they " + (
            f"would run {found[1]} when loaded." if found else "are damaged, or hold more than tensors."
        )
    if type(error).__name__ == "SafetensorError":  # of a package that code beside weights cannot name
        return (
            f"The weights model.safetensors of {name} are damaged, cut off or something else ({reason}); "
            "load or copy them again."
        )
    return f"{name} cannot be loaded, for its configuration or weights are damaged: {type(error).__name__}, {reason}."


def _some(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
