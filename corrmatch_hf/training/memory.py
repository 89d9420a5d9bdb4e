"""How much memory a training step takes, and how much disk a checkpoint, estimated before the first step."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..data.batch import SemiBatch
from ..methods.base import Method

Module = TypeVar("Module", bound=nn.Module)

# Copies of the trained weights that the optimiser's state holds: Adam has two averages, SGD one momentum.
OPTIMIZER_COPIES = {"adamw": 2, "sgd": 1}


class MemoryEstimate(NamedTuple):
    """All in bytes.

    Attributes:
        weights: parameters, their gradients, the optimiser's state, the average of the weights, buffers.
        activations: what the forward pass of a step keeps for its backward pass.
        checkpoint: one checkpoint on the disk.
    """

    weights: int
    activations: int
    checkpoint: int

    def summary(self, device: torch.device, folder: Path, checkpoints: int) -> str:
        """The text printed at the start of a run, with a warning where memory or disk may not suffice.

        Args:
            device: of the training.
            folder: the output folder, which exists.
            checkpoints: how many are kept.
        """
        step, free = self.weights + self.activations, _free_memory(device)
        lines = [
            f"Estimated memory of a step: {format_bytes(step)} ({format_bytes(self.activations)} of it activations), "
            f"{format_bytes(free)} free; disk for a checkpoint: {format_bytes(self.checkpoint)}"
        ]
        # Gradients of activations and workspaces come and go beside the activations: measured, at most half as much.
        if step + self.activations // 2 > free:
            lines.append(
                "warning: a step may not fit in memory: lower --per_device_batch_size (and raise "
                "--gradient_accumulation_steps by the same factor) or --crop_size, or give "
                "--gradient_checkpointing True or --mixed_precision bf16"
            )
        # A new checkpoint is written before the oldest is deleted; the best and the final model lie beside them.
        needed, free = (checkpoints + 2) * self.checkpoint, shutil.disk_usage(folder).free
        if needed > free:
            lines.append(
                f"warning: {folder} has {format_bytes(free)} free and the run may need {format_bytes(needed)}: free "
                "some disk space, or lower --max_checkpoints"
            )
        return "\n".join(lines)


def estimate_memory(
    method: Method, optimizer: str, average: bool, batch: SemiBatch, times: float
) -> MemoryEstimate:
    """Follow one forward pass on a small batch, without a lasting effect on the method.

    Args:
        method: on the batch's device, or on any where the batch is on the meta device.
        optimizer: a key of `OPTIMIZER_COPIES`.
        average: whether an average of the weights is kept.
        batch: like the batches of the training, but smaller.
        times: how many such batches one forward pass of the training will hold.
    """
    parameters = _bytes(method.parameters())
    trained = _bytes(p for p in method.parameters() if p.requires_grad)
    averaged = _bytes(method.segmentation_model.state_dict().values()) if average else 0
    checkpoint = parameters + _bytes(method.buffers()) + OPTIMIZER_COPIES[optimizer] * trained + averaged
    return MemoryEstimate(checkpoint + trained, int(activation_bytes(method, batch) * times), checkpoint)


def activation_bytes(method: Method, batch: SemiBatch) -> int:
    """Bytes that a forward pass on `batch` keeps for the backward pass, without the weights themselves."""
    if batch.image.is_meta:
        method = on_meta(method)
    known = {_storage(t) for t in (*method.parameters(), *method.buffers())}
    found: dict[int, int] = {}  # storage -> bytes; several tensors may share one

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in known:
            found[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    buffers = [(buffer, buffer.clone()) for buffer in method.buffers()]
    modes = [(module, module.training) for module in method.modules()]
    devices = [method.segmentation_model.device] if method.segmentation_model.device.type == "cuda" else []
    shapes = FastShapes() if batch.image.is_meta else nullcontext()
    method.train()
    try:
        with (
            torch.random.fork_rng(devices),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
            shapes,
        ):
            loss, _ = method(batch)
        del loss
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for module, training in modes:
            module.training = training
    return sum(found.values())


def _storage(tensor: Tensor) -> int:
    """The same number for tensors that share their memory. On the meta device, all addresses are 0."""
    return tensor.untyped_storage()._cdata


class FastShapes(TorchDispatchMode):
    """Torch finds the shapes of these results on the meta device in Python, in milliseconds."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            x, aten = args[0], torch.ops.aten
            if function is aten.native_batch_norm.default:
                return torch.empty_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])
            if function is aten.upsample_bilinear2d.default:
                return x.new_empty(*x.shape[:2], *args[1])
        return function(*args, **(kwargs or {}))


def on_meta(module: Module) -> Module:
    """A copy whose parameters and buffers have shapes, but no contents: running it costs no arithmetic."""
    blanks: dict[int, Any] = {}
    for parameter in module.parameters():
        blank = torch.empty_like(parameter, device="meta")
        blanks[id(parameter)] = nn.Parameter(blank, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        blanks[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, blanks)


def blank_batch(
    method: Method, labeled: int, unlabeled: int, crop: int, device: torch.device, step: int = 0
) -> SemiBatch:
    """A batch of gray images with every field that `method` reads in a step: no CutMix box, no partner."""
    images = torch.zeros(labeled, 3, crop, crop, device=device)
    batch = SemiBatch(step, images, torch.zeros(labeled, crop, crop, dtype=torch.long, device=device))
    if method.uses_unlabeled:
        views = method.strong_views
        batch.weak = torch.zeros(unlabeled, 3, crop, crop, device=device)
        batch.valid = torch.ones(unlabeled, crop, crop, dtype=torch.bool, device=device)
        batch.strong = torch.zeros(unlabeled, views, 3, crop, crop, device=device)
        batch.box = torch.zeros(unlabeled, views, crop, crop, dtype=torch.bool, device=device)
        batch.partner_weak = torch.zeros(0, 3, crop, crop, device=device)
        batch.partner_valid = torch.zeros(0, crop, crop, dtype=torch.bool, device=device)
    return batch


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        # What torch has reserved and does not use is free to it as well.
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().available


def format_bytes(count: int) -> str:
    """Such as "1.5 GiB" or "300 MiB"."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
