"""A loss or gradient that is not finite stops the run or costs one step, as asked; it never reaches what is saved."""

import json
import math

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file

from corrmatch_hf.methods import METHODS
from corrmatch_hf.training import NonFiniteLossError, report
from corrmatch_hf.training.checkpoint import list_checkpoints

from .small_run import make

OPTIONS = {"dgcl": {"dgcl_memory_size": 64, "dgcl_supervised_share": 0.0}, "fixmatch": {"teacher": "ema"}}


@pytest.fixture(autouse=True)
def _without_report(monkeypatch):
    """It takes longer than everything else."""
    monkeypatch.setattr(report, "write_report", lambda folder, facts: None)


def poison_images(trainer, steps):
    """NaN in the pictures of these steps: it reaches running statistics, thresholds and memories before any loss."""

    def poison(module, args):
        if trainer.step + 1 in steps:
            args[0].image.mul_(math.nan)

    trainer.method.register_forward_pre_hook(poison)


def state(trainer):
    parts = (trainer.method.state_dict(), trainer.average.state_dict(), trainer.optimizer.state_dict())
    return [
        value.clone()
        for part in parts
        for value in torch.utils._pytree.tree_leaves(part)
        if torch.is_tensor(value)
    ]


@pytest.mark.parametrize("method", METHODS)
def test_a_skipped_step_leaves_everything_as_it_was(tmp_path, method, capsys):
    trainer = make(tmp_path / "run", method, OPTIONS.get(method), on_non_finite="skip", eval_steps=None)
    poison_images(trainer, {3})
    step, states = trainer._optimizer_step, {}

    def watched(*args):
        logs = step(*args)
        states[trainer.step + 1] = state(trainer)
        return logs

    trainer._optimizer_step = watched
    result = trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(states[2], states[3], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[3], states[4], strict=True)), (
        "and then it goes on"
    )
    assert all(value.isfinite().all() for value in states[6] if value.is_floating_point())
    said = capsys.readouterr()
    assert "skipped a step: The loss is not finite at step 3 (total nan" in said.out + said.err
    assert result["skipped_steps"] == 1 and "skipped 1 steps" in said.out

    def no_constants(name):
        raise AssertionError(f"{name} is no JSON")

    rows = (tmp_path / "run" / "training_log.jsonl").read_text().splitlines()
    rows = [json.loads(row, parse_constant=no_constants) for row in rows]
    assert [row.get("skipped_steps") for row in rows if "learning_rate" in row] == [None, None, 1, 1, 1, 1]


def test_the_schedule_goes_on_with_the_steps(tmp_path):
    trainer = make(tmp_path / "run", on_non_finite="skip", eval_steps=None)
    poison_images(trainer, {2, 4})
    trainer.train()
    assert trainer.schedule.last_epoch == 6


def test_too_many_in_a_row_stop_the_run(tmp_path):
    trainer = make(tmp_path / "run", on_non_finite="skip", max_skipped_steps=2, save_steps=1)
    poison_images(trainer, {2, 4, 5, 6})
    with pytest.raises(
        NonFiniteLossError, match=r"step 6 .*Files of the batch: .*labeled.* 3 steps in a row"
    ):
        trainer.train()
    assert trainer.skipped_steps.total == 4
    assert all(p.isfinite().all() for p in trainer.method.parameters())


def test_the_count_survives_a_resumption(tmp_path):
    first = make(tmp_path / "run", on_non_finite="skip", max_steps=6, save_steps=2)
    poison_images(first, {3, 4})
    first.method.register_forward_pre_hook(lambda module, args: 1 / (5 - first.step) and None)
    with pytest.raises(ZeroDivisionError):
        first.train()
    again = make(tmp_path / "run", on_non_finite="skip", max_skipped_steps=2, resume_from_checkpoint="latest")
    poison_images(again, {5})
    with pytest.raises(NonFiniteLossError, match="3 steps in a row"):
        again.train()


def infinite_gradient(trainer, steps):
    weight = next(trainer.method.parameters())
    weight.register_hook(lambda grad: grad * (math.inf if trainer.step + 1 in steps else 1))


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_stops_the_run_though_the_loss_is(tmp_path, clip):
    trainer = make(tmp_path / "run", max_grad_norm=clip, save_steps=2, logging_steps=2)
    infinite_gradient(trainer, {3})
    with pytest.raises(NonFiniteLossError, match=r"The gradient is not finite at step 3 \(total \d.*labeled"):
        trainer.train()
    (only,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert only.name == "step_00000002"


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_gradient_that_is_not_finite_can_be_skipped(tmp_path, accumulation):
    trainer = make(tmp_path / "run", on_non_finite="skip", gradient_accumulation_steps=accumulation)
    infinite_gradient(trainer, {3})
    assert trainer.train()["skipped_steps"] == 1
    assert all(p.isfinite().all() for p in trainer.method.parameters())


def test_an_overflow_under_the_gradient_scaler_is_no_error(tmp_path):
    """fp16's scaler finds overflows, skips those steps and lowers the scale: this is how it works."""
    trainer = make(tmp_path / "run", max_steps=3, eval_steps=None, save_steps=None)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    trainer.accelerator.scaler = scaler
    trainer.optimizer = AcceleratedOptimizer(trainer.optimizer.optimizer, scaler=scaler)
    trainer.accelerator._optimizers = [trainer.optimizer]
    infinite_gradient(trainer, {2})
    result = trainer.train()
    assert result["skipped_steps"] == 0 and scaler.get_scale() == 2.0**7
    assert all(p.isfinite().all() for p in trainer.method.parameters())


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_terms(tmp_path):
    trainer = make(tmp_path / "run", save_steps=2, logging_steps=2)
    losses = trainer.method.losses

    def poisoned(*args, **kwargs):
        total, logs = losses(*args, **kwargs)
        if trainer.step == 2:
            logs["loss/kl"] = logs["loss/kl"] * math.nan
            total = total * math.nan
        return total, logs

    trainer.method.losses = poisoned
    with pytest.raises(NonFiniteLossError, match=r"step 3 .*loss/kl nan.*Files of the batch: .*labeled"):
        trainer.train()
    (only,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert only.name == "step_00000002"
    assert all(value.isfinite().all() for value in load_file(only / "model.safetensors").values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    trainer = make(tmp_path / "run", max_steps=3, eval_steps=None, logging_steps=1)
    step = trainer._optimizer_step

    def breaking(*args):
        logs = step(*args)
        with torch.no_grad():
            next(trainer.method.parameters()).fill_(math.inf)
        return logs

    trainer._optimizer_step = breaking
    with pytest.raises(NonFiniteLossError):
        trainer.train()
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []
