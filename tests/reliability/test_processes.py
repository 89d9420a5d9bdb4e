"""Two processes train as one does; where one of them fails, the other ends in time, and nothing is lost."""

import dataclasses
import os
import shutil
import signal
import time
from functools import partial

import pytest

from corrmatch_hf.data.sources.synthetic import synthetic_semi_dataset
from corrmatch_hf.errors import InputError
from corrmatch_hf.training.checkpoint import find_corruption, list_checkpoints

from .small_run import differences, finish, left_by, leftovers, said_by, start_two, statuses

HALF = {"per_device_batch_size": 1, "freeze_batch_norm": True}
WHOLE = {"per_device_batch_size": 2, "freeze_batch_norm": True}


def skipped_by_the_second(trainer):
    if trainer.accelerator.process_index == 1 and not trainer.config.resume_from_checkpoint:
        trainer.skipped.append("b.jpg cannot be read")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What an uninterrupted run of two processes leaves, the second of which skipped an image."""
    folder = tmp_path_factory.mktemp("two") / "run"
    assert statuses(start_two(folder, skipped_by_the_second, **HALF)) == [0, 0], said_by(folder).read_text()
    return left_by(folder)


def test_losses_are_those_of_one_process(tmp_path, two):
    assert finish(tmp_path / "run", **WHOLE) == 0
    one = left_by(tmp_path / "run")
    assert [row["step"] for row in one["log"]] == [row["step"] for row in two["log"]]
    for ours, theirs in zip(one["log"], two["log"], strict=True):
        for name in ours.keys() & {"loss", "threshold", *(k for k in ours if k.startswith("loss/"))}:
            assert theirs[name] == pytest.approx(ours[name], abs=1e-5), (ours["step"], name)


def test_an_image_that_one_process_skipped_is_reported_by_the_run(two):
    assert two["metrics"]["skipped"] == ["b.jpg cannot be read"]


def in_step_three_of_the_second(trainer, action):
    skipped_by_the_second(trainer)
    step = trainer._optimizer_step

    def acting(*args):
        if trainer.step == 2 and trainer.accelerator.process_index == 1:
            action()
        return step(*args)

    trainer._optimizer_step = acting


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(600)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("action", [die, hang])
def test_a_process_that_is_lost_ends_the_others_in_time(tmp_path, two, action):
    folder = tmp_path / "run"
    settings = HALF | {"ddp_timeout": 10 if action is hang else 600}
    started = time.monotonic()
    first, second = start_two(folder, partial(in_step_three_of_the_second, action=action), **settings)
    first.join()
    assert time.monotonic() - started < 120, "long before the other's sleep or the other's limit"
    second.kill()
    assert first.exitcode == 1
    said = said_by(folder).read_text()
    assert (
        "ProcessLostError: Another process of this run ended, or did not respond for --ddp_timeout seconds"
        in said
    )
    assert [(p.name, find_corruption(p)) for p in list_checkpoints(folder / "checkpoints")] == [
        ("step_00000002", None)
    ]
    assert statuses(start_two(folder, **HALF)) == [0, 0]
    assert differences(left_by(folder), two) == [] and leftovers(folder) == []


def test_a_signal_to_one_ends_both_after_the_same_step(tmp_path, two):
    """Two processes go on from there as if nothing had happened; one does, up to rounding."""
    folder = tmp_path / "run"
    before = partial(in_step_three_of_the_second, action=terminate)
    assert statuses(start_two(folder, before, **HALF, save_steps=None)) == [143, 143]
    (only,) = list_checkpoints(folder / "checkpoints")
    assert only.name == "step_00000003" and find_corruption(only) is None
    alone = shutil.copytree(folder, tmp_path / "alone")
    assert statuses(start_two(folder, **HALF)) == [0, 0]
    assert differences(left_by(folder), two) == []

    assert finish(alone, **WHOLE) == 0
    said = said_by(alone).read_text()
    assert "was written by 2 processes and there are 1 now" in said
    assert "BatchNorm's statistics" in said, "it says what cannot be the same"
    losses = [[row["loss"] for row in run["log"] if "loss" in row] for run in (left_by(alone), two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def evaluation_fails_in_the_second(trainer):
    """After step four and the last one, with a photo that only this process reads."""
    from corrmatch_hf.evaluation import evaluate

    predict = evaluate.predict_probabilities

    def failing(*args, **kwargs):
        if trainer.accelerator.process_index == 1 and trainer.step in (4, 6):
            raise InputError("photo.png is damaged.")
        return predict(*args, **kwargs)

    evaluate.predict_probabilities = failing


def test_an_evaluation_that_fails_in_one_process_costs_its_figures_only(tmp_path, two):
    folder = tmp_path / "run"
    assert statuses(start_two(folder, evaluation_fails_in_the_second, **HALF)) == [1, 1]
    said = said_by(folder).read_text()
    assert "the evaluation after step 4 failed: photo.png is damaged. The training goes on" in said
    assert said.count("EvaluationError: The trained model is saved in") == 2
    left = left_by(folder)
    assert left["metrics"]["final"] is None and left["metrics"]["best"]["step"] == 2
    assert differences(left["model"], two["model"]) == [] and [
        r["step"] for r in left["log"] if "mean_iou" in r
    ] == [2]
    assert statuses(start_two(folder, **HALF)) == [0, 0]
    assert left_by(folder)["metrics"]["final"] == two["metrics"]["final"]


def test_shards_of_a_stream_are_resumed_to_the_bit(tmp_path):
    data = synthetic_semi_dataset(labeled=4, unlabeled=7, validation=3, image_size=48)
    data = dataclasses.replace(data, unlabeled=data.unlabeled.to_iterable_dataset(num_shards=3))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert statuses(start_two(whole, data=data, **HALF)) == [0, 0], said_by(whole).read_text()
    before = partial(in_step_three_of_the_second, action=die)
    first, second = start_two(stopped, before, data=data, **HALF)
    assert 0 not in statuses([first, second])
    (checkpoint,) = list_checkpoints(stopped / "checkpoints")
    assert {path.name for path in checkpoint.glob("stream_*.json")} == {"stream_0.json", "stream_1.json"}
    assert statuses(start_two(stopped, data=data, **HALF)) == [0, 0], said_by(stopped).read_text()
    ours, theirs = left_by(stopped), left_by(whole)
    assert differences({**ours, "state": 0, "metrics": 0}, {**theirs, "state": 0, "metrics": 0}) == []
