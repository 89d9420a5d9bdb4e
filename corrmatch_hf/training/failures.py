"""Failures that no option check can foresee, in words that say what helps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from ..errors import InputError
from ..ops.distributed import world_size


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
