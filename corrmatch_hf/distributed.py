"""The processes of a run: sums over those that train together, and signals to those that load images.

Losses are means over the total batch, whatever the number of processes. Data-parallel training averages the gradients
of the processes, so each process divides its own sum by `per_process(count)`, the total count divided by the number of
processes. The average of the processes' losses is then the loss of the total batch.

With a single process, the reductions below return their input.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import InputError

# The signals that end a run after its step; Windows has no SIGHUP.
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _running() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    return dist.get_world_size() if _running() else 1


def rank() -> int:
    return dist.get_rank() if _running() else 0


def all_reduce(tensor: Tensor, op: str = "sum") -> Tensor:
    """The elementwise "sum" or "max" of `tensor` over all processes, detached. The input is not changed."""
    tensor = tensor.detach()
    if not _running():
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor, op={"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[op])
    return tensor


def all_gather(tensor: Tensor) -> Tensor:
    """The tensors of all processes (the same shape everywhere), concatenated along dimension 0, detached."""
    tensor = tensor.detach().contiguous()
    if not _running():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


def per_process(count: Tensor) -> Tensor:
    """The total of `count` over all processes divided by their number, at least a tiny positive value (so 0/0 is 0)."""
    return all_reduce(count.float()).clamp(min=1.0) / world_size()


def succeeded_everywhere(failure: Exception | None, device: torch.device) -> bool:
    """Whether `failure` is None on every process. All processes must call this together."""
    return not bool(all_reduce(torch.tensor(failure is not None, device=device).int(), "max"))


def leave_signals_to_the_trainer(worker: int) -> None:
    """A `DataLoader`'s `worker_init_fn`: the loading process ignores `STOPPING`.

    Ctrl-C and a cluster's SIGTERM reach all processes at once. The trainer finishes its step and needs images until
    then; it ends its loading processes itself.
    """
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_IGN)


@contextmanager
def explain_lost_loaders(remedy: str = "") -> Iterator[None]:
    """Turn the death of a loading process, which torch reports anywhere in the main process, into a clear error."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        # The first line; it names signal 9 where the system had no memory left, and bus errors for shared memory.
        reason = str(error).splitlines()[0].rstrip(". ")
        raise InputError(
            f"A process that loads images was ended from outside ({reason}), often because memory ran out: lower "
            f"--num_workers; 0 needs no such processes. {remedy}".rstrip()
        ) from error
