"""A model as fast as it can be without changing what it computes: for predicting, not for training or saving."""

from __future__ import annotations

import copy
from typing import NoReturn

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import InputError

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Exactly these classes: others of timm change their weights on the way (StdConv2d) or do more than normalise.
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d)
SQUARES = (64, 224, 256, 384, 512)  # image sizes to try a model with; some encoders take only their own


def optimize_for_inference(
    model: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    fold_batch_norm: bool | None = None,
    channels_last: bool = True,
    compile: bool = False,
) -> nn.Module:
    """A copy of the model, in eval mode, that predicts the same faster. The model itself stays as it is.

    ```python
    fast = optimize_for_inference(model, dtype=torch.bfloat16)
    probabilities = predict_probabilities(fast, pixel_values)
    ```

    The copy cannot be trained, and its `save_pretrained` and `push_to_hub` raise: what is published is the original.

    Args:
        model: gives (N, K, H, W) logits for `pixel_values`: `CorrMatchForSegmentation`, or another of transformers.
        dtype: of weights and activations; None keeps the model's own. torch.bfloat16 pays on CPUs that multiply in it
            (AMX, AVX512-BF16) and on GPUs, and moves logits by about 1 %; torch.float16 is for GPUs, and slow on CPUs.
            `pixel_values` must have the same dtype; `predict_probabilities` and `evaluate_segmentation` see to it.
        fold_batch_norm: multiply every BatchNorm that directly follows a convolution into it; None: where `dtype` is
            float32. There, logits move by rounding, about 1e-6 of the largest. In bfloat16 it saves little time, and
            cost a trained MobileNetV2 0.25 points of mean IoU, against 0.03 without. Pairs are found by watching one
            pass of shapes without contents through the model; a norm stays where its convolution's output goes
            anywhere else, too, or where either is used twice.
        channels_last: keep images and features in memory pixel by pixel, as fast convolutions want them. The same
            logits but for rounding.
        compile: hand the copy to `torch.compile`; it compiles at the first image of each new size, which takes a minute
            on a CPU, so that it pays only for many images of few sizes.
    """
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    if fold_batch_norm is None:
        fold_batch_norm = (dtype or next(fast.parameters()).dtype) == torch.float32
    if fold_batch_norm:
        for convolution, norm in _conv_norm_pairs(fast):
            _fold(fast, convolution, norm)
    fast.to(dtype=dtype, memory_format=torch.channels_last if channels_last else torch.preserve_format)
    fast.save_pretrained = fast.push_to_hub = _refuse_to_save
    if compile:
        fast.compile()
    return fast


def _refuse_to_save(*args, **kwargs) -> NoReturn:
    raise InputError(
        "This copy was made by optimize_for_inference and is not a checkpoint: save the model it was made from."
    )


def _fold(model: nn.Module, convolution: str, norm: str) -> None:
    conv, bn = model.get_submodule(convolution), model.get_submodule(norm)
    # in float64, or the norm's small deviations would cost digits twice
    fused = fuse_conv_bn_eval(copy.deepcopy(conv).double(), copy.deepcopy(bn).double())
    _replace(model, convolution, fused.to(conv.weight.dtype).requires_grad_(False))
    rest = nn.Sequential(bn.drop, bn.act) if isinstance(bn, BatchNormAct2d) else nn.Identity()
    _replace(model, norm, rest.eval())


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _conv_norm_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions and of the norms that alone take what they give; none if the model cannot be watched."""
    shapes = copy.deepcopy(model).to("meta")
    for side in SQUARES:
        with _Watch(shapes) as watch:
            try:
                output = shapes(pixel_values=torch.empty(1, _channels(shapes), side, side, device="meta"))
            except Exception:  # too small an image, or something that shapes alone cannot decide
                continue
        return watch.pairs(output)
    return []


def _channels(model: nn.Module) -> int:
    return next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))


class _Watch(TorchDispatchMode):
    """Follows the output of every convolution of a model through one forward pass."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.calls: dict[str, int] = {}
        self.outputs: dict[int, tuple[str, Tensor]] = {}  # with the tensor, so that no other gets its id
        self.uses: dict[int, int] = {}
        self.norm_inputs: dict[str, int] = {}
        self.hooks = []
        for name, module in model.named_modules():
            if type(module) in CONVOLUTIONS:
                self.hooks.append(module.register_forward_hook(self._convolution(name)))
            elif type(module) in NORMS and module.running_mean is not None:
                self.hooks.append(module.register_forward_pre_hook(self._norm(name)))

    def _convolution(self, name: str):
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            self.calls[name] = self.calls.get(name, 0) + 1
            self.outputs[id(output)] = name, output

        return hook

    def _norm(self, name: str):
        def hook(module: nn.Module, args: tuple) -> None:
            self.calls[name] = self.calls.get(name, 0) + 1
            if id(args[0]) in self.outputs:
                self.norm_inputs[name] = id(args[0])

        return hook

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for value in tree_leaves((args, kwargs)):
            if id(value) in self.outputs:
                self.uses[id(value)] = self.uses.get(id(value), 0) + 1
        return func(*args, **(kwargs or {}))

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()
        return super().__exit__(*error)

    def pairs(self, output: object) -> list[tuple[str, str]]:
        given = {id(value) for value in tree_leaves(output)}
        found = []
        for norm, key in self.norm_inputs.items():
            convolution = self.outputs[key][0]
            if key not in given and self.uses[key] == 1 and self.calls[convolution] == self.calls[norm] == 1:
                found.append((convolution, norm))
        return found
