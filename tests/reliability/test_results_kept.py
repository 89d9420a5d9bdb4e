"""What was trained is never lost, and figures never stand beside other weights than those they were measured on."""

import errno
import io
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from corrmatch_hf import CorrMatchForSegmentation, load_semi_dataset
from corrmatch_hf.commands import run
from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation import evaluate_segmentation
from corrmatch_hf.evaluation.evaluate import OtherProcessFailed
from corrmatch_hf.training import EvaluationError, TrainingInterrupted, checkpoint, output_lock, report
from corrmatch_hf.training.checkpoint import find_corruption, list_checkpoints
from corrmatch_hf.training.log import TrainingLog
from corrmatch_hf.training.output_folder import LOCK, check_output_folder
from corrmatch_hf.training.output_lock import OutputLock

from ..conftest import write_synthetic
from ..two_processes import in_two_processes
from .small_run import differences, load_file, make


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of a run without a report, whose pictures take longer than everything else."""
    monkeypatch.setattr(report, "write_report", lambda *args: None)
    return tmp_path / "run"


def in_step(trainer, step, action):
    """Call `action` before that optimiser step."""
    take_step = trainer._optimizer_step

    def acting(*args):
        if trainer.step + 1 == step:
            action()
        return take_step(*args)

    trainer._optimizer_step = acting


def figures(path):
    return json.loads((path / "metrics.json").read_text())


# -------------------------------------------------------------------------------------------------- evaluation


@pytest.fixture
def photos(tmp_path):
    """A small dataset on the disk."""
    root = tmp_path / "photos"
    write_synthetic(root, labeled=4, validation=3)
    return root


def test_a_photo_damaged_during_the_run_costs_the_figures_only(tmp_path, photos, capsys):
    folder = tmp_path / "run"
    names = {"data_dir": str(photos), "num_labels": 5, "labeled_count": 2}
    settings = {"data": load_semi_dataset(**names), "save_steps": None, "eval_steps": None, "max_steps": 2}
    trainer = make(folder, **settings)
    photo = photos / "validation" / "images" / "1.png"
    content = photo.read_bytes()
    in_step(trainer, 2, lambda: photo.write_bytes(content[:100]))
    with pytest.raises(EvaluationError, match=r"saved in .*run, but it has no figures.*1\.png") as error:
        trainer.train()
    assert str(error.value).endswith("finish with --resume_from_checkpoint latest.")
    assert "predictions.png is left out" in capsys.readouterr().err
    CorrMatchForSegmentation.from_pretrained(folder)
    assert (
        figures(folder)["final"] is None
        and len((folder / "training_log.jsonl").read_text().splitlines()) == 2
    )
    assert "mean_iou" not in (folder / "README.md").read_text()
    (only,) = list_checkpoints(folder / "checkpoints")
    assert only.name == "step_00000002" and find_corruption(only) is None
    before = load_file(folder / "model.safetensors")

    photo.write_bytes(content)
    result = make(folder, **settings, resume_from_checkpoint="latest").train()
    assert result["final"]["num_images"] == 3 and (folder / "predictions.png").is_file()
    assert differences(load_file(folder / "model.safetensors"), before) == []


def test_a_failed_evaluation_during_the_run_does_not_end_it(folder, capsys):
    trainer = make(folder, save_steps=None)
    evaluate = trainer.evaluate

    def failing():
        if trainer.step == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return evaluate()

    trainer.evaluate = failing
    assert trainer.train()["final"]["step"] == 6
    said = capsys.readouterr().err
    assert "the evaluation after step 4 failed: out of memory; give --eval_window" in said
    rows = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "mean_iou" in row] == [2, 6]


def in_one_of_two(rank):
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            if i == 1:
                raise InputError("1.png is damaged")
            return {
                "image": torch.zeros(3, 4, 4, dtype=torch.uint8),
                "label": torch.zeros(4, 4).long(),
                "file": "",
            }

    class Model(torch.nn.Module):
        def forward(self, pixel_values):
            return type("Output", (), {"logits": pixel_values[:, :2]})

    arguments = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "rank": rank, "world_size": 2}
    try:
        evaluate_segmentation(Model(), Broken(), num_labels=2, **arguments)
    except InputError as error:
        return type(error), str(error)


def test_an_evaluation_that_fails_in_one_process_ends_in_all(tmp_path):
    first, second = in_two_processes(in_one_of_two, tmp_path)
    assert first[0] is OtherProcessFailed and second == (InputError, "1.png is damaged")


@pytest.mark.parametrize(
    "args",
    [
        ("train", "--eval_window", "8", "--eval_stride", "9"),
        ("train", "--eval_stride", "9"),
        ("evaluate", "--model", "nowhere", "--window", "8", "--stride", "9"),
        ("evaluate", "--model", "nowhere", "--stride", "9"),
        ("evaluate", "--model", "nowhere", "--window", "0"),
        ("evaluate", "--model", "nowhere", "--scales", "0"),
        ("evaluate", "--model", "nowhere", "--batch_size", "0"),
    ],
)
def test_contradictions_are_refused_before_anything_is_loaded(args, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(args[0], args[1:]) == 1
    said = capsys.readouterr().err
    assert (
        said.startswith(f"error: {args[-2]} is {'[0.0]' if 'scales' in args[-2] else args[-1]}")
        and "nowhere" not in said
    )
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------- whatever fails beside training


def test_a_training_photo_damaged_during_the_run_costs_no_step(folder, photos):
    names = {"data_dir": str(photos), "num_labels": 5, "labeled_count": 2}
    settings = {"data": load_semi_dataset(**names), "save_steps": None, "eval_steps": None, "max_steps": 6}
    trainer, content = make(folder, **settings), {}

    def damage():
        for photo in (photos / "train" / "images").iterdir():
            content[photo] = photo.read_bytes()
            photo.write_bytes(content[photo][:100])

    in_step(trainer, 4, damage)
    with pytest.raises(InputError, match=r"Step \d is saved: correct that, and resume") as error:
        trainer.train()
    (only,) = list_checkpoints(folder / "checkpoints")
    assert f"Step {int(only.name[5:])} is saved" in str(error.value) and trainer.step >= 3
    for photo, whole in content.items():
        photo.write_bytes(whole)
    assert make(folder, **settings, resume_from_checkpoint="latest").train()["final"]["step"] == 6


def test_output_that_cannot_be_written_does_not_end_the_run(folder, monkeypatch):
    """As of a log on a full disk, a closed terminal or a closed pipe."""
    trainer = make(folder)
    trainer.evaluate = lambda: None.fails  # which is warned about

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", Full())
        patch.setattr("sys.stderr", Full())
        with pytest.raises(EvaluationError):
            trainer.train()
    assert figures(folder)["steps"] == 6


def test_a_checkpoint_that_fails_for_any_reason_does_not_cost_the_model(folder, capsys):
    trainer = make(folder, max_steps=2)

    def failing(*args):
        raise TypeError("cannot pickle this")

    trainer.accelerator.save_state = failing
    assert trainer.train()["final"]["step"] == 2
    assert "could not save the checkpoint of step 2" in capsys.readouterr().err
    CorrMatchForSegmentation.from_pretrained(folder)


def test_a_report_or_upload_that_fails_for_any_reason_does_not_end_the_run(folder, monkeypatch, capsys):
    from corrmatch_hf.training import preflight

    def failing(*args, **kwargs):
        raise ValueError("no such font")

    monkeypatch.setattr(preflight, "check_hub_access", lambda config: None)
    trainer = make(folder, push_to_hub=True, hub_strategy="every_save", hub_model_id="a/b")
    trainer.push_to_hub = failing
    with monkeypatch.context() as patch:
        patch.setattr(report, "write_report", failing)
        in_step(trainer, 5, lambda: patch.setattr(report, "write_report", lambda *args: None))
        assert trainer.train()["published"] is None
    said = capsys.readouterr().err
    assert said.count("warning: not published: no such font") == 3 and "corrmatch push" in said


def test_a_broken_line_of_the_log_does_not_cost_the_later_ones(tmp_path):
    path = tmp_path / "training_log.jsonl"
    path.write_text(
        '{"step": 1, "loss": 1}\n{"step": 2, "lo{"step": 2, "loss": 2}\n7\n{"step": 3, "loss": 3}\n{"st'
    )
    assert [row["step"] for row in TrainingLog(path, True, resume_step=3).rows] == [1, 3]
    assert len(path.read_text().splitlines()) == 2


# -------------------------------------------------------------------------------------------------------- best


def scored(trainer, scores):
    """Let the evaluation after a step find that mean IoU."""
    classes = {"disc": {"iou": 0.5, "frequency": 1}}
    rest = {"pixel_accuracy": 0.5, "mean_accuracy": 0.5, "per_class": classes}
    trainer.evaluate = lambda: {"mean_iou": scores[trainer.step], **rest}
    return trainer


def test_after_going_back_the_figures_are_those_of_the_weights(folder, capsys):
    scored(make(folder), {2: 0.2, 4: 0.1, 6: 0.5}).train()
    weights = load_file(folder / "best" / "model.safetensors")
    back = make(
        folder, resume_from_checkpoint=str(folder / "checkpoints" / "step_00000004"), learning_rate=0.1
    )
    with pytest.warns(UserWarning, match="--learning_rate"):
        scored(back, {4: 0.1, 6: 0.3}).train()
    assert (
        "best has the model of step 6 (mean IoU 50.0), later than this checkpoint" in capsys.readouterr().out
    )
    assert differences(load_file(folder / "best" / "model.safetensors"), weights) == []
    best = figures(folder / "best")
    assert (best["step"], best["mean_iou"]) == (6, 0.5) and figures(folder)["best"] == best
    assert figures(folder)["final"]["mean_iou"] == 0.3


def test_a_failed_write_of_best_keeps_the_old_figures(folder, monkeypatch, capsys):
    save = report.save_model

    def failing(path, *args):
        save(path, *args)
        if path.name == ".best.writing" and trainer.step == 4:
            raise OSError("disk full")

    monkeypatch.setattr(report, "save_model", failing)
    trainer = scored(make(folder), {2: 0.2, 4: 0.5, 6: 0.3})
    trainer.train()
    assert "could not save the best model so far" in capsys.readouterr().err
    assert figures(folder)["best"] == figures(folder / "best") and trainer.best["step"] == 6


def test_a_checkpoint_of_another_folder_brings_no_best(folder, tmp_path):
    scored(make(folder), {2: 0.2, 4: 0.1, 6: 0.1}).train()
    other = make(tmp_path / "other", resume_from_checkpoint=str(list_checkpoints(folder / "checkpoints")[0]))
    assert scored(other, {4: 0.1, 6: 0.05}).train()["best"]["step"] == 4
    assert figures(tmp_path / "other" / "best")["step"] == 4


# ----------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("module", "function", "complete"),
    [
        (checkpoint, "write_checksums", False),
        (report, "save_best", True),
        (report, "write_result", True),
        (report, "write_text", True),
    ],
)
def test_a_signal_while_the_end_is_written_loses_nothing(folder, monkeypatch, module, function, complete):
    from corrmatch_hf.training import run as run_module
    from corrmatch_hf.training import trainer as trainer_module

    def lost(*args):
        raise SystemExit("the signal was not caught")

    original = getattr(module, function)

    def signalled(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    before = signal.signal(signal.SIGTERM, lost)
    try:
        for place in (module, run_module, trainer_module) if function != "write_text" else (module,):
            if hasattr(place, function):
                monkeypatch.setattr(place, function, signalled)
        trainer = make(folder, save_steps=None, eval_steps=None, max_steps=2)
        with pytest.raises(TrainingInterrupted) as stopped:
            trainer.train()
        assert signal.getsignal(signal.SIGTERM) is lost
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.exit_status == 143
    (only,) = list_checkpoints(folder / "checkpoints")
    assert find_corruption(only) is None
    said = f"the result is complete in {folder}" if complete else f"saved {only}. Resume with"
    assert said in str(stopped.value)
    assert (folder / "metrics.json").is_file() == complete
    if not complete:
        monkeypatch.setattr(module, function, original)
        settings = {"save_steps": None, "eval_steps": None, "max_steps": 2}
        assert make(folder, **settings, resume_from_checkpoint="latest").train()["final"]["step"] == 2


# ------------------------------------------------------------------------------------------------ other weights


def test_figures_go_before_other_weights_come(folder, monkeypatch):
    """Killed in between, the folder has weights without figures, and never those of others."""
    make(folder, max_steps=2).train()
    assert figures(folder)["final"]["step"] == 2

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "delete_old_code", killed)
    with pytest.warns(UserWarning, match="--max_steps"), pytest.raises(KeyboardInterrupt):
        make(folder, max_steps=4, resume_from_checkpoint="latest").train()
    assert not (folder / "metrics.json").exists()


def test_a_card_is_replaced_at_once(tmp_path, monkeypatch):
    """One cut off would be taken for one that somebody edited, and never written again."""
    from corrmatch_hf.hub.model_card import remove_run_card, write_run_card

    facts = {"encoder_name": "resnet18", "output_stride": 16, "id2label": {0: "a"}}
    card = write_run_card(tmp_path, run=facts)
    whole, write = card.read_text(), Path.write_text

    def cut(self, text, **kwargs):
        if self.suffix != ".json" and "run.json" not in self.name:
            write(self, text[:50], **kwargs)
            raise KeyboardInterrupt
        return write(self, text, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_text", cut)
        write_run_card(tmp_path, run=facts | {"seed": 1})
    assert card.read_text() == whole
    assert "resnet34" in write_run_card(tmp_path, run=facts | {"encoder_name": "resnet34"}).read_text()
    remove_run_card(tmp_path)
    assert not card.exists() and not (tmp_path / "run.json").exists()
    card.write_text("mine")
    remove_run_card(tmp_path)
    assert card.read_text() == "mine"


def test_published_files_follow_the_umask(folder):
    """safetensors makes its files private."""
    trainer = make(folder, max_steps=2)
    trainer.train()
    (newest,) = list_checkpoints(folder / "checkpoints")
    trainer.evaluated_model.save_pretrained(folder / "saved")
    for path in (folder, folder / "best", newest, folder / "saved"):
        modes = {oct(file.stat().st_mode & 0o777) for file in path.iterdir() if file.is_file()}
        assert len(modes) == 1, path


# ------------------------------------------------------------------------------------------------------- links


def test_links_are_replaced_and_their_targets_stay(folder, tmp_path, capsys):
    """Users move checkpoints and best/ to other disks, and leave links to them."""
    settings = {"save_steps": 1, "eval_steps": 1, "max_checkpoints": 1}
    scored(make(folder, **settings, max_steps=2), {1: 0.1, 2: 0.2}).train()
    for i, path in enumerate((*list_checkpoints(folder / "checkpoints"), folder / "best")):
        path.rename(tmp_path / f"moved{i}")
        path.symlink_to(tmp_path / f"moved{i}")
    (folder / "checkpoints" / "step_00000001").symlink_to("nowhere")
    (folder / "checkpoints" / "step_00000009").symlink_to("nowhere")
    longer = make(folder, **settings, max_steps=5, resume_from_checkpoint="latest")
    with pytest.warns(UserWarning):
        scored(longer, {2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5}).train()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_00000005"]
    assert not (folder / "best").is_symlink() and figures(folder / "best")["step"] == 5
    assert find_corruption(tmp_path / "moved0") is None and figures(tmp_path / "moved1")["step"] == 2
    assert "could not" not in capsys.readouterr().err


def test_an_old_checkpoint_that_stays_is_no_failed_save(folder, monkeypatch, capsys):
    def refuse(path):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(checkpoint, "remove_folder", refuse)
    trainer = make(folder, save_steps=1, eval_steps=None, max_steps=2, max_checkpoints=1)
    trainer.train()
    said = capsys.readouterr().err
    assert "could not delete the old checkpoint" in said and "could not save" not in said
    assert trainer.saved_step == 2


# ----------------------------------------------------------------------------------------------- one run, one folder


def test_a_second_run_in_the_folder_is_refused(folder, monkeypatch):
    """New or resumed; when the first has ended, the folder is free, and nothing else is left in it."""
    monkeypatch.setattr(output_lock, "WAIT", 0)
    trainer, said = make(folder, save_steps=1, max_steps=3), []

    def others():
        for how in ({"overwrite": True}, {"resume_from_checkpoint": "latest"}):
            before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
            with pytest.raises(InputError) as error:
                make(folder, max_steps=9, **how).train()
            said.append(str(error.value))
            assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before

    in_step(trainer, 3, others)
    trainer.train()
    assert len(said) == 2 and all(
        f"{folder} is in use by another run, process {os.getpid()} on {socket.gethostname()}; wait" in text
        for text in said
    )
    assert not (folder / LOCK).exists()
    make(folder, max_steps=1, overwrite=True).train()


def test_the_lock_ends_with_a_killed_run_and_its_loading_processes_do_not_hold_it(folder, monkeypatch):
    monkeypatch.setattr(output_lock, "WAIT", 0)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        OutputLock(folder).hold(Accelerator())
        if os.fork() == 0:  # a loading process
            os.write(writing, b"x")
            time.sleep(20)
        else:
            time.sleep(20)
        os._exit(0)
    os.read(reading, 1)
    with pytest.raises(InputError, match=f"process {pid} on"):
        OutputLock(folder).hold(Accelerator())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (folder / LOCK).exists()
    check_output_folder(folder, overwrite=False)  # the file alone is no run
    with OutputLock(folder) as lock:
        lock.hold(Accelerator())
    assert not (folder / LOCK).exists()


def test_a_disk_without_locks_is_told(folder, monkeypatch, capsys):
    def unsupported(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(output_lock.fcntl, "flock", unsupported)
    with OutputLock(folder) as lock:
        lock.hold(Accelerator())
    assert f"the disk of {folder} has no file locks (No locks available)" in capsys.readouterr().err


def with_separate_disks(rank, folder, same):
    output_lock.LOOK = 0.5
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    try:
        with OutputLock(folder if same else folder / str(rank)) as lock:
            lock.hold(accelerator)
            accelerator.wait_for_everyone()
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("same", [True, False])
def test_nodes_without_a_shared_disk_are_told_at_the_start(tmp_path, same):
    said = in_two_processes(with_separate_disks, tmp_path, tmp_path / "run", same)
    if same:
        assert said == [None, None]
    else:
        for text in said:
            assert (
                f"but process 1 on {socket.gethostname()} does not see it; give a folder on a disk that all"
                in text
            )


def test_a_second_run_in_the_process_may_have_another_precision(folder, tmp_path):
    make(folder, max_steps=1).train()
    other = make(tmp_path / "other", max_steps=1, mixed_precision="bf16")
    assert other.accelerator.mixed_precision == "bf16" and other.train()["steps"] == 1
    again = make(tmp_path / "third", max_steps=1)
    assert again.accelerator.mixed_precision == "no" and again.train()["steps"] == 1


def test_other_versions_are_told_in_one_sentence(folder, monkeypatch):
    make(folder, max_steps=2).train()
    versions = checkpoint.library_versions()
    monkeypatch.setattr(checkpoint, "library_versions", lambda: versions | {"timm": "9.9"})
    told = rf"with other versions \(timm {versions['timm']} then, 9.9 now\); the resumed run may not equal"
    with pytest.warns(UserWarning, match=told):
        make(folder, max_steps=2, resume_from_checkpoint="latest").train()
