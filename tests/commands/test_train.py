"""Training as people start it: as a command, with accelerate, with torchrun, on two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corrmatch_hf.commands import run
from corrmatch_hf.data.sources.synthetic import synthetic_image

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "examples" / "train_semi.py")
SMALL = [
    "--encoder_name", "test_resnet", "--encoder_weights", "none", "--aspp_channels", "8", "--decoder_channels", "8",
    "--low_level_channels", "8", "--correlation_channels", "8", "--crop_size", "33", "--max_steps", "2",
    "--logging_steps", "1", "--labeled_count", "4",
]  # fmt: skip
LAUNCHERS = {
    "corrmatch": [sys.executable, "-m", "corrmatch_hf", "train"],
    "corrmatch on 2": [sys.executable, "-m", "corrmatch_hf", "train", "--cpu", "--num_processes", "2",
                       "--main_process_port", "0"],
    "accelerate": [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", SCRIPT],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data set")
    for split, source, count in (("train", "labeled", 10), ("validation", "validation", 5)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            image, mask = synthetic_image(source, i, 48)
            Image.fromarray(image).save(root / split / "images" / f"{i}.png")
            Image.fromarray(mask.astype(np.uint8)).save(root / split / "masks" / f"{i}.png")
    (root / "id2label.json").write_text(json.dumps(dict(enumerate(["ground", "a", "b", "c", "d"]))))
    return root


def start(launcher, *args):
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*LAUNCHERS[launcher], *args], env=env, capture_output=True, text=True, timeout=300, cwd=ROOT
    )


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_run(launcher, folder, tmp_path):
    out = tmp_path / "out"
    batch = "1" if "2" in LAUNCHERS[launcher] else "2"
    done = start(
        launcher,
        "--data_dir",
        str(folder),
        "--output_dir",
        str(out),
        "--per_device_batch_size",
        batch,
        *SMALL,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["final"]["num_images"] == 5, "no validation image is counted twice"
    assert set(metrics["final"]["per_class"]) == {"ground", "a", "b", "c", "d"}
    rows = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    assert done.stdout.count("share %") == 1, "the summary is printed by one process"
    assert "4 labelled, 6 unlabelled" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data_dir", "no/such/folder", "--max_steps", "1"], "no/such/folder"),
        (["--encoder_name", "resnet5O", "--max_steps", "1"], "resnet50"),
        (["--method", "supervized"], "did you mean 'supervised'"),
    ],
)
def test_errors_are_one_sentence(args, message, capsys):
    assert run("train", args) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line and line.startswith("error: ")


def test_an_error_on_two_processes_has_no_traceback():
    done = start("corrmatch on 2", "--data_dir", "no/such/folder", "--max_steps", "1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "error: " in done.stderr and "no/such/folder" in done.stderr
