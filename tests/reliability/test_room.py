"""Where disk or memory are short: said in time, nothing that was saved is lost, and the trained model neither."""

import os
import subprocess
import tempfile
from functools import partial

import pytest
import torch

from corrmatch_hf import CorrMatchForSegmentation
from corrmatch_hf.errors import InputError
from corrmatch_hf.methods import METHODS
from corrmatch_hf.training.checkpoint import find_corruption, list_checkpoints
from corrmatch_hf.training.memory import activation_bytes, blank_batch

from .small_run import differences, finish, left_by, leftovers, make, said_by


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True
    ).returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill_up(folder, left):
    """Take all room but `left` bytes."""
    free = os.statvfs(folder)
    with (folder / "ballast").open("wb") as file:
        file.write(bytes(max(free.f_bavail * free.f_bsize - left, 0)))


def fill_in_step(trainer, step, folder, left, temporary):
    tempfile.tempdir = str(temporary)
    take_step = trainer._optimizer_step

    def filling(*args):
        if trainer.step + 1 == step:
            fill_up(folder, left)
        return take_step(*args)

    trainer._optimizer_step = filling


def test_a_full_disk_costs_neither_checkpoint_nor_model(tmp_path, small_disk, whole):
    folder, temporary = small_disk / "run", tmp_path / "temporary"
    temporary.mkdir()
    before = partial(fill_in_step, step=3, folder=small_disk, left=300_000, temporary=temporary)
    assert finish(folder, before) == 1
    said = said_by(folder).read_text()
    assert "could not save the checkpoint of step 4" in said and "0 MiB are free" in said
    assert "No space left on device" in said
    assert [(p.name, find_corruption(p)) for p in list_checkpoints(folder / "checkpoints")] == [
        ("step_00000002", None)
    ]
    assert leftovers(folder) == [], "what could not be written whole takes no room"
    (rescued,) = temporary.iterdir()
    assert f"SaveError: The result could not be saved in the output folder {folder}" in said
    assert f"The trained model is in {rescued} instead" in said
    model = CorrMatchForSegmentation.from_pretrained(rescued)
    assert differences(dict(model.state_dict()), whole["model"]) == []
    assert (rescued / "metrics.json").is_file()

    (small_disk / "ballast").unlink()
    assert finish(folder) == 0
    assert differences(left_by(folder), whole) == []


def test_without_any_room_the_last_checkpoint_still_has_everything(tmp_path, small_disk, whole):
    folder = small_disk / "run"
    before = partial(fill_in_step, step=6, folder=small_disk, left=0, temporary=small_disk)
    assert finish(folder, before) == 1
    assert "; nor in" in said_by(folder).read_text()
    assert [find_corruption(p) for p in list_checkpoints(folder / "checkpoints")] == [None, None]
    (small_disk / "ballast").unlink()
    assert finish(folder) == 0
    assert differences(left_by(folder), whole) == []


def free_again_in_step(trainer, folder):
    fill_in_step(trainer, 1, folder, 0, folder)
    step = trainer._optimizer_step

    def freeing(*args):
        if trainer.step + 1 == 4:
            (folder / "ballast").unlink()
        return step(*args)

    trainer._optimizer_step = freeing


def test_the_log_is_made_good_when_there_is_room_again(small_disk, whole):
    assert finish(small_disk / "run", partial(free_again_in_step, folder=small_disk)) == 0
    assert "training_log.jsonl cannot be written" in said_by(small_disk / "run").read_text()
    assert left_by(small_disk / "run")["log"] == whole["log"]


# ------------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("method", METHODS)
def test_the_estimate_is_what_a_step_keeps(tmp_path, method):
    """From one labelled and one unlabelled image to four of each."""
    options = {"dgcl_memory_size": 64} if method == "dgcl" else None
    trainer = make(tmp_path / "run", method, options, per_device_batch_size=4, ema_decay=None, crop_size=65)
    step = trainer.method.supervised_passes  # the first with unlabelled images
    batch = blank_batch(trainer.method, 4, 4, 65, torch.device("cpu"), step)
    state = {k: v.clone() for k, v in trainer.method.state_dict().items()}
    actual = activation_bytes(trainer.method, batch)
    # Of dgcl's memories, a part does not grow with the batch: so small a one is overestimated.
    most = 1.6 if method == "dgcl" else 1.25
    assert 0.8 * actual < trainer.memory_estimate.activations < most * actual
    assert activation_bytes(
        trainer.method, blank_batch(trainer.method, 4, 4, 65, torch.device("meta"), step)
    ) == (pytest.approx(actual, rel=0.01)), "no arithmetic is needed to know sizes"
    assert all(torch.equal(v, state[k]) for k, v in trainer.method.state_dict().items()), (
        "trying leaves no trace"
    )
    floats = [p.numel() * 4 for p in trainer.method.parameters() if p.requires_grad]
    assert trainer.memory_estimate.weights >= 3 * sum(floats), "weights, gradients, momentum"


def test_the_size_of_a_checkpoint_is_foreseen(tmp_path):
    trainer = make(tmp_path / "run", optimizer="adamw", max_steps=2)
    trainer.train()
    (checkpoint, *_) = list_checkpoints(tmp_path / "run" / "checkpoints")
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    assert trainer.memory_estimate.checkpoint == pytest.approx(size, rel=0.2)


def test_what_will_hardly_fit_is_said(tmp_path):
    estimate = make(tmp_path / "run").memory_estimate
    said = estimate.summary(torch.device("cpu"), tmp_path, 2)
    assert "memory of a step" in said and "warning" not in said
    huge = estimate._replace(activations=2**50, checkpoint=2**60)
    said = huge.summary(torch.device("cpu"), tmp_path, 2)
    assert "lower --per_device_batch_size" in said and "lower --max_checkpoints" in said


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."
        ),
    ],
)
def test_out_of_memory_names_the_options_that_help(tmp_path, error):
    trainer = make(tmp_path / "run", save_steps=1)
    step = trainer._optimizer_step

    def failing(*args):
        if trainer.step == 2:
            raise error
        return step(*args)

    trainer._optimizer_step = failing
    with pytest.raises(InputError, match=r"Out of memory: .*--per_device_batch_size.*--mixed_precision bf16"):
        trainer.train()
    assert [p.name for p in list_checkpoints(tmp_path / "run" / "checkpoints")] == [
        "step_00000001",
        "step_00000002",
    ]
