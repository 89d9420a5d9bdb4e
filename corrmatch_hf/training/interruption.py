"""How a run ends early: by a signal, without memory, or because another process was lost.

On SIGTERM (a cluster's preemption), SIGHUP (a closed terminal) and SIGINT (Ctrl-C) all processes finish the same step,
save a checkpoint and exit.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from ..distributed import STOPPING, explain_lost_loaders, world_size
from ..errors import InputError


class TrainingInterrupted(Exception):
    """A signal ended the run after a step.

    Attributes:
        exit_status: the exit status for a command, 128 + the signal's number as in shells
            (129 for SIGHUP, 130 for SIGINT, 143 for SIGTERM).
    """

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.exit_status = 128 + signum


class ProcessLostError(RuntimeError):
    """Another process of the run ended or hangs, so this one cannot go on."""


class StopSignals:
    """While the context is open, SIGINT, SIGTERM and SIGHUP are recorded and do not end the process.

    A second SIGINT raises KeyboardInterrupt at once. A second SIGTERM does not, since launchers repeat it. Only the
    main thread of a process can receive signals; in another thread the context does nothing.
    """

    def __init__(self):
        self.received = 0
        self._handlers_before: dict[int, Any] = {}
        # A gloo group of its own: it compares integers on the host, without waiting for a GPU.
        self._group = dist.new_group(backend="gloo") if world_size() > 1 else None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in STOPPING:
                if signal.getsignal(signum) != signal.SIG_IGN:  # as SIGHUP is under nohup
                    self._handlers_before[signum] = signal.signal(signum, self._record)
        return self

    def __exit__(self, *error) -> None:
        for signum, handler in self._handlers_before.items():
            signal.signal(signum, handler)

    def _record(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT == self.received:
            raise KeyboardInterrupt
        self.received = signum

    def received_anywhere(self) -> int:
        """The signal that any process has received, or 0; the same on all processes, which must call it together."""
        if self._group is None:
            return self.received
        signum = torch.tensor(self.received)
        dist.all_reduce(signum, dist.ReduceOp.MAX, group=self._group)
        return int(signum)


@contextmanager
def translate_errors(remedy: str = "") -> Iterator[None]:
    """Turn running out of memory, and losing another process, into a clear error that ends with `remedy`."""
    try:
        with explain_lost_loaders(remedy):
            yield
    except RuntimeError as error:
        if _is_out_of_memory(error):
            raise InputError(
                f"Out of memory: {str(error).splitlines()[0].rstrip('.')}. Lower --per_device_batch_size (and raise "
                "--gradient_accumulation_steps by the same factor), lower --crop_size, or give "
                f"--gradient_checkpointing True or --mixed_precision bf16. {remedy}".rstrip()
            ) from error
        if is_lost_connection(error):
            raise ProcessLostError(
                "Another process of this run ended, or did not respond for --ddp_timeout seconds, so this one stops "
                f"too; see the output of that process for the cause. {remedy}".rstrip()
            ) from error
        raise


def failed_evaluation(error: Exception) -> str:
    """Why an evaluation failed, with the remedy; without a full stop."""
    if _is_out_of_memory(error):
        return "out of memory; give --eval_window, or lower it or --eval_batch_size"
    text = " ".join(str(error).split()).rstrip(".")
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}".rstrip(": ")


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def is_lost_connection(error: Exception) -> bool:
    """Whether a collective operation failed; gloo raises plain RuntimeErrors, the other backends `DistError`."""
    if world_size() == 1:
        return False
    if isinstance(error, dist.DistError):
        return True
    # The exact type only: our own errors are subclasses, and their messages may name a file such as "igloo/1.png".
    words = ("gloo", "connection", "timeout", "timed out")
    return type(error) is RuntimeError and any(word in str(error).lower() for word in words)
