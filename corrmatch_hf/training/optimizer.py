"""Optimiser and schedule of the field's recipes."""

from __future__ import annotations

import torch
from torch import nn
from transformers import get_polynomial_decay_schedule_with_warmup

from .config import TrainingConfig
from .layer_decay import layer_scales


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
