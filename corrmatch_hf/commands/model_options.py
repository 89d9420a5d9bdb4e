"""The network: its options, and the model and image processor built from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InputError
from ..options import Options, option

if TYPE_CHECKING:
    from ..data.semi_dataset import SemiDataset
    from ..model import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor


@dataclass
class ModelOptions(Options):
    """Encoder, decoder and correlation head. Names and defaults are those of `CorrMatchConfig`."""

    encoder_name: str = option(
        "resnet50",
        "timm name of the encoder: a network with a feature pyramid, or a plain vision transformer.",
        group="Model",
        common=True,
        metavar="NAME",
    )
    encoder_weights: str = option(
        "timm",
        "'timm' for the pretrained weights of timm from the Hub, 'none', or a .safetensors or .pth file.",
        group="Model",
        common=True,
    )
    output_stride: int | None = option(
        None,
        "Stride of the last encoder features: 8 (the paper), 16 or 32; by default 16 where the encoder supports it, "
        "else the encoder's own.",
        group="Model",
    )
    encoder_kwargs: dict[str, Any] | None = option(
        None, """More arguments of the timm encoder, such as '{"img_size": 384}'.""", group="Model"
    )
    out_indices: list[int] | None = option(
        None,
        "Blocks of a plain transformer whose outputs go to the decoder, such as 4 11 17 23; by default four, evenly "
        "spaced over its depth.",
        group="Model",
    )
    decoder: Literal["deeplabv3plus", "dpt", "linear"] = option(
        "deeplabv3plus",
        "deeplabv3plus for encoders with a feature pyramid, dpt for plain transformers, linear (lightest) for both.",
        group="Model",
        metavar="NAME",
    )
    correlation_position: Literal["encoder", "aspp", "fusion", "classifier"] = option(
        "encoder", "Features that the correlation head receives (table 8 of the paper).", group="Model"
    )
    correlation_scale: Literal["scores", "rows"] = option(
        "scores",
        "What is divided by sqrt(D): scores before the softmax (published runs), or rows after it (the paper).",
        group="Model",
    )
    correlation_channels: int = option(
        256, "Channels of the projection in the correlation head.", group="Model"
    )
    aspp_channels: int = option(
        256, "Channels of each branch of the ASPP.", group="Model", only_with="decoder=deeplabv3plus"
    )
    low_level_channels: int = option(
        48,
        "Channels of the low-level features in the decoder.",
        group="Model",
        only_with="decoder=deeplabv3plus",
    )
    decoder_channels: int = option(
        256,
        "Channels of the fused features of deeplabv3plus and dpt.",
        group="Model",
        only_with=("decoder=deeplabv3plus", "decoder=dpt"),
    )
    decoder_separable: bool = option(
        False,
        "Depthwise-separable 3x3 convolutions in deeplabv3plus: a tenth of its work, recommended with small encoders.",
        group="Model",
    )
    pyramid_channels: list[int] | None = option(
        None,
        "Channels of the four levels of dpt, such as 256 512 1024 1024; by default an eighth, a quarter, a half and "
        "all of the encoder's.",
        group="Model",
        only_with="decoder=dpt",
    )
    gradient_checkpointing: bool = option(
        False, "Recompute the encoder in the backward pass: less memory, slower steps.", group="Model"
    )

    def problems(self) -> list[str]:
        problems = super().problems()
        if not problems:
            try:
                self.config()
            except ValueError as error:
                problems.append(str(error).rstrip("."))
        weights = self.encoder_weights
        if weights not in ("timm", "none") and not Path(weights).is_file():
            problems.append(f"--encoder_weights {weights}: no such file; give a file, 'timm' or 'none'")
        return problems

    def config(self, **others: Any) -> CorrMatchConfig:
        """The model's configuration; `others` are further arguments of it.

        Raises:
            ValueError: the options do not fit each other or the encoder.
        """
        from ..model.configuration_corrmatch import CorrMatchConfig  # takes a second, too long for --help

        own = {
            name: value for name, value in vars(self).items() if name in CorrMatchConfig.__dataclass_fields__
        }
        return CorrMatchConfig(decoder_type=self.decoder, **own, **others)

    def build(
        self, data: SemiDataset, correlation_head: bool
    ) -> tuple[CorrMatchForSegmentation, CorrMatchImageProcessor]:
        """The model for the classes of `data`, and the image processor with the normalisation of its encoder."""
        import timm

        from ..model import CorrMatchForSegmentation, CorrMatchImageProcessor

        try:
            config = self.config(
                correlation_head=correlation_head,
                ignore_index=data.ignore_index,
                id2label=data.id2label,
                label_colors=data.label_colors and [list(color) for color in data.label_colors],
            )
            if self.encoder_weights == "none":
                model = CorrMatchForSegmentation(config)
            else:
                weights = None if self.encoder_weights == "timm" else self.encoder_weights
                model = CorrMatchForSegmentation.from_encoder_pretrained(config, weights)
        except (ValueError, OSError) as error:
            raise InputError(str(error)) from error
        if self.gradient_checkpointing:
            model.activation_checkpointing_enable()
        pretrained = timm.get_pretrained_cfg(config.encoder_name)
        normalisation = (
            {"image_mean": list(pretrained.mean), "image_std": list(pretrained.std)} if pretrained else {}
        )
        return model, CorrMatchImageProcessor(ignore_index=data.ignore_index, **normalisation)
