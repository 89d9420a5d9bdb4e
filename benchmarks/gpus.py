"""Several GPUs: whether they train as one does, and how the speed grows with their number.

    python benchmarks/gpus.py                      # 1, 2, 4, ... of the GPUs here; results/gpus.md in ten minutes
    python benchmarks/gpus.py --dry_run            # two processes on the CPU, as small as can be: whether it works
    torchrun --nnodes 2 --nproc_per_node 4 --rdzv_backend c10d --rdzv_endpoint HOST:29500 benchmarks/gpus.py

Processes talk by NCCL on GPUs and gloo on a CPU. For each number of processes:

- The trainer, with the same total batch whatever their number, must log the losses of one process. GPUs use
  synchronised BatchNorm; on a CPU the statistics are frozen, since they would be those of each process.
- A step of CorrMatch with a fixed batch per process: its time, and its share of time where all are as fast as one.
- What the step sends: calls from Python (losses, threshold, BatchNorm) and the gradient, with the rate at which a
  buffer of its size is summed over the processes.
"""

# ruff: noqa: E402 - where `datasets` is missing, its stand-in must be there before the package is imported
from __future__ import annotations

import argparse
import io
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers import convert_sync_batchnorm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, too

from benchmarks import plain_datasets

plain_datasets.install()

from benchmarks.growth import NARROW
from benchmarks.whole_step import confident_method, step_batch
from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, SemiSupervisedTrainer, TrainingConfig
from corrmatch_hf.data.sources.synthetic import synthetic_semi_dataset
from corrmatch_hf.methods import CorrMatch

TOTAL_BATCH = 8  # labelled, and as many unlabelled, of the compared trainings
CALLS = ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce_scatter_tensor")
HEADER = (
    "| processes | losses, furthest from one process's | step, ms | images/s | of perfect scaling | calls a step "
    "| gradient, MiB | summing it, ms | GB/s a process |\n|" + " ---: |" * 9
)


def work(tiny: bool, folder: str) -> dict:
    """What one process measures. The trainer comes last, since it ends the process group."""
    device = "cpu" if tiny else "cuda"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(minutes=3))
    found = step(tiny, device)
    return {**found, "losses": losses(tiny, folder)}


def losses(tiny: bool, folder: str) -> list[dict[str, float]]:
    """The logged losses of a short training."""
    processes = int(os.environ["WORLD_SIZE"])
    torch.manual_seed(0)
    data = synthetic_semi_dataset(labeled=8, unlabeled=16, validation=0)
    model = CorrMatchForSegmentation(
        CorrMatchConfig(
            encoder_name="test_resnet" if tiny else "resnet18", id2label=data.id2label, **(NARROW if tiny else {})
        )
    )  # fmt: skip
    config = TrainingConfig(
        output_dir=f"{folder}/{processes}", max_steps=2 if tiny else 10, logging_steps=1, overwrite=True,
        per_device_batch_size=TOTAL_BATCH // processes, crop_size=33 if tiny else 129, num_workers=0,
        freeze_batch_norm=not torch.cuda.is_available(),
    )  # fmt: skip
    trainer = SemiSupervisedTrainer(CorrMatch(model), data, config)
    trainer._write_everything = lambda log: {}
    with redirect_stdout(io.StringIO()):
        trainer.train()
    if int(os.environ["RANK"]):
        return []
    lines = Path(config.output_dir, "training_log.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in row.items() if name.startswith("loss")}
        for row in map(json.loads, lines)
        if "loss" in row
    ]


def step(tiny: bool, device: str) -> dict[str, float]:
    """A step of data-parallel CorrMatch with a fixed batch per process."""
    encoder, crop, images, options = ("test_resnet", 33, 2, NARROW) if tiny else ("resnet101s", 321, 8, {})
    method = confident_method(encoder, 21, device, **options).to(memory_format=torch.channels_last)
    several = dist.is_initialized()
    if device == "cuda" and several:
        method = convert_sync_batchnorm(method)
    wrapped = torch.nn.parallel.DistributedDataParallel(method) if several else method
    optimizer = torch.optim.SGD(method.parameters(), lr=1e-4, momentum=0.9, fused=True)
    batch, _, _ = step_batch(crop, images, 21, device)
    calls: Counter[str] = Counter()

    def once() -> float:
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss, _ = wrapped(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    with counting(calls):
        once()
    times = [once() for _ in range(2 if tiny else 20)]
    gradient = sum(p.numel() * 4 for p in method.parameters() if p.requires_grad)
    found = {"seconds": statistics.median(times), "images": 2 * images, "calls": calls.total()}
    return found | {"gradient": gradient, "summing": summing(gradient, device) if several else 0.0}


@contextmanager
def counting(calls: Counter[str]) -> Iterator[None]:
    """Count what the processes say to each other from Python; gradients are summed below it."""
    plain = {name: getattr(dist, name) for name in CALLS}

    def counted(name: str):
        def call(*args, **kwargs):
            calls[name] += 1
            return plain[name](*args, **kwargs)

        return call

    with mock.patch.multiple(dist, **{name: counted(name) for name in CALLS}):
        yield


def summing(size: int, device: str) -> float:
    """Seconds of summing a buffer of so many bytes over the processes."""
    buffer, times = torch.zeros(size // 4, device=device), []
    for _ in range(5):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(buffer)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


# --------------------------------------------------------------------------------------------------- the processes


def start(rank: int, processes: int, port: int, tiny: bool, folder: str) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
        "LOCAL_WORLD_SIZE": str(processes), "MASTER_PORT": str(port),
    }  # fmt: skip
    if tiny:
        os.environ |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        torch.set_num_threads(1)
    found = work(tiny, folder)
    if rank == 0:
        Path(folder, f"{processes}.json").write_text(json.dumps(found))
    if dist.is_initialized():
        dist.destroy_process_group()


def line(processes: int, found: dict, one: dict) -> str:
    furthest = max(
        abs(ours[name] - value) / max(abs(value), 1e-2)
        for ours, theirs in zip(found["losses"], one["losses"], strict=True)
        for name, value in theirs.items()
    )
    rate, rate_of_one = (processes * found["images"] / found["seconds"], one["images"] / one["seconds"])
    # A ring sends each part of the buffer twice, but for the process's own.
    sent = 2 * (processes - 1) / processes * found["gradient"]
    speed = f"{sent / found['summing'] / 1e9:.1f}" if found["summing"] else ""
    cells = (
        processes, f"{furthest:.0e}" if processes > 1 else "", f"{1e3 * found['seconds']:.1f}", f"{rate:.1f}",
        f"{100 * rate / rate_of_one / processes:.0f} %", found["calls"], f"{found['gradient'] / 2**20:.0f}",
        f"{1e3 * found['summing']:.1f}" if found["summing"] else "", speed,
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dry_run", action="store_true", help="Two processes on the CPU, small.")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results") / "gpus.md")
    args = parser.parse_args()
    if "RANK" in os.environ:  # one of the processes of torchrun
        tiny = args.dry_run or not torch.cuda.is_available()
        with tempfile.TemporaryDirectory() as folder:
            found = work(tiny, folder)
        if int(os.environ["RANK"]) == 0:
            print(json.dumps({"processes": int(os.environ["WORLD_SIZE"]), **found}))
        return
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # counting GPUs starts no driver here
    here = 2 if args.dry_run else torch.cuda.device_count()
    if here < 2:
        parser.error(f"there are {here} GPUs; this needs two or more, or --dry_run")
    counts = [n for n in (1, 2, 4, 8) if n <= here]
    lines = [
        f"`python benchmarks/gpus.py{' --dry_run' * args.dry_run}`, torch {torch.__version__}.",
        "",
        HEADER,
    ]
    print("\n".join(lines), flush=True)
    found: dict[int, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        for processes in counts:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            try:
                mp.start_processes(
                    start, (processes, port, args.dry_run, folder), nprocs=processes,
                    start_method="fork" if args.dry_run else "spawn",
                )  # fmt: skip
            except Exception as error:  # the rest goes on
                reason = " ".join(str(error).split())[-500:].replace("|", "\\|")
                lines.append(f"| {processes} | **{type(error).__name__}**: {reason} |" + " |" * 7)
            else:
                found[processes] = json.loads(Path(folder, f"{processes}.json").read_text())
                lines.append(line(processes, found[processes], found.get(1, found[processes])))
            print(lines[-1], flush=True)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if len(found) < len(counts):
        sys.exit(1)


if __name__ == "__main__":
    main()
