"""The configuration of a CorrMatch segmentation network: encoder, decoder and correlation head.

A configuration may come from an untrusted file, so every value has bounds. They are checked before anything is built
from it, and no accepted value makes a program take gigabytes or hours.
"""

import math
import re
from collections.abc import Sequence

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

# The packages that this folder needs, as in pyproject.toml; also the requirements.txt of a pushed model.
REQUIREMENTS = ("torch>=2.8", "torchvision>=0.23", "timm>=1.0.31", "transformers>=5.17", "pillow>=11.0")
# Older releases are refused: DINOv2 and ConvNeXt cannot be built, and EVA02 loads as NaN without an error.
SAFE_TIMM = "timm>=1.0.24"

# Dilation rates of the three 3x3 ASPP branches for each output stride: the same receptive field in pixels.
ATROUS_RATES = {8: [12, 24, 36], 16: [6, 12, 18], 32: [3, 6, 9]}
DECODERS = ("deeplabv3plus", "dpt", "linear")
DPT_LEVELS = 4
CORRELATION_POSITIONS = ("encoder", "aspp", "fusion", "classifier")
CORRELATION_SCALES = ("scores", "rows")
DTYPES = ("float16", "bfloat16", "float32", "float64")
# Far above useful values (the widest encoders have 4096 channels), far below what exhausts memory.
MAX_CHANNELS = 8192
MAX_CLASSES = 32_767  # label maps are 16-bit integers in places
MAX_RATES, MAX_RATE = 32, 1024
MAX_LEVELS, MAX_BLOCKS = 16, 1024  # plain transformers
MAX_STRIDE = 256
MAX_NAME = 256  # characters
MAX_NUMBER, MAX_ENTRIES, MAX_DEPTH = 16_384, 64, 4  # in encoder_kwargs
# Arguments of create_model that the encoder sets itself, or that would read a file or access the network.
RESERVED_ENCODER_KWARGS = (
    "model_name",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "features_only",
    "feature_cls",
    "out_indices",
    "output_stride",
)


@strict
class CorrMatchConfig(PreTrainedConfig):
    r"""Configuration of [`CorrMatchForSegmentation`]: a decoder on a timm encoder, with a correlation head.

    Args:
        encoder_name: name of a timm model, with or without a pretrained tag: a pyramid encoder ("resnet101s") or a
            plain vision transformer ("vit_small_patch14_dinov2"). Its id on the Hub ("timm/resnet50.a1_in1k",
            "hf_hub:timm/...") means the same and is stored as the bare name. Building a model never downloads anything.
        encoder_kwargs: further arguments for `timm.create_model`, for example `{"drop_path_rate": 0.1}`.
        out_indices: plain transformers only: the blocks whose outputs the decoder uses; `None` means four evenly over
            its depth, 2/5/8/11 of twelve.
        output_stride: image pixels per pixel of the deepest feature map: 8, 16 or 32 for pyramid encoders that support
            it, the patch size for plain transformers. `None` means 16 where possible, else the encoder's own stride,
            and is replaced by that value when the model is built.
        decoder_type: "deeplabv3plus", for pyramid encoders; "dpt", for plain transformers; "linear", one 1x1
            convolution on all levels, for both.
        pyramid_channels: "dpt" only: channels of its four levels, the finest first; `None` means an eighth, a quarter,
            a half and all of the encoder's channels.
        atrous_rates: dilation rates of the ASPP branches; `None` means 12/24/36 at output stride 8,
            6/12/18 at 16, 3/6/9 at 32.
        aspp_channels: channels of each ASPP branch and of the ASPP output.
        low_level_channels: channels the low-level features are reduced to before the fusion.
        decoder_channels: channels of the fused features of "deeplabv3plus" and "dpt".
        decoder_separable: "deeplabv3plus" only: depthwise-separable 3x3 convolutions in the ASPP and the fusion, a
            tenth of the work, for small encoders.
        correlation_head: whether the network has one; only CorrMatch needs it.
        correlation_channels: channels of the correlation head's 3x3 projection.
        correlation_dim: channels of query and key, the paper's D; `None` means the number of classes.
        correlation_dropout: probability of dropping a channel of the projected features, in [0, 1).
        correlation_position: input of the correlation head: the deepest features of the "encoder" (the paper's
            choice), the output of the "aspp" ("deeplabv3plus" only), the decoder's fused features before the classifier
            ("fusion"), or the logits of the "classifier" (the paper's table of feature positions).
        correlation_scale: what is divided by sqrt(D): the "scores" before the softmax (the published runs), or the
            "rows" after it (equation 4 as printed).
        ignore_index: label id of pixels without a class; must not be a class id.
        encoder_origin: for information only: the Hub id or file name of the weights that the encoder was initialised
            with; `None` if they were random or are unknown. Never read or downloaded.
        label_colors: for pictures only: [red, green, blue] of each class, 0 to 255; `None`, or those of another
            number of classes, means fixed colours.

    Raises:
        ValueError: a value outside its bounds; the message names the field.
    """

    model_type = "corrmatch"
    # transformers' Trainer then hands the logits alone to compute_metrics.
    keys_to_ignore_at_inference = ["correlation_logits", "query", "key"]  # noqa: RUF012

    encoder_name: str = "resnet50"
    encoder_kwargs: dict | None = None
    out_indices: list[int] | tuple[int, ...] | None = None
    output_stride: int | None = None
    decoder_type: str = "deeplabv3plus"
    pyramid_channels: list[int] | tuple[int, ...] | None = None
    atrous_rates: list[int] | tuple[int, ...] | None = None
    aspp_channels: int = 256
    low_level_channels: int = 48
    decoder_channels: int = 256
    decoder_separable: bool = False
    correlation_head: bool = True
    correlation_channels: int = 256
    correlation_dim: int | None = None
    correlation_dropout: float | int = 0.1
    correlation_position: str = "encoder"
    correlation_scale: str = "scores"
    ignore_index: int = 255
    encoder_origin: str | None = None
    label_colors: list | tuple | None = None

    def __post_init__(self, **kwargs):
        if isinstance(
            old := kwargs.get("decoder"), str
        ):  # its name up to 0.1; transformers means a sub-config by it
            self.decoder_type = old
            del kwargs["decoder"]
        # Before transformers makes names for that many classes.
        if wrong := [
            *_class_problems(self.id2label, kwargs.get("num_labels")),
            *_other_problems(self, kwargs),
        ]:
            raise ValueError(" ".join(wrong))
        super().__post_init__(**kwargs)  # sets id2label, and with it num_labels
        self.encoder_name = re.sub(r"^(hf[-_]hub:)?(timm/)?", "", self.encoder_name)
        if self.label_colors is not None and len(self.label_colors) != self.num_labels:
            self.label_colors = None  # of other classes, as when a model is loaded for new ones
        if self.label2id is None:
            self.label2id = {name: i for i, name in self.id2label.items()}
        if wrong := self._problems():
            raise ValueError(" ".join(wrong))

    def _problems(self) -> list[str]:
        """A sentence for each value outside its range, or that does not fit the others."""
        return [
            f"{name} must be {wanted}, not {_short(getattr(self, name))}."
            for name, accepted, wanted in self._ranges()
            if not accepted
        ] + self._contradictions()

    def _ranges(self) -> list[tuple[str, bool, str]]:
        """(field, whether its value is accepted, what it must be)"""
        stride, blocks, dim = self.output_stride, self.out_indices, self.correlation_dim
        strides = f"at least 1 and at most {MAX_STRIDE}, or None"
        stride_fits = stride is None or 1 <= stride <= MAX_STRIDE
        if self.decoder_type == "deeplabv3plus":
            strides, stride_fits = "8, 16 or 32, or None", stride is None or stride in ATROUS_RATES
        four_blocks = self.decoder_type != "dpt" or blocks is None or len(blocks) == DPT_LEVELS
        channels = f"at least 1 and at most {MAX_CHANNELS}"
        return [
            ("encoder_name", len(self.encoder_name) <= MAX_NAME, f"a name of at most {MAX_NAME} characters"),
            ("output_stride", stride_fits, strides),
            ("out_indices", _within(blocks, 1, MAX_LEVELS, 0, MAX_BLOCKS - 1),
             f"1 to {MAX_LEVELS} numbers of blocks, 0 to {MAX_BLOCKS - 1}, or None"),
            ("out_indices", four_blocks, f"{DPT_LEVELS} blocks for decoder 'dpt'"),
            ("pyramid_channels", _within(self.pyramid_channels, DPT_LEVELS, DPT_LEVELS, 1, MAX_CHANNELS),
             f"{DPT_LEVELS} numbers from 1 to {MAX_CHANNELS}, or None"),
            ("atrous_rates", _within(self.atrous_rates, 1, MAX_RATES, 1, MAX_RATE),
             f"positive integers, 1 to {MAX_RATES} of them and none above {MAX_RATE}"),
            ("aspp_channels", 1 <= self.aspp_channels <= MAX_CHANNELS, channels),
            ("low_level_channels", 1 <= self.low_level_channels <= MAX_CHANNELS, channels),
            ("decoder_channels", 1 <= self.decoder_channels <= MAX_CHANNELS, channels),
            ("correlation_channels", 1 <= self.correlation_channels <= MAX_CHANNELS, channels),
            ("correlation_dim", dim is None or 1 <= dim <= MAX_CLASSES,
             f"at least 1 and at most {MAX_CLASSES}, or None"),
            ("correlation_dropout", 0 <= self.correlation_dropout < 1, "in [0, 1)"),
            ("correlation_position", self.correlation_position in CORRELATION_POSITIONS,
             f"one of {', '.join(CORRELATION_POSITIONS)}"),
            ("correlation_scale", self.correlation_scale in CORRELATION_SCALES,
             f"one of {', '.join(CORRELATION_SCALES)}"),
            ("decoder_type", self.decoder_type in DECODERS, f"one of {', '.join(DECODERS)}"),
            ("ignore_index", -(2**31) <= self.ignore_index < 2**31, "a 32-bit integer"),
            ("encoder_kwargs", _moderate(self.encoder_kwargs),
             f"numbers up to {MAX_NUMBER}, names, and lists of at most {MAX_ENTRIES} of them"),
        ]  # fmt: skip

    def _contradictions(self) -> list[str]:
        """A sentence for each value that does not fit the others."""
        wrong = []
        if self.correlation_position == "aspp" and self.decoder_type in ("dpt", "linear"):
            wrong.append(
                f"correlation_position 'aspp' needs decoder 'deeplabv3plus', not {self.decoder_type!r}."
            )
        if self.decoder_separable and self.decoder_type != "deeplabv3plus":
            wrong.append(f"decoder_separable needs decoder 'deeplabv3plus', not {self.decoder_type!r}.")
        if 0 <= self.ignore_index < self.num_labels:
            wrong.append(
                f"ignore_index {self.ignore_index} is the id of one of the {self.num_labels} classes; "
                "use another value, such as -100."
            )
        if self.label_colors is not None and not _are_colors(self.label_colors):
            wrong.append(
                "label_colors must be [red, green, blue], 0 to 255, for each class, or None, "
                f"not {_short(self.label_colors)}."
            )
        if reserved := sorted(set(self.encoder_kwargs or ()).intersection(RESERVED_ENCODER_KWARGS)):
            wrong.append(
                f"encoder_kwargs must not contain {', '.join(reserved)}: set output_stride and out_indices in the "
                "configuration, and load pretrained weights with from_encoder_pretrained."
            )
        return wrong

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers, but a file without a JSON object is a ValueError, too."""
        try:
            return super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except (AttributeError, TypeError, RecursionError, UnicodeDecodeError) as error:
            raise ValueError(
                f"The config.json of {pretrained_model_name_or_path} is not a model configuration "
                f"({type(error).__name__}): it must be one JSON object, {{...}}, with plain values."
            ) from error

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but every mistake in a file is a ValueError.

        Raises:
            ValueError: not a dictionary; a value of a wrong type or outside its bounds; the message names the field.
        """
        try:
            if not isinstance(config_dict, dict):
                raise TypeError(f"it must be a JSON object, not {_short(config_dict)}")
            if "decoder" in kwargs:  # the old name, which transformers would take for somebody else's
                kwargs["decoder_type"] = kwargs.pop("decoder")
            return super().from_dict(config_dict, **kwargs)
        except (StrictDataclassError, AttributeError, TypeError, RecursionError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"This is not a CorrMatch configuration: {reason}.") from error

    @property
    def aspp_rates(self) -> list[int]:
        """The dilation rates in use: `atrous_rates`, or those of the output stride; empty for other strides."""
        return list(self.atrous_rates or ATROUS_RATES.get(self.output_stride or 16, ()))


def _class_problems(id2label, num_labels) -> list[str]:
    """Problems of the classes, in values from a file whose types have not been checked."""
    if id2label is not None:
        ids = list(id2label) if isinstance(id2label, dict) else []
        if not 1 <= len(ids) <= MAX_CLASSES or {str(each) for each in ids} != {
            str(i) for i in range(len(ids))
        }:
            return [
                f"id2label must name the classes 0, 1, 2 ..., at least one and at most {MAX_CLASSES}, "
                f"not {_short(id2label)}."
            ]
        if wrong := [name for name in id2label.values() if not isinstance(name, str)]:
            return [f"id2label must map each class id to a name, but {_short(wrong[0])} is not a string."]
    elif num_labels is not None and (type(num_labels) is not int or not 1 <= num_labels <= MAX_CLASSES):
        return [f"num_labels must be an integer from 1 to {MAX_CLASSES}, not {_short(num_labels)}."]
    return []


def _other_problems(config: PreTrainedConfig, extra: dict) -> list[str]:
    """Problems of fields that transformers uses, and of names that would hide its methods."""
    wrong = []
    for name, dtype in (("dtype", config.dtype), ("torch_dtype", extra.get("torch_dtype"))):
        if dtype is not None and str(dtype).removeprefix("torch.") not in DTYPES:
            wrong.append(f"{name} must be one of {', '.join(DTYPES)}, not {_short(dtype)}.")
    if type(config.return_dict) is not bool:
        wrong.append(f"return_dict must be true or false, not {_short(config.return_dict)}.")
    if hidden := sorted(
        key for key in extra if key.startswith("__") or callable(getattr(type(config), key, None))
    ):
        wrong.append(
            f"{_short(', '.join(hidden))} cannot be set: the configuration has methods of these names."
        )
    return wrong


def _within(numbers: Sequence[int] | None, fewest: int, most: int, smallest: int, largest: int) -> bool:
    """Whether a list has `fewest` to `most` numbers from `smallest` to `largest`; None is accepted."""
    if numbers is None:
        return True
    return fewest <= len(numbers) <= most and smallest <= min(numbers) and max(numbers) <= largest


def _are_colors(colors: Sequence) -> bool:
    return all(
        isinstance(color, list | tuple)
        and len(color) == 3
        and all(type(value) is int and 0 <= value <= 255 for value in color)
        for color in colors
    )


def _moderate(value, depth: int = 0) -> bool:
    """Whether a value is plain data without excessive numbers, texts, lists or nesting."""
    if isinstance(value, dict):
        texts = all(isinstance(key, str) and len(key) <= MAX_NAME for key in value)
        return texts and _moderate(list(value.values()), depth)
    if isinstance(value, list | tuple):
        return (
            depth < MAX_DEPTH
            and len(value) <= MAX_ENTRIES
            and all(_moderate(each, depth + 1) for each in value)
        )
    if isinstance(value, str):
        return len(value) <= MAX_NAME
    if isinstance(value, int | float):
        return abs(value) <= MAX_NUMBER and math.isfinite(value)
    return value is None


def _short(value) -> str:
    """A value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
