"""An Inference Endpoint's handler under load: 200 requests at once, of mixed sizes and forms, some of them bad.

    python benchmarks/endpoint_load.py                      # writes benchmarks/results/endpoint_load.md
    python benchmarks/endpoint_load.py --requests 50 --encoder_name resnet18

A server on the loopback device runs the handler beside a small model, with a thread for each request. Every request is
sent alone first; under load it must get the same answer, and a bad one the same refusal. Memory is the server's.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import io
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, too

from benchmarks.__main__ import machine
from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor
from corrmatch_hf.hub.handler import MAX_CONCURRENT
from corrmatch_hf.hub.push import write_endpoint

ROOT = Path(__file__).resolve().parents[1]
SIZES = ((64, 48), (160, 120), (320, 240), (641, 479), (1280, 960))
ROUNDS = 3
HEADER = (
    "| round | requests | refused, as they should be | wrong answers | requests / s | median, s | p95, s | p99, s "
    "| memory after, MiB |\n| --- |" + " ---: |" * 8
)


@dataclass
class Request:
    """One request: its body, and whether it is one that must be refused."""

    content_type: str
    body: bytes
    bad: bool = False


@dataclass
class Reply:
    """Status, body, and seconds from the start of sending to the last byte."""

    status: int
    body: bytes
    seconds: float


def save_model(folder: Path, encoder_name: str = "test_resnet") -> None:
    """A model with random weights and narrow decoder, with the files of an endpoint."""
    torch.manual_seed(1)
    narrow = {
        "aspp_channels": 32,
        "low_level_channels": 16,
        "decoder_channels": 32,
        "correlation_head": False,
    }
    config = CorrMatchConfig(encoder_name=encoder_name, num_labels=21, **narrow)
    CorrMatchForSegmentation(config).save_pretrained(folder)
    CorrMatchImageProcessor().save_pretrained(folder)
    write_endpoint(folder)


def requests(sizes=SIZES) -> list[Request]:
    """Photos of every size as JPEG and PNG, as the body itself and as base64; then the bad ones."""
    found = []
    for seed, (width, height) in enumerate(sizes):
        noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        photo = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        for form in ("JPEG", "PNG"):
            stream = io.BytesIO()
            photo.save(stream, form)
            content = stream.getvalue()
            found.append(Request(f"image/{form.lower()}", content))
            found.append(Request("application/json", _json(content)))
    cut = content[: len(content) // 2]
    found.append(Request("application/json", _json(cut), bad=True))
    found.append(Request("application/json", _json(b"no picture"), bad=True))
    found.append(Request("application/json", b'{"inputs": []}', bad=True))
    return found


def _json(content: bytes) -> bytes:
    return json.dumps({"inputs": base64.b64encode(content).decode()}).encode()


@contextlib.contextmanager
def served(folder: Path, threads: int | None = None) -> Iterator[tuple[int, int]]:
    """Port and process id of a server of the model in `folder`; `threads` of torch, by default one for each core."""
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "HF_HUB_OFFLINE": "1"}
    environment.pop("OMP_NUM_THREADS", None)
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    script = ROOT / "tests" / "hub" / "endpoint_server.py"
    with (
        tempfile.TemporaryDirectory() as home,
        subprocess.Popen(
            [sys._base_executable, "-s", str(script), str(folder)],
            env=environment | {"HF_HOME": home},
            cwd=home,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("The server did not start; its error stands above.")
            yield int(line), process.pid
        finally:
            process.kill()


def send(port: int, request: Request) -> Reply:
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request("POST", "/", request.body, {"Content-Type": request.content_type})
        response = connection.getresponse()
        return Reply(response.status, response.read(), time.perf_counter() - start)
    finally:
        connection.close()


def together(port: int, batch: list[Request]) -> tuple[list[Reply], float]:
    """All at once, a thread each -> the replies in order, and the seconds until the last. A failure is status 0."""
    replies: list[Reply] = [Reply(0, b"", 0.0)] * len(batch)
    start_together = threading.Barrier(len(batch) + 1)

    def run(i: int) -> None:
        start_together.wait()
        with contextlib.suppress(OSError, http.client.HTTPException):
            replies[i] = send(port, batch[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(batch))]
    for thread in threads:
        thread.start()
    start_together.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return replies, time.perf_counter() - start


def memory(pid: int, field: str = "VmRSS") -> float:
    """MiB that a process holds now, or (VmHWM) has held at most. Linux only."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 2**10
    raise RuntimeError(f"/proc/{pid}/status has no {field}")


def row(name: str, batch: list[Request], replies: list[Reply], seconds: float, alone: dict, pid: int) -> str:
    refused = sum(each.bad and reply.status == 400 for each, reply in zip(batch, replies, strict=True))
    wrong = sum(
        (reply.status, reply.body) != alone[each.body] for each, reply in zip(batch, replies, strict=True)
    )
    times = sorted(reply.seconds for reply in replies)
    p95, p99 = (times[min(int(share * len(times)), len(times) - 1)] for share in (0.95, 0.99))
    cells = (name, len(batch), refused, wrong, f"{len(batch) / seconds:.1f}")
    figures = (f"{each:.2f}" for each in (statistics.median(times), p95, p99))
    return "| " + " | ".join(map(str, (*cells, *figures, f"{memory(pid):.0f}"))) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=200, help="At once (default: 200).")
    parser.add_argument("--encoder_name", default="test_resnet", help="timm name (default: test_resnet).")
    parser.add_argument(
        "--threads", type=int, help="CPU threads of torch in the server (default: its own choice)."
    )
    parser.add_argument(
        "--output", help="Markdown file; by default results/endpoint_load.md beside this file."
    )
    args = parser.parse_args()

    kinds = requests()
    batch = [kinds[i % len(kinds)] for i in range(args.requests)]
    lines = [HEADER]
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), args.encoder_name)
        with served(Path(folder), args.threads) as (port, pid):
            before = memory(pid)
            replies = [send(port, each) for each in kinds]
            alone = {
                each.body: (reply.status, reply.body) for each, reply in zip(kinds, replies, strict=True)
            }
            lines.append(
                row("alone, one by one", kinds, replies, sum(r.seconds for r in replies), alone, pid)
            )
            for name in ("warm-up", *(f"round {i + 1}" for i in range(ROUNDS))):
                lines.append(row(name, batch, *together(port, batch), alone, pid))
                print(lines[-1], file=sys.stderr, flush=True)
            peak = memory(pid, "VmHWM")
    concurrent = os.environ.get("CORRMATCH_MAX_CONCURRENT", MAX_CONCURRENT)
    sizes = f"{SIZES[0][0]} x {SIZES[0][1]} to {SIZES[-1][0]} x {SIZES[-1][1]}"
    text = (
        f"# The endpoint under load\n\n`python benchmarks/endpoint_load.py` on {machine('cpu')}:\n{args.requests} "
        f"requests at once to {args.encoder_name}, 21 classes, {sizes} pixels, JPEG and PNG,\n3 of {len(kinds)} kinds "
        f"bad. The server has a thread for each request; its handler works on {concurrent} at a time.\n\n"
        + "\n".join(lines)
        + f"\n\nMemory of the server: {before:.0f} MiB with the model loaded, {peak:.0f} MiB at its peak.\n"
    )
    print(text)
    path = Path(args.output) if args.output else Path(__file__).with_name("results") / "endpoint_load.md"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
