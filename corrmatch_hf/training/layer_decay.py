"""Which layer of an encoder a weight belongs to, in timm's own order."""

from __future__ import annotations

import timm
import torch
from timm.models import group_parameters
from torch import nn

from ..errors import InputError
from ..model.encoder_corrmatch import CorrMatchEncoder


def layer_scales(method: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """The share of the encoder's learning rate at which each weight of a method's encoders learns.

    Weights of the last layer have 1, of the one below `decay`, then its square and so on down to the embedding or stem.

    Raises:
        InputError: timm knows no layers of this encoder.
    """
    scales = {}
    for encoder in method.modules():
        if isinstance(encoder, CorrMatchEncoder):
            layers = _layers(encoder)
            last = max(layers.values())
            for name, parameter in encoder.body.named_parameters():
                scales[parameter] = decay ** (last - layers[name])
    return scales


def _layers(encoder: CorrMatchEncoder) -> dict[str, int]:
    """Number of the layer of each weight in `encoder.body`, from the image on."""
    # timm tells the layers of whole models, whose weights are called otherwise where it makes features of them:
    # "layer1_0.conv.weight" is "layer1.0.conv.weight" of the whole, "model.norm.bias" is its "norm.bias".
    whole = _whole_model(encoder)
    try:
        found = group_parameters(whole, whole.group_matcher(coarse=False), reverse=True)
        numbers = {_plain(name): number for name, number in found.items()}
        prefix = "model." if hasattr(encoder.body, "model") else ""
        layers = {
            name: numbers[_plain(name.removeprefix(prefix))] for name, _ in encoder.body.named_parameters()
        }
    except (AttributeError, NotImplementedError, AssertionError, KeyError, TypeError):
        layers = {}
    if len(set(layers.values())) < 2:
        raise InputError(
            f"--layer_decay: timm knows no order of the layers of encoder {encoder.encoder_name!r}; leave it out."
        )
    return layers


def _whole_model(encoder: CorrMatchEncoder) -> nn.Module:
    """The timm model that the encoder's features are of, or one like it without contents."""
    if hasattr(encoder.body, "model"):
        return encoder.body.model
    # The stride dilates layers and names none; some whole models do not take it.
    features = ("features_only", "out_indices", "output_stride")
    options = {k: v for k, v in encoder.plan.options.items() if k not in features}
    with torch.device("meta"):
        return timm.create_model(**options)


def _plain(name: str) -> str:
    return name.replace(".", "_")
