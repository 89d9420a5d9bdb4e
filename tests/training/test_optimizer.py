"""Which weights learn how fast, and with which kernel."""

import warnings

import pytest
import torch
from torch import nn

from corrmatch_hf import SemiSupervisedTrainer, TrainingConfig
from corrmatch_hf.training import preflight
from corrmatch_hf.training import run as run_module
from corrmatch_hf.training.optimizer import build_optimizer


class Method(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({"encoder": nn.Linear(2, 3), "decoder": nn.Linear(3, 4)})
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_encoder_learns_slower_and_frozen_weights_do_not(kind):
    method = Method()
    config = TrainingConfig(
        max_steps=1, optimizer=kind, learning_rate=0.1, head_lr_multiplier=5, lr_reference_batch=4
    )
    groups = build_optimizer(method, config, total_batch=8).param_groups
    assert [group["lr"] for group in groups] == [pytest.approx(0.2), pytest.approx(1.0)]
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in method.model["encoder"].parameters()}
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in method.model["decoder"].parameters()}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_fused_kernel_steps_as_the_plain_one(kind):
    torch.manual_seed(0)
    stepped = {}
    start = Method().state_dict()
    for precision in (
        "no",
        "fp16",
    ):  # fp16 takes the plain kernel: its scaler must see steps that are skipped
        method = Method()
        method.load_state_dict(start)
        config = TrainingConfig(max_steps=1, optimizer=kind, learning_rate=0.1, mixed_precision=precision)
        optimizer = build_optimizer(method, config, total_batch=8)
        assert optimizer.defaults["fused"] == (precision == "no")
        for step in range(3):
            for i, parameter in enumerate(method.model.parameters()):
                parameter.grad = torch.full_like(parameter, 0.1 * (i + step))
            optimizer.step()
        stepped[precision] = method.state_dict()
    for name, value in stepped["no"].items():
        torch.testing.assert_close(value, stepped["fp16"][name])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_norms_and_biases_can_be_spared_the_decay(kind):
    model = nn.ModuleDict(
        {"encoder": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "decoder": nn.Conv2d(4, 2, 1)}
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = TrainingConfig(
        max_steps=1,
        optimizer=kind,
        learning_rate=0.1,
        head_lr_multiplier=5,
        weight_decay=0.01,
        no_decay_norm_bias=True,
    )
    optimizer = build_optimizer(model, config, total_batch=8)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(before)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)  # only the decay moves anything
    optimizer.step()
    for name, p in model.named_parameters():
        rate = 0.1 if "encoder" in name else 0.5
        kept = 1 - rate * 0.01 if p.ndim > 1 else 1.0
        torch.testing.assert_close(p.detach(), kept * before[name], msg=name)


@pytest.mark.parametrize("on", [True, False])
def test_settings_of_the_gpu_end_with_the_training(on, make_trainer, monkeypatch):
    def settings():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark

    trainer, before = make_trainer("supervised", max_steps=1, tf32=on, cudnn_benchmark=on), settings()
    in_training, in_evaluation = [], []
    monkeypatch.setattr(trainer.method, "after_step", lambda: in_training.append(settings()))
    module = run_module.evaluate_segmentation
    monkeypatch.setattr(
        run_module,
        "evaluate_segmentation",
        lambda *args, **kwargs: in_evaluation.append(settings()) or module(*args, **kwargs),
    )
    trainer.train()
    assert in_training == [("high", True) if on else before]
    assert in_evaluation[-1][1] is False and settings() == before


@pytest.mark.parametrize("slow", [True, False])
def test_bf16_is_warned_about_where_it_is_slower(slow, make_trainer, monkeypatch):
    monkeypatch.setattr(preflight, "bfloat16_is_slow", lambda device: slow)
    monkeypatch.setattr(SemiSupervisedTrainer, "_loop", lambda *_: pytest.fail("the check comes first"))
    trainer = make_trainer("supervised", mixed_precision="bf16")
    with warnings.catch_warnings(record=True) as caught, pytest.raises(pytest.fail.Exception):
        warnings.simplefilter("always")
        trainer.train()
    assert any("--mixed_precision no" in str(w.message) for w in caught) is slow
