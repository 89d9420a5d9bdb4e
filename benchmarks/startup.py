"""From the command to its first result, in new processes: against what its imports, data and model cost alone.

CPU seconds of whole processes, started in turn, so that what else the machine does falls on both.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from corrmatch_hf import CorrMatchImageProcessor
from corrmatch_hf.methods import CorrMatch
from corrmatch_hf.training.memory import activation_bytes, blank_batch

from .evaluation import pictures
from .inference import network
from .measure import Row

REPEATS = 3
LOAD = """
import timm, torch, transformers
from corrmatch_hf import CorrMatchForSegmentation, CorrMatchImageProcessor
CorrMatchForSegmentation.from_pretrained("model").eval()
CorrMatchImageProcessor.from_pretrained("model")
"""
PREDICT = """
from corrmatch_hf.commands import main
assert main(["predict", "validation/images/0000.jpg", "--model", "model"]) == 0
"""
DATA_AND_MODEL = """
import accelerate, datasets, timm, torch, transformers
from corrmatch_hf.commands.model_options import ModelOptions
from corrmatch_hf.data import load_semi_dataset
data = load_semi_dataset(data_dir=".", train_split="validation", num_labels=11, labeled_count=8)
ModelOptions(encoder_name="resnet50", encoder_weights="none").build(data, correlation_head=True)
"""
TRAIN = """
import os
from corrmatch_hf.commands import main
from corrmatch_hf.training.trainer import SemiSupervisedTrainer
SemiSupervisedTrainer._loop = lambda *_: os._exit(0)
main("train --data_dir . --train_split validation --num_labels 11 --labeled_count 8 --encoder_name resnet50"
     " --encoder_weights none --max_steps 1 --method corrmatch --overwrite --output_dir run".split())
"""
ESTIMATE = 0.3  # seconds, at most


def rows(device: str) -> Iterator[Row]:
    if device != "cpu":
        return
    with tempfile.TemporaryDirectory() as folder:
        pictures(Path(folder), 240, 320, 24)
        network().save_pretrained(Path(folder, "model"))
        CorrMatchImageProcessor().save_pretrained(Path(folder, "model"))
        yield Row(
            "`predict` of one photo, ResNet-50, against importing torch, timm and transformers and loading the model",
            *cpu_seconds(LOAD, PREDICT, folder), "CPU s", None, 0.87,
        )  # fmt: skip
        yield Row(
            "`train` up to its first step, ResNet-50, crop 321, against imports, data and model",
            *cpu_seconds(DATA_AND_MODEL, TRAIN, folder), "CPU s", None, 0.91,
        )  # fmt: skip
    method = CorrMatch(network())
    found, times = [], []
    for where in ("cpu", "meta"):
        start = time.process_time()
        found.append(activation_bytes(method, blank_batch(method, 1, 1, 321, torch.device(where))))
        times.append(time.process_time() - start)
    yield Row(
        "memory estimate of a CorrMatch step, against a forward pass",
        *times, "CPU s", abs(found[1] / found[0] - 1) < 0.01, round(times[0] / ESTIMATE, 1), "bytes within 1 %",
    )  # fmt: skip


def cpu_seconds(reference: str, ours: str, folder: str) -> tuple[float, float]:
    """Median CPU seconds of processes that run the code in `folder`, started in turn."""
    spent: tuple[list[float], list[float]] = [], []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    for _ in range(REPEATS):
        for code, seconds in zip((reference, ours), spent, strict=True):
            with tempfile.TemporaryFile() as output:
                process = subprocess.Popen(
                    [sys.executable, "-c", code],
                    cwd=folder,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                if process.returncode:
                    output.seek(0)
                    raise RuntimeError(f"a process ended with {process.returncode}: {output.read()[-800:]!r}")
            seconds.append(usage.ru_utime + usage.ru_stime)
    return statistics.median(spent[0]), statistics.median(spent[1])
