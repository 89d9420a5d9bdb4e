"""Training as a command: in one process, in two that the command starts, and its errors."""

import json
import warnings
from pathlib import Path

import pytest

import corrmatch_hf
from corrmatch_hf.commands import run

from ..conftest import write_synthetic

SMALL = [
    "--encoder_name", "test_resnet", "--encoder_weights", "none", "--aspp_channels", "8", "--decoder_channels", "8",
    "--low_level_channels", "8", "--correlation_channels", "8", "--crop_size", "33", "--max_steps", "2",
    "--logging_steps", "1", "--labeled_count", "4",
]  # fmt: skip
ON_TWO = ["--cpu", "--num_processes", "2", "--main_process_port", "0"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """The launcher adds variables of its own, which the processes inherit."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("CORRMATCH_COMMAND", "")
    monkeypatch.setenv("PYTHONPATH", str(Path(corrmatch_hf.__file__).parents[1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data set")
    write_synthetic(root, labeled=10, validation=5)
    (root / "id2label.json").write_text(json.dumps(dict(enumerate(["ground", "a", "b", "c", "d"]))))
    return root


def status_of(*args):
    """Of the command; with several processes, it ends itself."""
    try:
        return run("train", args)
    except SystemExit as stopped:
        return stopped.code


@pytest.mark.parametrize(("launcher", "batch"), [([], "2"), (ON_TWO, "1")], ids=["one", "two"])
def test_a_run_in_one_and_in_two_processes(launcher, batch, folder, tmp_path, capfd):
    out = tmp_path / "out"
    data = ["--data_dir", str(folder), "--output_dir", str(out), "--per_device_batch_size", batch]
    with warnings.catch_warnings(record=True) as own:
        status = status_of(*launcher, *data, *SMALL, "--pyramid_channels", "8", "8", "8", "8")
    printed = capfd.readouterr()
    assert status == 0, printed.err[-3000:]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["final"]["num_images"] == 5, "no validation image is counted twice"
    assert set(metrics["final"]["per_class"]) == {"ground", "a", "b", "c", "d"}
    rows = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    assert printed.out.count("share %") == 1, "the summary is printed by one process"
    assert "4 labelled, 6 unlabelled" in printed.out
    told = printed.err + "".join(str(warning.message) for warning in own)
    assert told.count("which does nothing with --decoder deeplabv3plus") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data_dir", "no/such/folder", "--max_steps", "1"], "no/such/folder"),
        (["--encoder_name", "resnet5O", "--max_steps", "1"], "resnet50"),
        (["--method", "supervized"], "did you mean 'supervised'"),
    ],
)
def test_errors_are_one_sentence(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no earlier run is
    assert run("train", args) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line and line.startswith("error: ")


def test_a_folder_in_use_is_refused_before_the_encoder_is_downloaded(tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    assert run("train", ["--encoder_name", "resnet50", "--output_dir", str(tmp_path)]) == 1
    assert "is not empty" in capsys.readouterr().err


def test_an_error_in_two_processes_has_no_traceback(tmp_path, monkeypatch, capfd):
    """The processes are stand-ins that fail as the command does, since importing takes longer than all else."""
    stand_in = tmp_path / "corrmatch_hf"
    stand_in.mkdir()
    (stand_in / "__main__.py").write_text(
        "import os, sys; sys.exit(f'error: {sys.argv[1:]} of {os.environ[\"WORLD_SIZE\"]}')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert status_of(*ON_TWO, "--data_dir", "no/such/folder") == 1
    printed = capfd.readouterr().err
    assert "error: ['train', '--data_dir', 'no/such/folder'] of 2" in printed and "Traceback" not in printed
