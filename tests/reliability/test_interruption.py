"""A run killed at any moment and resumed ends as one that was never interrupted, bit for bit."""

import json
import os
import random
import shutil
import signal
import time
from functools import partial

import pytest

from corrmatch_hf.errors import InputError
from corrmatch_hf.training.checkpoint import find_checkpoint, find_corruption, list_checkpoints

from .small_run import differences, finish, left_by, leftovers, said_by, start, start_command

KILLED = -signal.SIGKILL


def die():
    os.kill(os.getpid(), signal.SIGKILL)


# Each of these makes the process kill itself at one moment; `count` times it is let pass before.


def in_a_step(trainer, count):
    backward, seen = trainer.accelerator.backward, []

    def dying(loss):
        seen.append(1)
        die() if len(seen) > count else backward(loss)

    trainer.accelerator.backward = dying


def in_evaluation(trainer, count):
    from corrmatch_hf.evaluation import evaluate

    predict, seen = evaluate.predict_probabilities, []

    def dying(*args, **kwargs):
        seen.append(1)
        return die() if len(seen) > count else predict(*args, **kwargs)

    evaluate.predict_probabilities = dying


def in_a_file_of_the_checkpoint(trainer, count):
    import torch

    save, seen = torch.save, []

    def dying(value, file, *args, **kwargs):
        seen.append(1)
        save(value, file, *args, **kwargs)
        if len(seen) > count:
            os.truncate(file, os.path.getsize(file) // 2)
            die()

    torch.save = dying


def before(module_name, function, trainer, count):
    """Right before that function of that module is called."""
    from importlib import import_module

    module = import_module(module_name)
    original, seen = getattr(module, function), []

    def dying(*args, **kwargs):
        seen.append(1)
        return die() if len(seen) > count else original(*args, **kwargs)

    setattr(module, function, dying)


def while_rotating(trainer, count):
    from corrmatch_hf.training import atomic_write

    remove = shutil.rmtree

    def dying(path, *args, **kwargs):
        if path.name.startswith(".step_") and path.exists():
            next(p for p in path.iterdir() if p.name == "model.safetensors").unlink()
            die()
        remove(path, *args, **kwargs)

    atomic_write.shutil = type("shutil", (), {"rmtree": staticmethod(dying)})


def in_a_line_of_the_log(trainer, count):
    from corrmatch_hf.training.log import TrainingLog

    add, seen = TrainingLog.add, []

    def dying(self, row):
        seen.append(1)
        if len(seen) <= count:
            return add(self, row)
        with self.path.open("a") as file:
            file.write('{"step": 3, "los')
        die()

    TrainingLog.add = dying


before_renaming = partial(before, "corrmatch_hf.training.checkpoint", "move_folder", count=0)


def before_best_is_renamed(trainer):
    from pathlib import Path

    rename = Path.rename
    Path.rename = lambda self, path: die() if self.name == ".best.writing" else rename(self, path)


# In this order: every process goes on where the one before it was killed. Steps 2, 4 and 6 save, then evaluate.
MOMENTS = {
    "in the first step": partial(in_a_step, count=0),
    "in the first checkpoint's files": partial(in_a_file_of_the_checkpoint, count=1),
    "before its checksums": partial(before, "corrmatch_hf.training.checkpoint", "write_checksums", count=0),
    "before its renaming": before_renaming,
    "in evaluation": partial(in_evaluation, count=1),
    "before the best model is written": partial(
        before, "corrmatch_hf.training.report", "replaced_folder", count=0
    ),
    "before the best model's renaming": before_best_is_renamed,
    "in a step after it": partial(in_a_step, count=1),
    "in a line of the log": partial(in_a_line_of_the_log, count=1),
    "in the second checkpoint's files": partial(in_a_file_of_the_checkpoint, count=1),
    "before rotating": partial(before, "corrmatch_hf.training.checkpoint", "rotate", count=0),
    "in the last checkpoint's files": partial(in_a_file_of_the_checkpoint, count=1),
    "before the last's renaming": before_renaming,
    "while rotating": partial(while_rotating, count=0),
    "in the final evaluation": partial(in_evaluation, count=1),
    "before the final model is written": partial(
        before, "corrmatch_hf.training.report", "replaced_files", count=0
    ),
    "before the figures": partial(before, "corrmatch_hf.training.report", "write_text", count=0),
    "before the report": partial(before, "corrmatch_hf.training.report", "write_report", count=0),
}


def test_killed_at_every_moment(tmp_path, whole):
    folder = tmp_path / "run"
    for moment, kill in MOMENTS.items():
        assert finish(folder, kill) == KILLED, moment
        for path in list_checkpoints(folder / "checkpoints"):
            assert find_corruption(path) is None, f"{moment}: a checkpoint is whole or not there"
    assert finish(folder) == 0
    assert differences(left_by(folder), whole) == []
    assert leftovers(folder) == []


def test_killed_at_random_moments(tmp_path):
    settings = {"num_workers": 2, "save_steps": 1}
    rng = random.Random(0)
    whole, folder = tmp_path / "whole", tmp_path / "run"
    started = time.perf_counter()
    assert finish(whole, **settings) == 0
    length = time.perf_counter() - started
    for _ in range(3):
        process = start(folder, **settings)
        process.join(rng.uniform(0.3, 0.9) * length)
        process.kill()
        process.join()
        assert process.exitcode in (0, KILLED), said_by(folder).read_text()
    assert finish(folder, **settings) == 0, said_by(folder).read_text()
    assert differences(left_by(folder), left_by(whole)) == []
    assert leftovers(folder) == []


# ----------------------------------------------------------------------------------------- damaged checkpoints


def truncate(path):
    os.truncate(path / "optimizer.bin", 100)


def flip_a_bit(path):
    content = bytearray((path / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "model.safetensors").write_bytes(content)


def lose_a_file(path):
    (path / "random_states_0.pkl").unlink()


def lose_the_checksums(path):
    (path / "checksums.json").unlink()


def cut_the_checksums(path):
    os.truncate(path / "checksums.json", 50)


@pytest.mark.parametrize(
    "break_it, named",
    [
        (truncate, r"optimizer.bin has 100 of \d+ bytes"),
        (flip_a_bit, "model.safetensors does not match its checksum"),
        (lose_a_file, "random_states_0.pkl is missing"),
        (lose_the_checksums, "checksums.json is missing"),
        (cut_the_checksums, "checksums.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, finished, break_it, named):
    folder = tmp_path / "checkpoints"
    shutil.copytree(finished / "checkpoints", folder)
    older, newest = list_checkpoints(folder)
    assert find_checkpoint("latest", folder) == newest
    break_it(newest)
    with pytest.warns(UserWarning, match=rf"{newest.name} is corrupt \({named}\); trying the one before"):
        assert find_checkpoint("latest", folder) == older
    with pytest.raises(InputError, match=f"corrupt .{named}.; name another"):
        find_checkpoint(str(newest), folder)
    break_it(older)
    with pytest.warns(UserWarning), pytest.raises(InputError, match="no whole checkpoint"):
        find_checkpoint("latest", folder)


def test_going_on_from_the_checkpoint_before_ends_the_same(tmp_path, finished, whole):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    truncate(list_checkpoints(folder / "checkpoints")[-1])
    assert finish(folder) == 0
    assert differences(left_by(folder), whole) == []


# ---------------------------------------------------------------------------------------------------- signals


def signalled(trainer, signum):
    """In step three, to this process and its loading processes, as a terminal and a cluster do."""
    take_step = trainer._optimizer_step

    def step(*args):
        if trainer.step == 2:
            os.killpg(os.getpgrp(), signum)
        return take_step(*args)

    os.setpgrp()
    trainer._optimizer_step = step


@pytest.mark.parametrize(
    "signum, status, workers", [(signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 0), (signal.SIGHUP, 129, 0)]
)
def test_a_signal_ends_the_run_after_its_step_saved(tmp_path, whole, signum, status, workers):
    folder = tmp_path / "run"
    assert finish(folder, partial(signalled, signum=signum), num_workers=workers, save_steps=None) == status
    (only,) = list_checkpoints(folder / "checkpoints")
    assert only.name == "step_00000003" and find_corruption(only) is None
    assert finish(folder) == 0
    assert differences(left_by(folder), whole) == []


def interrupted_twice(trainer):
    def hanging(*args):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    trainer._optimizer_step = hanging


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    started = time.perf_counter()
    assert finish(tmp_path / "run", interrupted_twice) == 1  # KeyboardInterrupt
    assert time.perf_counter() - started < 30
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []


def test_the_command_says_what_happened(tmp_path):
    folder = tmp_path / "run"
    process = start_command(
        tmp_path / "said", "train", "--output_dir", str(folder), "--encoder_name", "test_resnet", "--decoder_channels",
        "8", "--crop_size", "33", "--max_steps", "100000", "--logging_steps", "1",
    )  # fmt: skip
    log = folder / "training_log.jsonl"
    while not (log.exists() and log.stat().st_size) and process.is_alive():
        time.sleep(0.1)
    process.terminate()
    process.join(120)
    said = (tmp_path / "said").read_text()
    assert process.exitcode == 143, said
    (only,) = list_checkpoints(folder / "checkpoints")
    step = json.loads((only / "trainer_state.json").read_text())["step"]
    assert (
        f"Stopped by SIGTERM after step {step}; saved {only}. Resume with --resume_from_checkpoint latest."
        in said
    )
    assert "Traceback" not in said
