"""How the benchmarks measure: two ways of doing the same thing, in turn, in one process.

Times are medians of alternating calls, so that whatever else the machine does falls on both. Extra memory is the
highest resident size during a call above that before it (on a GPU: of allocated memory).
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

Call = Callable[[], object]


@dataclass
class Row:
    """One line of the table: what the same work costs a plain reference and the package.

    `identical`: whether the results are (bit for bit, or as `note` says); None where there is nothing to compare.
    `target`: the ratio to reach; None where none was set.
    """

    what: str
    reference: float
    ours: float
    unit: str  # "ms" or "MiB", or a count
    identical: bool | None
    target: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        return self.reference / self.ours if self.ours else float("inf")


def synchronize(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def milliseconds(
    reference: Call, ours: Call, device: torch.device | str = "cpu", repeats: int = 5
) -> tuple[float, float]:
    """Median wall milliseconds of each, called in turn, after one call of each that does not count."""
    first, second = _alternating(reference, ours, device, repeats, time.perf_counter)
    return statistics.median(first), statistics.median(second)


def least_milliseconds(
    reference: Call, ours: Call, device: torch.device | str = "cpu", repeats: int = 5
) -> tuple[float, float]:
    """As `milliseconds`, for what computes in this process alone: on a CPU the minima of its processor time.

    Other work on the machine only ever adds to it, through the caches.
    """
    if torch.device(device).type != "cpu":
        return milliseconds(reference, ours, device, repeats)
    first, second = _alternating(reference, ours, device, repeats, time.process_time)
    return min(first), min(second)


def _alternating(
    reference: Call, ours: Call, device: torch.device | str, repeats: int, clock: Callable[[], float]
) -> Iterator[tuple[float, ...]]:
    def once(call: Call) -> float:
        synchronize(device)
        start = clock()
        call()
        synchronize(device)
        return (clock() - start) * 1e3

    return zip(*[(once(reference), once(ours)) for _ in range(repeats + 1)][1:], strict=True)


def extra_mib(call: Call, device: torch.device | str = "cpu") -> float:
    """Memory that a call needs at its peak beyond what was there before, its result included. Linux only on a CPU."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    call()  # libraries and threads set up their own memory once
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at the present size
    before = process_kib("VmRSS")
    result = call()
    peak = process_kib("VmHWM")
    del result
    return max(peak - before, 0) / 2**10


def process_kib(field: str) -> int:
    """KiB, from the kernel's account of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")
