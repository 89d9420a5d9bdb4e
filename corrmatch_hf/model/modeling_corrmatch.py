"""The CorrMatch segmentation network: a decoder on a timm encoder, and the correlation head that trains it.

Inference runs encoder and decoder only; the correlation head runs for a loss or on request.
"""

import contextlib
import copy
import pickle
import re
import traceback
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

from .configuration_corrmatch import CorrMatchConfig
from .correlation_corrmatch import CorrelationHead, pixel_propagation
from .decoders_corrmatch import CorrMatchFeatures, DecoderOutput, build_decoder, resize, resize_if_needed
from .encoder_corrmatch import CorrMatchEncoder, pretrained_encoder_weights, weights_origin

MAX_MISSING_NUMBERS = 2**28  # 1 GiB: larger than any decoder with a correlation head


@dataclass
class CorrMatchOutput(SemanticSegmenterOutput):
    """Output of [`CorrMatchForSegmentation`].

    Args:
        loss: scalar, if labels were given.
        logits: (N,K,H,W), at the size of the image.
        correlation_logits: (N,K,H,W) float32, the logits after pixel propagation; with labels or on request.
        query, key: (N,D,h,w), whose products are the correlation maps; with labels or on request.
        hidden_states: the encoder's levels, (N,C_i,h_i,w_i) each; with `output_hidden_states`.
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
    supports_gradient_checkpointing = False  # decided for each encoder, in `post_init`
    # timm's feature extractors call methods of their parts that are not `forward`, which is what Accelerate hooks into.
    _no_split_modules = ["CorrMatchEncoder"]  # noqa: RUF012  (transformers reads it from the class)

    if not hasattr(PreTrainedModel, "activation_checkpointing_enable"):  # transformers before 5.23
        activation_checkpointing_enable = PreTrainedModel.gradient_checkpointing_enable
        activation_checkpointing_disable = PreTrainedModel.gradient_checkpointing_disable
        is_activation_checkpointing = PreTrainedModel.is_gradient_checkpointing

    def post_init(self):
        self.supports_gradient_checkpointing = self.encoder.supports_gradient_checkpointing
        super().post_init()

    def get_input_embeddings(self):
        """None: an image has no table of embeddings."""

    @torch.no_grad()
    def _init_weights(self, module):
        if getattr(module, "keeps_torch_initialisation", False):
            module.reset_parameters()  # transformers patches torch.nn.init to skip tensors that were loaded
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)
        # Tables that timm computes and does not save. from_pretrained leaves them as uninitialised memory.
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

    def _set_gradient_checkpointing(self, enable=True, gradient_checkpointing_func=None, every_n_layers=1):
        self.encoder.set_grad_checkpointing(enable)
        self.encoder.gradient_checkpointing = enable  # read by transformers

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        output_loading_info=False,
        ignore_mismatched_sizes=False,
        **kwargs,
    ):
        """As [`PreTrainedModel.from_pretrained`], safe for untrusted files.

        An incomplete encoder is an error, not a warning, unless `output_loading_info` asks for what is missing. Only
        .safetensors files are read, unless `use_safetensors=False` selects pytorch_model.bin; that file, too, is read
        as plain tensors, and no code in it runs.

        Raises:
            ImportError: timm is too old.
            ValueError: weights that are corrupt or do not fit the configuration; an incomplete encoder; an invalid
                configuration.
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
                    f"{name} has its weights in pytorch_model.bin, a format that can contain code, and not in "
                    "model.safetensors: save them as the latter, or pass use_safetensors=False if you trust the file."
                ) from error
            raise
        except Exception as error:  # a corrupt or malicious file can raise anything
            if _is_of_a_file(error):
                raise ValueError(_explain_unreadable(name, error)) from error
            raise
        mismatched = {key: shapes for key, *shapes in info["mismatched_keys"]}
        wrong = [key for key in {*info["missing_keys"], *mismatched} if key.startswith("encoder.")]
        if wrong and not output_loading_info:
            raise ValueError(
                f"{name} lacks weights of encoder {model.config.encoder_name!r}, or has them in another shape: "
                f"{_first(sorted(wrong))}."
            )
        if mismatched and not ignore_mismatched_sizes:
            shown = (
                f"{key} {tuple(found)} instead of {tuple(expected)}"
                for key, (found, expected) in sorted(mismatched.items())
            )
            raise ValueError(
                f"The weights of {name} do not fit its configuration: {_first(shown)}. To initialise these weights "
                "anew, for other classes say, pass ignore_mismatched_sizes=True."
            )
        model.encoder.freeze_unused()  # loading made all parameters trainable
        _align(model)
        return (model, info) if output_loading_info else model

    def _move_missing_keys_from_meta_to_device(self, missing_keys, *args, **kwargs):
        # transformers allocates here what the weights file lacks. The amount depends on the configuration, which may be
        # malicious, so it is limited.
        buffers = [buffer for _, buffer in self.named_non_persistent_buffers()]
        numbers = sum(each.numel() for each in (*map(self.get_parameter_or_buffer, missing_keys), *buffers))
        if numbers > MAX_MISSING_NUMBERS:
            raise ValueError(
                f"The configuration needs {numbers:,} numbers that the weights file does not contain, such as "
                f"{_first(sorted(missing_keys), 3) or 'tables of the encoder'}: it belongs to another model."
            )
        return super()._move_missing_keys_from_meta_to_device(missing_keys, *args, **kwargs)


def _align(model: nn.Module) -> None:
    """Copies weights that start inside of a 64-byte block, as those of a mapped file do.

    The kernels of a CPU add in another order there, so that a loaded model would differ from the saved one in the last
    bits.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


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
        ImportError: timm is too old.
        ValueError: the encoder does not exist, or cannot be combined with the output stride or the decoder.
    """

    def __init__(self, config: CorrMatchConfig):
        super().__init__(config)
        self.encoder = CorrMatchEncoder(
            config.encoder_name, config.output_stride, config.encoder_kwargs, config.out_indices
        )
        config.output_stride = self.encoder.output_stride  # replaces None
        self.decoder = build_decoder(config, self.encoder.channels, self.encoder.plan.plain)
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

    @classmethod
    def from_encoder_pretrained(cls, config: CorrMatchConfig, weights: str | Path | None = None):
        """A new model with a pretrained encoder; nothing else loads pretrained encoder weights.

        Args:
            config: configuration of the model.
            weights: a .safetensors, .pth, .pt or .bin file of the whole timm model (its classifier is ignored); `None`
                downloads the weights of the encoder's pretrained tag from the Hub.

        Raises:
            ValueError: weights that do not exist, cannot be read safely, are incomplete or have another shape.
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
        """As [`PreTrainedModel.save_pretrained`], optionally without the parts that only training needs.

        Args:
            save_directory: folder to write to.
            inference_only: leave out the correlation head and set `correlation_head: false` in the saved config. The
                logits are the same and the files smaller, but the saved model has no propagated logits or correlation
                maps. This model itself does not change.
            is_main_process, state_dict, args, kwargs: as in transformers; `push_to_hub=True` pushes what was saved.
        """
        arguments = (save_directory, is_main_process)
        if not inference_only or self.correlation is None:
            result = super().save_pretrained(*arguments, state_dict, *args, **kwargs)
            _share_weights(Path(save_directory))
            return result
        whole = self.config
        slim = {
            k: v for k, v in (state_dict or self.state_dict()).items() if not k.startswith("correlation.")
        }
        self.config = copy.deepcopy(whole)
        self.config.correlation_head = False
        try:
            result = super().save_pretrained(*arguments, slim, *args, **kwargs)
        finally:
            self.config = whole
        _share_weights(Path(save_directory))
        return result

    def encode(self, pixel_values: torch.Tensor) -> CorrMatchFeatures:
        """pixel_values (N,C,H,W) float, normalised -> the encoder's levels."""
        return CorrMatchFeatures(self.encoder(pixel_values))

    def decode(self, features: CorrMatchFeatures) -> DecoderOutput:
        """Features -> ASPP output (DeepLabV3+ only), fused features and logits at the decoder's resolution."""
        return self.decoder(features)

    def correlate(
        self, features: CorrMatchFeatures, decoded: DecoderOutput, channel_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Query and key (N,D,h,w) of the features at `config.correlation_position`, at the output stride.

        channel_mask: (N,correlation_channels) factors instead of the head's random channel dropout.

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

        Plain transformers see an image resized to whole patches: the tensor is resized to that size first and then to
        `size`, as UniMatch V2 evaluates.
        """
        if self.encoder.plan.plain:
            return resize_if_needed(resize(tensor, self.encoder.input_size(*size)), size)
        return resize(tensor, size)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        labels: torch.LongTensor | None = None,
        output_correlation: bool = False,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> CorrMatchOutput:
        """Segment images, and compute the loss if labels are given.

        Args:
            pixel_values: (N,C,H,W) float, normalised; any height and width that the encoder accepts.
            labels: (N,H,W) integers, class ids or `config.ignore_index`. The loss is the cross-entropy of the
                logits or, with a correlation head, its mean with that of the propagated logits (the paper's
                L_s); 0 if every pixel is ignored.
            output_correlation: return query, key and propagated logits without labels, too.
            output_hidden_states: return the encoder's levels; None: as the configuration says.

        Raises:
            ValueError: inputs of other shapes; `output_correlation` without a correlation head.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.encoder.in_channels:
            raise ValueError(
                f"pixel_values must be (batch, {self.encoder.in_channels}, height, width), "
                f"not {tuple(pixel_values.shape)}; prepare images with CorrMatchImageProcessor."
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

        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return CorrMatchOutput(
            loss=loss,
            logits=logits,
            hidden_states=tuple(features) if output_hidden_states else None,
            correlation_logits=correlation_logits,
            query=query,
            key=key,
        )

    def _cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over the labelled pixels, 0 if there are none."""
        total = F.cross_entropy(
            logits.float(), labels.long(), ignore_index=self.config.ignore_index, reduction="sum"
        )
        return total / (labels != self.config.ignore_index).sum().clamp_min(1)


def _is_of_a_file(error: Exception) -> bool:
    """Whether it was raised while weights were read, rather than by what the caller asked for."""
    modules = {frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)}
    # This file must not import safetensors.
    return type(error).__name__ == "SafetensorError" or "torch.serialization" in modules


def _explain_unreadable(name: str | Path, error: Exception) -> str:
    """The message for model files that raised neither an OSError nor a ValueError."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL (\S+)", str(error))
        return f"The weights pytorch_model.bin of {name} are rejected and no code in them was run: they " + (
            f"would run {found[1]} when loaded." if found else "are corrupt, or contain more than tensors."
        )
    if type(error).__name__ == "SafetensorError":
        return (
            f"The weights model.safetensors of {name} are corrupt, incomplete or in another format ({reason}); "
            "download or copy them again."
        )
    return f"{name} cannot be loaded: its configuration or weights are corrupt ({type(error).__name__}: {reason})."


def _first(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _share_weights(folder: Path) -> None:
    """Give the weights, which safetensors makes private, the permissions of config.json beside them."""
    config = folder / "config.json"
    for file in folder.glob("model*.safetensors") if config.is_file() else ():
        if file.stat().st_mode & 0o777 == 0o600:
            with contextlib.suppress(OSError):  # some disks have no permissions
                file.chmod(config.stat().st_mode & 0o777)
