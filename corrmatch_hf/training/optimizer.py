"""Which weights are trained and at which rate: frozen parts, parameter groups, optimiser, schedule, compilation.

encoder           learning_rate                                   (layer l of L: learning_rate * layer_decay ** (L - l))
everything else   learning_rate * head_lr_multiplier
all of them       * (1 - t / T) ** lr_power at step t of T, after a linear warm-up
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import timm
import torch
from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import get_polynomial_decay_schedule_with_warmup

from ..errors import InputError
from ..model import CorrMatchForSegmentation
from ..model.convolutions_corrmatch import SLOW_GRADIENTS
from ..model.encoder_corrmatch import CorrMatchEncoder
from .config import TrainingConfig


def freeze(method: nn.Module, config: TrainingConfig) -> None:
    """With `freeze_encoder`, take the encoders of all networks of a method out of training.

    Images need no gradient, so an encoder without trained parameters keeps nothing for the backward pass.
    """
    if config.freeze_encoder:
        for encoder in _encoders(method):
            encoder.requires_grad_(False)


def keep_frozen(method: nn.Module, config: TrainingConfig) -> None:
    """Put frozen parts into evaluation mode. Call it after `method.train()`."""
    if config.freeze_encoder:  # which also stops its running statistics and its drop path
        for encoder in _encoders(method):
            encoder.eval()
    if config.freeze_batch_norm:
        for module in method.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def build_optimizer(method: nn.Module, config: TrainingConfig, total_batch: int) -> torch.optim.Optimizer:
    """SGD or AdamW over the trained parameters of a method.

    The groups are: the encoder (with `layer_decay` one group per layer, the last layer first), then everything else.
    With `no_decay_norm_bias` each of them is split in two: all with weight decay first, then all without.

    Args:
        method: already frozen where `config` asks for it.
        config: of the run.
        total_batch: labelled images of one optimiser step over all processes; the rate is proportional to it when
            `config.lr_reference_batch` is set.

    Raises:
        InputError: `layer_decay` with an encoder whose layers timm does not know.
    """
    rate = config.learning_rate
    if config.lr_reference_batch:
        rate *= total_batch / config.lr_reference_batch
    groups = _parameter_groups(method, config, rate)
    # One kernel for all weights, two to four times as fast. Not under fp16: the kernel would skip an overflowing step
    # by itself, and the schedule would not know.
    fused = config.mixed_precision != "fp16" and groups[0]["params"][0].device.type in ("cpu", "cuda")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, weight_decay=config.weight_decay, fused=fused)
    return torch.optim.SGD(
        groups, lr=rate, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, steps: int, restarts: Collection[int] = ()
) -> torch.optim.lr_scheduler.LRScheduler:
    """lr(t) = lr (1 - t / T) ** power, after a linear warm-up of `config.warmup_steps`.

    With `config.lr_restart` r, the rate decays to zero by the first step of `restarts`, at which a teacher begins to
    teach and should have settled, and from r times the rate by every other and by the end.
    """
    starts = [0, *sorted(step for step in restarts if 0 < step < steps)]
    if not config.lr_restart or len(starts) == 1:
        return get_polynomial_decay_schedule_with_warmup(
            optimizer, config.warmup_steps, steps, lr_end=0.0, power=config.lr_power
        )

    def share(step: int) -> float:
        if step < config.warmup_steps:
            return step / config.warmup_steps
        part = bisect_right(starts, step) - 1
        start, end = (starts[part] or config.warmup_steps), (*starts, steps)[part + 1]
        decayed = max(1 - (step - start) / max(end - start, 1), 0) ** config.lr_power
        return decayed * (config.lr_restart if part else 1)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


@contextmanager
def gpu_settings(config: TrainingConfig) -> Iterator[None]:
    """`tf32` and `cudnn_benchmark`, which are settings of the process; without them they stay as they are."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    try:
        if config.tf32:
            torch.set_float32_matmul_precision("high")
        if config.cudnn_benchmark:
            torch.backends.cudnn.benchmark = True
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.benchmark = before[1]


@contextmanager
def without_cudnn_benchmark() -> Iterator[None]:
    """For photos of many sizes, each of which would be timed anew."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def memory_format(
    model: CorrMatchForSegmentation, config: TrainingConfig, device: torch.device
) -> torch.memory_format:
    """The layout of feature maps: channels_last, if `channels_last` is on and it is not slower.

    On a CPU without AVX-512, only encoders with depthwise convolutions are faster in it; others and the decoders learn
    faster in torch's default layout.
    """
    layers = model.encoder.modules()
    depthwise = any(isinstance(each, nn.Conv2d) and each.groups == each.in_channels > 1 for each in layers)
    slower = device.type == "cpu" and SLOW_GRADIENTS and not depthwise
    return torch.channels_last if config.channels_last and not slower else torch.contiguous_format


def compile_networks(method: nn.Module, **options) -> None:
    """Compile encoder, decoder and correlation head of every network of a method with torch.compile, in place.

    A method calls these parts one after the other, with work of its own between them; `forward` of the model, used in
    evaluation and for pseudo-labels, calls the same parts. Names of weights do not change. The number of images and
    their size differ from call to call, so torch makes the shapes dynamic once it sees a second one.

    Args:
        method: a `Method`; a second network and a teacher are compiled as well.
        options: of `torch.compile`.
    """
    for network in method.modules():
        if isinstance(network, CorrMatchForSegmentation):
            for part in (network.encoder, network.decoder, network.correlation):
                if part is not None:
                    part.compile(**options)


def layer_scales(method: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """The share of the encoder's learning rate for each weight of a method's encoders.

    It is 1 for the last layer, `decay` for the layer below, then its square, and so on down to the embedding or stem.

    Raises:
        InputError: timm does not know the layers of this encoder.
    """
    scales = {}
    for encoder in _encoders(method):
        layers = _layer_numbers(encoder)
        last = max(layers.values())
        for name, parameter in encoder.body.named_parameters():
            scales[parameter] = decay ** (last - layers[name])
    return scales


def _encoders(method: nn.Module) -> Iterator[CorrMatchEncoder]:
    """The encoders of a method, including those of a second network and of a teacher."""
    return (module for module in method.modules() if isinstance(module, CorrMatchEncoder))


def _parameter_groups(method: nn.Module, config: TrainingConfig, rate: float) -> list[dict]:
    encoder, rest = {}, []  # share of the rate -> parameters; parameters
    scales = layer_scales(method, config.layer_decay) if config.layer_decay is not None else {}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            in_encoder = ".encoder." in f".{name}"
            (encoder.setdefault(scales.get(parameter, 1.0), []) if in_encoder else rest).append(parameter)
    groups = [
        {"params": encoder[scale], "lr": rate * scale, "name": "encoder"}
        for scale in sorted(encoder, reverse=True)
    ]
    groups.append({"params": rest, "lr": rate * config.head_lr_multiplier, "name": "head"})
    if config.no_decay_norm_bias:  # these are vectors; weights of convolutions and linear layers are not
        groups = [
            {**group, "params": [p for p in group["params"] if (p.ndim > 1) == decays]}
            | ({} if decays else {"weight_decay": 0.0})
            for decays in (True, False)
            for group in groups
        ]
    return [group for group in groups if group["params"]]


def _layer_numbers(encoder: CorrMatchEncoder) -> dict[str, int]:
    """The number of the layer of each weight in `encoder.body`, counted from the image.

    This is timm's own grouping. timm's `param_groups_layer_decay` builds on the same grouping but does not fit here: it
    counts layers behind the encoder's features (a last convolution before the classifier), and it guesses where a model
    has no grouping.
    """
    # timm groups whole models, whose weights have other names than the features made from them: "layer1_0.conv.weight"
    # is "layer1.0.conv.weight" of the whole model, "model.norm.bias" is its "norm.bias".
    whole = _whole_model(encoder)
    try:
        found = group_parameters(whole, whole.group_matcher(coarse=False), reverse=True)
        numbers = {_without_dots(name): number for name, number in found.items()}
        prefix = "model." if hasattr(encoder.body, "model") else ""
        layers = {
            name: numbers[_without_dots(name.removeprefix(prefix))]
            for name, _ in encoder.body.named_parameters()
        }
    except (AttributeError, NotImplementedError, AssertionError, KeyError, TypeError):
        layers = {}
    if len(set(layers.values())) < 2:
        raise InputError(
            f"--layer_decay: timm does not know the layers of encoder {encoder.encoder_name!r}; leave it out."
        )
    return layers


def _whole_model(encoder: CorrMatchEncoder) -> nn.Module:
    """The timm model behind the encoder's features, or one of the same structure without weights."""
    if hasattr(encoder.body, "model"):
        return encoder.body.model
    # The output stride dilates layers without renaming any, and some whole models do not accept it.
    features = ("features_only", "out_indices", "output_stride")
    options = {k: v for k, v in encoder.plan.options.items() if k not in features}
    with torch.device("meta"):
        return timm.create_model(**options)


def _without_dots(name: str) -> str:
    return name.replace(".", "_")
