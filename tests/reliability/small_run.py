"""A training run of about a second, in a process of its own that can be killed, and what it leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, SemiSupervisedTrainer, TrainingConfig
from corrmatch_hf.commands import main
from corrmatch_hf.data.sources.synthetic import synthetic_semi_dataset
from corrmatch_hf.methods import CorrMatch, method_class
from corrmatch_hf.training import TrainingInterrupted, report
from corrmatch_hf.training.checkpoint import list_checkpoints

from .. import fork_server
from ..ports import free_port

STEPS = 6
TIMES = {"seconds", "images_per_second"}  # the only figures that differ between equal runs


DATA = synthetic_semi_dataset(labeled=4, unlabeled=6, validation=3, image_size=48)


def network(cls=CorrMatch, data=DATA) -> CorrMatchForSegmentation:
    return CorrMatchForSegmentation(
        CorrMatchConfig(
            encoder_name="test_resnet",
            output_stride=16,
            aspp_channels=8,
            decoder_channels=8,
            low_level_channels=8,
            correlation_channels=8,
            correlation_head=cls.uses_correlation_head,
            id2label=data.id2label,
        )
    )


# The fork server imports this module, so that its processes need not do again what is done at first use.
network()
Image.init()


def make(
    folder: Path, method: str = "corrmatch", options: dict | None = None, data=DATA, **config
) -> SemiSupervisedTrainer:
    torch.manual_seed(0)
    cls = method_class(method)
    model = network(cls, data)
    settings = {
        "output_dir": str(folder), "per_device_batch_size": 2, "crop_size": 33, "learning_rate": 0.01,
        "logging_steps": 1, "max_steps": STEPS, "eval_steps": 2, "save_steps": 2, "ema_decay": 0.9,
    }  # fmt: skip
    given = cls.Options(**(options or {}))
    return SemiSupervisedTrainer(cls(model, given), data, TrainingConfig(**(settings | config)))


def said_by(folder: Path) -> Path:
    """The file with all that the processes of a run print; outside the folder's own disk, which may be full."""
    return folder.parents[1] / f"{folder.parent.name}-{folder.name}.out"


def train(folder: Path, before=None, env=None, **settings) -> None:
    """Run to the end, or resume what is there; `before(trainer)` may break things first."""
    os.environ.update(env or {})
    _as_from_a_terminal(said_by(folder))
    if list_checkpoints(folder / "checkpoints"):
        settings["resume_from_checkpoint"] = "latest"
    elif folder.exists():
        settings["overwrite"] = True
    multiprocessing.set_start_method(
        "fork", force=True
    )  # of loading processes, as in a run from the command line
    report.write_report = lambda *args: None  # pictures take longer than everything else
    trainer = make(folder, **settings)
    if before is not None:
        before(trainer)
    try:
        trainer.train()
    except TrainingInterrupted as stop:
        print(stop)
        sys.exit(stop.exit_status)


def start(folder: Path, before=None, env=None, **settings) -> multiprocessing.Process:
    """`train` in a process of its own."""
    process = fork_server.CONTEXT.Process(target=train, args=(folder, before, env), kwargs=settings)
    process.start()
    return process


def start_command(output: Path, *args: str) -> multiprocessing.Process:
    """The command `corrmatch ARGS` in such a process; `output` gets all that it prints."""
    process = fork_server.CONTEXT.Process(target=_command, args=(output, args))
    process.start()
    return process


def _command(output: Path, args: tuple[str, ...]) -> None:
    _as_from_a_terminal(output)
    sys.exit(main(list(args)))


def _as_from_a_terminal(output: Path) -> None:
    """Signals end this process also where pytest ignores them (under nohup), and `output` gets all it prints."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sys.stdout = sys.stderr = open(output, "a", buffering=1)  # noqa: SIM115


def finish(folder: Path, before=None, **settings) -> int:
    """The exit status of `train` in a process of its own."""
    process = start(folder, before, **settings)
    process.join()
    return process.exitcode


def start_two(folder: Path, before=None, **settings) -> list[multiprocessing.Process]:
    """`train` in two processes that train together."""
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
    }
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    return [start(folder, before, common | rank, **settings) for rank in ranks]


def statuses(processes: list[multiprocessing.Process]) -> list[int]:
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def left_by(folder: Path) -> dict:
    """Everything of a finished run that has to be the same in an equal one."""
    (checkpoint,) = list_checkpoints(folder / "checkpoints")[-1:]
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    rows = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        "model": load_file(folder / "model.safetensors"),
        "best": load_file(folder / "best" / "model.safetensors"),
        "state of the method": load_file(checkpoint / "model.safetensors"),
        "optimizer": torch.load(checkpoint / "optimizer.bin", weights_only=True),
        "schedule": torch.load(checkpoint / "custom_checkpoint_0.pkl", weights_only=False),
        "average": torch.load(checkpoint / "custom_checkpoint_1.pkl", weights_only=False),
        "state": {k: v for k, v in state.items() if k not in TIMES | {"config"}},
        "log": [{k: v for k, v in row.items() if k not in TIMES} for row in rows],
        "metrics": {k: v for k, v in metrics.items() if k not in TIMES},
    }


def differences(a, b, place: str = "") -> list[str]:
    """Where two such results are not equal bit for bit."""
    if torch.is_tensor(a) and torch.is_tensor(b):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [place]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for key in a for d in differences(a[key], b[key], f"{place}/{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [
            d for i, pair in enumerate(zip(a, b, strict=True)) for d in differences(*pair, f"{place}/{i}")
        ]
    return [] if type(a) is type(b) and a == b else [f"{place}: {a!r} != {b!r}"]


def leftovers(folder: Path) -> list[str]:
    """Half-written or half-deleted things."""
    return [str(p) for p in folder.rglob(".*") if p.name.endswith((".writing", ".old"))]
