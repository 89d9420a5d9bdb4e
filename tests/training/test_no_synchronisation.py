"""Between logging steps the training loop reads nothing back to the host."""

import pytest
import torch

from corrmatch_hf.methods import corrmatch
from corrmatch_hf.ops.region_propagation.propagate import _propagate_batched
from corrmatch_hf.ops.region_propagation.rows import row_shapes

from ..read_backs import CountReadBacks


@pytest.fixture
def region_propagation_of_gpus(monkeypatch):
    def on_a_gpu(rows, labels, confident, allowed, tau, num_labels):
        shapes = row_shapes(rows, labels.shape[-2:]) & allowed.unsqueeze(1)
        return _propagate_batched(labels, confident, shapes, tau, num_labels)

    monkeypatch.setattr(corrmatch, "propagate_rows", on_a_gpu)


def read_backs_of_each_step(trainer) -> list[list[str]]:
    """Train, and say for each optimiser step, its batch included, what read back."""
    take_step, seen = trainer._optimizer_step, []

    def counted(*args):
        with CountReadBacks() as mode:
            logs = take_step(*args)
        seen.append(mode.seen)
        return logs

    trainer._optimizer_step = counted
    trainer.train()
    return seen


@pytest.mark.usefixtures("region_propagation_of_gpus")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_grad_norm": 0.1, "ema_decay": 0.9},
        {"max_grad_norm": 0.1, "gradient_accumulation_steps": 2, "optimizer": "adamw", "warmup_steps": 2},
        {"cutmix_partner": "batch"},
    ],
    ids=lambda options: "-".join(options) or "defaults",
)
def test_a_step_reads_nothing_back(make_trainer, options):
    trainer = make_trainer(logging_steps=3, max_steps=4, **options)
    start, *steps = read_backs_of_each_step(trainer)
    assert len(start) <= 1  # a seed that torch's loader draws on the host, once
    assert steps == [[], [], []]


def test_a_look_at_the_norm_of_the_gradient_is_seen(make_trainer, monkeypatch):
    trainer = make_trainer("supervised", max_steps=3, max_grad_norm=0.1)
    clip = torch.nn.utils.clip_grad_norm_

    def curious(*args, **kwargs):
        norm = clip(*args, **kwargs)
        assert float(norm) >= 0
        return norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", curious)  # which Accelerate calls
    _, *steps = read_backs_of_each_step(trainer)
    assert steps == [["_local_scalar_dense"]] * 2
