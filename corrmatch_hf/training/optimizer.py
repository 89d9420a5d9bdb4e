"""Optimiser and schedule of the field's recipes."""

from __future__ import annotations

from collections.abc import Iterator

import timm
import torch
from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import get_polynomial_decay_schedule_with_warmup

from ..errors import InputError
from ..model import CorrMatchForSegmentation
from ..model.encoder_corrmatch import CorrMatchEncoder
from .config import TrainingConfig


def build_optimizer(method: nn.Module, config: TrainingConfig, total_batch: int) -> torch.optim.Optimizer:
    """SGD or AdamW with two groups, the encoder at the learning rate, all else at its multiple; with `layer_decay` a
    group for each layer of the encoder, the last layer first. Twice as many where norms and biases are spared the
    weight decay.

    `total_batch` is the number of labelled images of one optimiser step over all processes; the rate is scaled with it
    when `config.lr_reference_batch` is set.

    Raises:
        InputError: `layer_decay` with an encoder whose layers timm does not know.
    """
    rate = config.learning_rate
    if config.lr_reference_batch:
        rate *= total_batch / config.lr_reference_batch
    encoder, rest = {}, []  # by the share of the rate
    scales = layer_scales(method, config.layer_decay) if config.layer_decay is not None else {}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            inside = ".encoder." in f".{name}"
            (encoder.setdefault(scales.get(parameter, 1.0), []) if inside else rest).append(parameter)
    groups = [
        {"params": encoder[scale], "lr": rate * scale, "name": "encoder"}
        for scale in sorted(encoder, reverse=True)
    ]
    groups.append({"params": rest, "lr": rate * config.head_lr_multiplier, "name": "head"})
    if config.no_decay_norm_bias:  # those are vectors, weights of convolutions and linear layers are not
        groups = [
            {**group, "params": [p for p in group["params"] if (p.ndim > 1) == decays]}
            | ({} if decays else {"weight_decay": 0.0})
            for decays in (True, False)
            for group in groups
        ]
    groups = [group for group in groups if group["params"]]
    # One kernel for all weights, two to four times as fast. Under fp16 it would skip an overflowing step by itself, and
    # the schedule would not know.
    fused = config.mixed_precision != "fp16" and groups[0]["params"][0].device.type in ("cpu", "cuda")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, weight_decay=config.weight_decay, fused=fused)
    return torch.optim.SGD(
        groups, lr=rate, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """lr(t) = lr (1 - t / T) ** power, with linear warm-up where asked for."""
    return get_polynomial_decay_schedule_with_warmup(
        optimizer, config.warmup_steps, steps, lr_end=0.0, power=config.lr_power
    )


# -------------------- Parts of a method's networks that a run leaves as they are.


def freeze(method: nn.Module, config: TrainingConfig) -> None:
    """Take what `config` freezes out of training: with `freeze_encoder` the encoders of all networks.

    Images need no gradient, so nothing of an encoder without parameters to train is kept for the backward pass.
    """
    if config.freeze_encoder:
        for encoder in _encoders(method):
            encoder.requires_grad_(False)


def keep_frozen(method: nn.Module, config: TrainingConfig) -> None:
    """Put what `config` freezes into evaluation mode; to be called after `method.train()`."""
    if config.freeze_encoder:  # its norms, and its random drops of paths, too
        for encoder in _encoders(method):
            encoder.eval()
    if config.freeze_batch_norm:
        for module in method.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _encoders(method: nn.Module) -> Iterator[CorrMatchEncoder]:
    """Those of a second network and of a teacher as well."""
    return (module for module in method.modules() if isinstance(module, CorrMatchEncoder))


# -------------------- Which layer of an encoder a weight belongs to, in timm's own order.


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


# -------------------- torch.compile for the networks of any method.


def compile_networks(method: nn.Module, **options) -> None:
    """Compile encoder, decoder and correlation head of every network of a method, in place.

    Those are what a method calls, one after the other, with its own business between them; `forward` of the model is
    called in evaluation and for the partners' labels, and is made of the same parts. Names of weights stay as they are.
    Numbers of images and their sizes differ from call to call, so shapes are made dynamic once a second one is seen.

    Args:
        method: a `Method`; a second network and a teacher are compiled as well.
        options: of `torch.compile`.
    """
    for network in method.modules():
        if isinstance(network, CorrMatchForSegmentation):
            for part in (network.encoder, network.decoder, network.correlation):
                if part is not None:
                    part.compile(**options)
