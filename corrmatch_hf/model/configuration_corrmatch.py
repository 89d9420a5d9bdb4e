"""What a CorrMatch segmentation network is made of: encoder, decoder, correlation head."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# Dilation rates of the three 3x3 ASPP branches for each output stride: the same receptive field in pixels.
ATROUS_RATES = {8: [12, 24, 36], 16: [6, 12, 18], 32: [3, 6, 9]}
CORRELATION_POSITIONS = ("encoder", "aspp", "fusion", "classifier")
CORRELATION_SCALES = ("scores", "rows")
# Arguments of create_model that the encoder sets itself, or that would read a file or the network.
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
    r"""Configuration of [`CorrMatchForSegmentation`]: DeepLabV3+ on a timm encoder, with a correlation head.

    Args:
        encoder_name: name of a timm model with a pyramid of features, with or without a pretrained tag
            ("resnet101s", "convnext_tiny.fb_in22k"). Building a model never downloads anything.
        encoder_kwargs: further arguments for `timm.create_model`, for example `{"drop_path_rate": 0.1}`.
        output_stride: image pixels per pixel of the deepest feature map: 8, 16 or 32, where the encoder can.
        atrous_rates: dilation rates of the ASPP branches; `None` means 12/24/36 at output stride 8,
            6/12/18 at 16, 3/6/9 at 32.
        aspp_channels: channels of each ASPP branch and of the ASPP output.
        low_level_channels: channels the low-level features are reduced to before the fusion.
        decoder_channels: channels of the fused features.
        correlation_head: whether the network has one; CorrMatch needs it, other methods do not.
        correlation_channels: channels of the correlation head's 3x3 projection.
        correlation_dim: channels of query and key, the paper's D; `None` means the number of classes.
        correlation_dropout: probability of dropping a channel of the projected features, in [0, 1).
        correlation_position: what the correlation head looks at: the deepest features of the "encoder" (the
            paper's choice), the output of the "aspp", the "fusion" of low and high level, or the logits of
            the "classifier" (the paper's table of feature positions).
        correlation_scale: what is divided by sqrt(D): the "scores" before the softmax (the published runs), or the
            "rows" after it (equation 4 as printed).
        ignore_index: label id of pixels without a class; must not be a class id.
        encoder_origin: for information: where the weights came from that the encoder started with, a Hub id or the name
            of a file; `None` where it started from random ones, or nobody knows. Never read or downloaded.

    Raises:
        ValueError: a value outside what is said above, naming the field.
    """

    model_type = "corrmatch"

    encoder_name: str = "resnet50"
    encoder_kwargs: dict | None = None
    output_stride: int = 16
    atrous_rates: list[int] | tuple[int, ...] | None = None
    aspp_channels: int = 256
    low_level_channels: int = 48
    decoder_channels: int = 256
    correlation_head: bool = True
    correlation_channels: int = 256
    correlation_dim: int | None = None
    correlation_dropout: float | int = 0.1
    correlation_position: str = "encoder"
    correlation_scale: str = "scores"
    ignore_index: int = 255
    encoder_origin: str | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)  # sets id2label, and with it num_labels
        if self.label2id is None:
            self.label2id = {name: i for i, name in self.id2label.items()}
        if self.output_stride not in ATROUS_RATES:
            raise ValueError(f"output_stride must be 8, 16 or 32, not {self.output_stride}.")
        if self.atrous_rates is not None and (not self.atrous_rates or min(self.atrous_rates) < 1):
            raise ValueError(f"atrous_rates must be positive integers, not {self.atrous_rates}.")
        for name in ("aspp_channels", "low_level_channels", "decoder_channels", "correlation_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.correlation_dim is not None and self.correlation_dim < 1:
            raise ValueError(f"correlation_dim must be at least 1, or None, not {self.correlation_dim}.")
        if not 0 <= self.correlation_dropout < 1:
            raise ValueError(f"correlation_dropout must be in [0, 1), not {self.correlation_dropout}.")
        for name, choices in (
            ("correlation_position", CORRELATION_POSITIONS),
            ("correlation_scale", CORRELATION_SCALES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        if 0 <= self.ignore_index < self.num_labels:
            raise ValueError(
                f"ignore_index {self.ignore_index} is the id of a class, for there are {self.num_labels}; "
                "give one that is not, such as -100."
            )
        if reserved := sorted(set(self.encoder_kwargs or ()).intersection(RESERVED_ENCODER_KWARGS)):
            raise ValueError(
                f"encoder_kwargs must not hold {', '.join(reserved)}: "
                "set output_stride itself, and load pretrained weights with from_encoder_pretrained."
            )

    @property
    def aspp_rates(self) -> list[int]:
        """The dilation rates in use: `atrous_rates`, or those that go with the output stride."""
        return list(self.atrous_rates or ATROUS_RATES[self.output_stride])
