"""Resuming: a run goes on exactly where it was, and what changed since is named."""

import dataclasses
import json
import warnings

import pytest
import torch

from corrmatch_hf.errors import InputError
from corrmatch_hf.methods import METHODS, FixMatchOptions, method_class
from corrmatch_hf.training.checkpoint import list_checkpoints, write_checksums

CASES = [  # method, options
    *((name, {}) for name in METHODS if name != "dgcl"),
    ("dgcl", {"dgcl_memory_size": 64, "dgcl_supervised_share": 0.0}),
    ("fixmatch", {"teacher": "ema"}),
    ("gatematch", {"burn_in": 0.25, "teacher_rounds": 2, "soft_labels": True}),
    ("gatematch", {"burn_in": 0.25, "teacher_rounds": 1, "soft_labels": True, "teacher_recall": 1e-9}),
]


@pytest.mark.parametrize("name, options", CASES)
def test_a_resumed_run_equals_an_uninterrupted_one(make_trainer, name, options):
    given = method_class(name).Options(**options)
    settings = {"options": given, "max_steps": 4, "eval_steps": 2, "save_steps": 2, "ema_decay": 0.9}
    settings["logging_steps"] = (
        3  # per-class figures are of all steps since the last row: across the checkpoint
    )
    whole = make_trainer(name, **settings)
    whole.train()
    expected = log_of(whole)
    counted = [row["step"] for row in expected if "per_class" in row]
    assert counted == ([] if name in ("supervised", "mean_teacher") else [3, 4])
    torch.manual_seed(123)
    checkpoint = whole.output_dir / "checkpoints" / "step_00000002"
    resumed = make_trainer(name, resume_from_checkpoint=str(checkpoint), **settings)
    resumed.train()
    assert resumed.step == 4 and log_of(resumed) == expected
    for ours, theirs in ((resumed.method, whole.method), (resumed.average, whole.average)):
        for key, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], value), key


def log_of(trainer):
    """The rows of the log without the figures that differ between equal runs."""
    rows = (trainer.output_dir / "training_log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(row).items() if k != "images_per_second"} for row in rows]


def test_other_data_are_told(make_trainer, tiny_data):
    make_trainer(max_steps=2).train()
    other = dataclasses.replace(tiny_data, labeled=tiny_data.labeled.select(range(2)))
    with pytest.warns(
        UserWarning, match=r"training on other data \(labelled: \d+ images, \w+ then, 2 images"
    ):
        make_trainer(max_steps=3, data=other, resume_from_checkpoint="latest").train()


def test_what_changed_since_the_checkpoint_is_named(make_trainer):
    with pytest.raises(InputError, match="there is no checkpoint"):
        make_trainer(resume_from_checkpoint="latest").train()
    first = make_trainer(max_steps=2, save_steps=1).train()

    def resume(method="corrmatch", **changed):
        settings = {"max_steps": 2, "save_steps": 1, "resume_from_checkpoint": "latest"} | changed
        return make_trainer(method, **settings).train()

    assert resume()["final"] == first["final"], "a finished run keeps its metrics"
    with pytest.raises(InputError, match="method is 'corrmatch' there and 'supervised' here"):
        resume("supervised")
    with pytest.raises(InputError, match="name a step_"):
        resume(resume_from_checkpoint="nowhere")
    with pytest.raises(InputError, match="is of step 2, but the run ends at step 1"):
        resume(max_steps=1)
    with (
        pytest.raises(InputError, match="does not fit the options"),
        pytest.warns(UserWarning, match="--optimizer"),
    ):
        resume(max_steps=3, optimizer="adamw")
    with pytest.warns(UserWarning, match="--crop_size was 33 when the checkpoint was written and is 49 now"):
        resume(crop_size=49)


def test_options_of_the_method_that_changed_are_named(make_trainer):
    make_trainer("fixmatch", options=FixMatchOptions(teacher="ema"), max_steps=1).train()
    changed = FixMatchOptions(teacher="ema", confidence_threshold=0.1)
    with pytest.warns(UserWarning, match="--confidence_threshold was 0.95"):
        make_trainer("fixmatch", options=changed, resume_from_checkpoint="latest", max_steps=2).train()
    with pytest.raises(InputError, match="teacher is 'ema' there and 'none' here"):
        make_trainer("fixmatch", resume_from_checkpoint="latest", max_steps=3).train()


def test_a_checkpoint_with_options_that_were_removed_is_resumed(make_trainer):
    first = make_trainer(max_steps=1)
    first.train()
    (checkpoint,) = list_checkpoints(first.output_dir / "checkpoints")
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text())
    state["config"] |= {"recolor_on_device": True, "cpu_threads": 2, "card_pictures": False}
    path.write_text(json.dumps(state))
    (checkpoint / "checksums.json").unlink()
    write_checksums(checkpoint)
    resumed = make_trainer(max_steps=1, resume_from_checkpoint="latest")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        resumed.train()
    assert resumed.step == 1 and not [w for w in seen if "when the checkpoint was written" in str(w.message)]
    with pytest.raises(InputError, match="would publish validation photos"):
        make_trainer(max_steps=1, resume_from_checkpoint="latest", push_to_hub=True).train()


def test_checkpoints_rotate_also_in_a_run_that_went_back(make_trainer):
    whole = make_trainer(max_steps=6, save_steps=2, max_checkpoints=3)
    whole.train()
    folder = whole.output_dir / "checkpoints"
    assert [p.name for p in list_checkpoints(folder)] == ["step_00000002", "step_00000004", "step_00000006"]
    back = make_trainer(
        max_steps=6, save_steps=1, max_checkpoints=2, resume_from_checkpoint=str(folder / "step_00000002")
    )
    back.max_steps = 3  # as if it were stopped there
    back.train()
    assert [p.name for p in list_checkpoints(folder)] == ["step_00000002", "step_00000003"]
    assert not list(folder.glob(".*")), "nothing half-written stays"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_goes_on_in_another_memory_layout(make_trainer, tmp_path, optimizer):
    """The fused step would mix up the weights of a state that lies otherwise in memory."""
    settings = {"max_steps": 4, "save_steps": 2, "optimizer": optimizer}
    whole = make_trainer("supervised", channels_last=False, **settings)
    whole.train()
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000002"
    assert checkpoint.is_dir()
    with pytest.warns(UserWarning, match="--channels_last"):
        other = make_trainer("supervised", resume_from_checkpoint=str(checkpoint), **settings)
        other.train()
    ours, theirs = other.method.state_dict(), whole.method.state_dict()
    for name in ours:
        close = torch.isclose(ours[name], theirs[name], rtol=1e-3, atol=1e-3).double().mean()
        # AdamW moves a weight whose gradient is rounding alone by up to the learning rate in a step: hardly one does.
        assert close >= (0.9999 if optimizer == "adamw" else 1), name
        assert (ours[name] - theirs[name]).abs().max() <= 2 * 0.01, name
