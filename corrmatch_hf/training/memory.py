"""What a run will need: memory for a step, and room for its checkpoints, said before the first step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from ..data.batch import SemiBatch
from ..methods.base import Method

# Of Adam's and of SGD's state, copies of the weights: two averages, one momentum.
STATES = {"adamw": 2, "sgd": 1}


class Needs(NamedTuple):
    """Bytes.

    Attributes:
        weights: parameters, their gradients, the optimiser's state, the average of the weights, buffers.
        activations: what a step's forward pass keeps for its backward pass.
        checkpoint: one checkpoint on the disk.
    """

    weights: int
    activations: int
    checkpoint: int

    def sentence(self, device: torch.device, folder: Path, checkpoints: int) -> str:
        """For the start of a run, with a warning where it will hardly fit."""
        step, free = self.weights + self.activations, _free(device)
        # Beside the activations, gradients of activations and workspaces come and go; measured, at most half as much.
        tight = step + self.activations // 2 > free
        lines = [
            f"a step takes about {size(step)} of memory ({size(self.activations)} of it activations), "
            f"{size(free)} are free; a checkpoint takes {size(self.checkpoint)}"
        ]
        if tight:
            lines.append(
                "warning: that may be too much: lower --per_device_batch_size (and raise "
                "--gradient_accumulation_steps as much) or --crop_size, or give --gradient_checkpointing True or "
                "--mixed_precision bf16"
            )
        # A new checkpoint is written before the oldest goes, and the best and the final model lie beside them.
        room, disk = (checkpoints + 2) * self.checkpoint, shutil.disk_usage(folder).free
        if room > disk:
            lines.append(
                f"warning: {folder} has {size(disk)} left and the run may need {size(room)}: make room, or lower "
                "--max_checkpoints"
            )
        return "\n".join(lines)


def needs(method: Method, optimizer: str, average: bool, batch: SemiBatch, times: float) -> Needs:
    """Estimate by trying: one forward pass on a small batch, whose effect on the method is taken back.

    Args:
        method: on its device.
        optimizer: a key of `STATES`.
        average: whether an average of the weights is kept.
        batch: like those to come, but smaller.
        times: how many such batches one forward pass will hold.
    """
    parameters = _bytes(method.parameters())
    trained = _bytes(p for p in method.parameters() if p.requires_grad)
    kept = _bytes(method.segmentation_model.state_dict().values()) if average else 0
    state = parameters + _bytes(method.buffers()) + STATES[optimizer] * trained + kept
    return Needs(state + trained, int(_activations(method, batch) * times), state)


def _activations(method: Method, batch: SemiBatch) -> int:
    """Bytes that a forward pass on `batch` keeps for the backward pass, weights left out."""
    known = {t.untyped_storage().data_ptr() for t in (*method.parameters(), *method.buffers())}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    before = [(buffer, buffer.clone()) for buffer in method.buffers()]
    modes = [(module, module.training) for module in method.modules()]
    devices = [method.segmentation_model.device] if method.segmentation_model.device.type == "cuda" else []
    method.train()
    try:
        with torch.random.fork_rng(devices), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss, _ = method(batch)
        del loss
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
        for module, training in modes:
            module.training = training
    return sum(found.values())


def blank_batch(method: Method, labeled: int, unlabeled: int, crop: int, device: torch.device) -> SemiBatch:
    """A batch of gray pictures with all that `method` looks at."""
    images = torch.zeros(labeled, 3, crop, crop, device=device)
    batch = SemiBatch(0, images, torch.zeros(labeled, crop, crop, dtype=torch.long, device=device))
    if method.uses_unlabeled:
        views = method.strong_views
        batch.weak = torch.zeros(unlabeled, 3, crop, crop, device=device)
        batch.valid = torch.ones(unlabeled, crop, crop, dtype=torch.bool, device=device)
        batch.strong = torch.zeros(unlabeled, views, 3, crop, crop, device=device)
        batch.box = torch.zeros(unlabeled, views, crop, crop, dtype=torch.bool, device=device)
        batch.partner_weak = torch.zeros(0, 3, crop, crop, device=device)
        batch.partner_valid = torch.zeros(0, crop, crop, dtype=torch.bool, device=device)
    return batch


def _bytes(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().available


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
