"""Faster prediction with the same results: memory format, precision and compilation of a copy of the model."""

from __future__ import annotations

import copy
import platform
from typing import NoReturn

import torch
from torch import nn

from ..errors import InputError

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def bfloat16_is_slow(device: torch.device | str) -> bool:
    """Whether this is an x86 CPU that has no instructions for bfloat16 and emulates it, slower than float32."""
    if torch.device(device).type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    known = [
        check for name in checks if (check := getattr(torch.cpu, name, None))
    ]  # private, so they may change
    return bool(known) and not any(check() for check in known)


def optimize_for_inference(
    model: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    channels_last: bool = True,
    compile: bool = False,
    in_place: bool = False,
) -> nn.Module:
    """A copy of the model, in eval mode, that predicts faster. The model itself is not changed, unless `in_place`.

    ```python
    fast = optimize_for_inference(model, dtype=torch.bfloat16)
    probabilities = predict_probabilities(fast, pixel_values)
    ```

    The copy is for prediction only: its `save_pretrained` and `push_to_hub` raise an InputError.

    Args:
        model: returns (N, K, H, W) logits for `pixel_values`, such as `CorrMatchForSegmentation`.
        dtype: of weights and activations; None keeps the model's own. torch.bfloat16 is faster on CPUs that multiply in
            it (AMX, AVX512-BF16) and on GPUs, and changes logits by about 1 %; torch.float16 is for GPUs and slow on
            CPUs. `pixel_values` must have the same dtype; `predict_probabilities` and `evaluate_segmentation` convert
            them.
        channels_last: store images and features pixel by pixel, which is faster for convolutions. Logits only change
            by rounding.
        compile: call `torch.compile`. It compiles at the first image of each size, for about a minute on a CPU, so it
            is only useful for many images of few sizes.
        in_place: change and return the model itself, which saves the time and memory of the copy.
    """
    fast = model if in_place else copy.deepcopy(model)
    fast.eval().requires_grad_(False)
    fast.to(dtype=dtype, memory_format=torch.channels_last if channels_last else torch.preserve_format)
    fast.save_pretrained = fast.push_to_hub = _refuse_to_save
    if compile:
        fast.compile()
    return fast


def _refuse_to_save(*args, **kwargs) -> NoReturn:
    raise InputError(
        "This model was made by optimize_for_inference and cannot be saved: save the model that it was made from."
    )
