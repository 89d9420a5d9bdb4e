"""What a cluster's preemption (SIGTERM) and Ctrl-C (SIGINT) do: all processes end after the step, saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

from ..distributed import world_size
from ..errors import InputError


class TrainingInterrupted(Exception):
    """A signal ended the run; everything up to then is in a checkpoint.

    Attributes:
        exit_status: what a command should exit with: 128 + the signal's number, as shells have it
            (130 for SIGINT, 143 for SIGTERM).
    """

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.exit_status = 128 + signum


class StopSignals:
    """While the context is open, SIGINT and SIGTERM are noted instead of ending the process.

    A second SIGINT acts at once, for whoever cannot wait. (Not a second SIGTERM: launchers repeat what they were sent.)
    Only the main thread can receive signals; elsewhere this does nothing.
    """

    def __init__(self):
        self.received = 0
        self._before: dict[int, object] = {}
        # Its own group on the host: asking it stops no GPU.
        self._group = dist.new_group(backend="gloo") if world_size() > 1 else None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *error) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT == self.received:
            raise KeyboardInterrupt
        self.received = signum

    def agreed(self) -> int:
        """The signal that any process has received, or 0: the same answer on all, which must ask together."""
        if self._group is None:
            return self.received
        signum = torch.tensor(self.received)
        dist.all_reduce(signum, dist.ReduceOp.MAX, group=self._group)
        return int(signum)


# -------------------- Failures that no option check can foresee, in words that say what helps.


class ProcessLostError(RuntimeError):
    """Another process of the run died or hangs, so this one cannot go on."""


@contextmanager
def explained(resume: str) -> Iterator[None]:
    """Turn running out of memory, and losing another process, into one sentence.

    resume: what to say of going on later.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise InputError(
                f"Out of memory: {str(error).splitlines()[0].rstrip('.')}. Lower --per_device_batch_size (and raise "
                "--gradient_accumulation_steps as much), lower --crop_size, or give --gradient_checkpointing True or "
                f"--mixed_precision bf16. {resume}"
            ) from error
        if world_size() > 1 and _is_lost_connection(error):
            raise ProcessLostError(
                "Another process of this run ended, or gave no sign for --ddp_timeout seconds, so this one stops too; "
                f"what that process printed says why. {resume}"
            ) from error
        raise


def _is_lost_connection(error: RuntimeError) -> bool:
    """gloo raises plain RuntimeErrors, in many words; of the other backends, torch knows its own."""
    words = ("gloo", "connection", "timeout", "timed out")
    if isinstance(error, dist.DistError):
        return True
    # Not subclasses, such as our own errors, which may name a file with such a word in it.
    return type(error) is RuntimeError and any(word in str(error).lower() for word in words)
