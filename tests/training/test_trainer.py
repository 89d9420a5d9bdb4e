"""The loop: what a run leaves, how steps are counted, and which options work together."""

import dataclasses
import json

import pytest
import torch
import yaml
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation
from corrmatch_hf.methods import CorrMatch, FixMatchOptions
from corrmatch_hf.training import interruption
from corrmatch_hf.training.non_finite import NonFiniteLossError


def weights(trainer):
    return {k: v.clone() for k, v in trainer.method.state_dict().items()}


def test_a_run_leaves_everything(make_trainer, capsys):
    trainer = make_trainer(eval_steps=2, report=True)
    before = weights(trainer)
    result = trainer.train()
    assert any(not torch.equal(before[k], v) for k, v in weights(trainer).items())
    folder = trainer.output_dir
    for name in (
        "model.safetensors", "config.json", "preprocessor_config.json", "metrics.json", "training_config.yaml",
        "training_log.jsonl", "curves.png", "predictions.png", "README.md", "run.json", "handler.py",
        "requirements.txt", "report.html", "samples/1.jpg", "samples/1_overlay.png", "best/model.safetensors",
        "best/README.md", "best/handler.py",
    ):  # fmt: skip
        assert (folder / name).is_file(), name
    assert (
        json.loads((folder / "metrics.json").read_text())["final"]["mean_iou"] == result["final"]["mean_iou"]
    )
    rows = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "loss" in r] == [1, 2, 3, 4]
    assert [r["step"] for r in rows if "mean_iou" in r] == [2, 4]
    assert "threshold" in rows[0]
    best = (folder / "best" / "README.md").read_text(encoding="utf-8")
    assert (
        f"after step {result['best']['step']}" in best and f"{100 * result['best']['mean_iou']:.2f}" in best
    )
    out = capsys.readouterr().out
    assert "mean IoU" in out and "house" in out

    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    AutoImageProcessor.from_pretrained(folder)
    image = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        torch.testing.assert_close(model(image).logits, trainer.evaluated_model.eval()(image).logits)
    for key, value in trainer.evaluated_model.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert model.config.id2label[4] == trainer.data.id2label[4]


def test_our_own_errors_are_no_lost_process(monkeypatch):
    monkeypatch.setattr(interruption, "world_size", lambda: 2)
    assert interruption.is_lost_connection(RuntimeError("[gloo/transport] connection closed by peer"))
    assert not interruption.is_lost_connection(
        NonFiniteLossError("The loss is not finite at step 3: igloo/p1.png")
    )


def test_gradient_accumulation_counts_optimizer_steps(make_trainer):
    trainer = make_trainer(max_steps=3, gradient_accumulation_steps=2)
    seen = []
    trainer.method.register_forward_pre_hook(lambda module, args: seen.append(args[0].step))
    trainer.train()
    assert seen == [0, 1, 2, 3, 4, 5]
    assert trainer.schedule.last_epoch == 3


def test_epochs_count_unlabelled_images(make_trainer):
    assert make_trainer(num_epochs=2).max_steps == 6  # 6 images, batch 2
    assert make_trainer("supervised", num_epochs=2).max_steps == 6, "the baseline trains as long"


def test_adamw_bf16_clipping_warmup_and_batch_partner_run(make_trainer):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    try:
        result = make_trainer(
            optimizer="adamw", mixed_precision="bf16", max_grad_norm=1.0, warmup_steps=1, cutmix_partner="batch",
            max_steps=2, eval_window=32, per_device_unlabeled_batch_size=3,
        ).train()  # fmt: skip
        assert 0 <= result["final"]["mean_iou"] <= 1
    finally:
        AcceleratorState._reset_state(True)


def test_learning_rates(make_trainer):
    trainer = make_trainer(learning_rate=0.01, lr_reference_batch=16)
    trainer.optimizer.step()
    trainer.schedule.step()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 2 / 16 * (1 - 1 / 4) ** 0.9)


def test_frozen_batch_norm_stays(make_trainer):
    trainer = make_trainer("supervised", freeze_batch_norm=True, max_steps=2)
    statistics = {k: v.clone() for k, v in trainer.method.named_buffers() if "running" in k}
    trainer.train()
    assert statistics and all(
        torch.equal(v, statistics[k]) for k, v in trainer.method.named_buffers() if k in statistics
    )


def test_synchronised_batch_norm_keeps_the_activations():
    """What the trainer does on several GPUs: norms that carry an activation must keep it."""
    from timm.layers import convert_sync_batchnorm

    model = CorrMatchForSegmentation(CorrMatchConfig(encoder_name="mobilenetv2_100", num_labels=3)).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(image).logits
        after = convert_sync_batchnorm(model)(image).logits
    torch.testing.assert_close(after, before)
    from corrmatch_hf.training import run

    assert run.convert_sync_batchnorm is convert_sync_batchnorm


def test_no_validation_images(make_trainer, tiny_data):
    result = make_trainer(data=dataclasses.replace(tiny_data, validation=None), max_steps=1).train()
    assert result["final"] is None and result["best"] is None


def test_the_written_configuration_runs_again(make_trainer):
    from corrmatch_hf.commands.arguments import MethodChoice, parse
    from corrmatch_hf.training import TrainingConfig

    trainer = make_trainer(max_steps=1)
    trainer.train()
    path = trainer.output_dir / "training_config.yaml"
    assert yaml.safe_load(path.read_text())["crop_size"] == 33
    _, config, method, options = parse("train", MethodChoice, TrainingConfig, args=["--config", str(path)])
    assert config == trainer.config and method is CorrMatch and options == trainer.method.options


def test_tensorboard(make_trainer):
    pytest.importorskip("tensorboard")
    trainer = make_trainer(max_steps=1, report_to="tensorboard")
    trainer.train()
    (events,) = {
        path.parent
        for path in trainer.output_dir.rglob("events.out.tfevents*")
        if path.parent.name == "corrmatch"
    }
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = event_accumulator.EventAccumulator(str(events)).Reload()
    (picture,) = found.Images("eval/predictions")  # photo, truth, prediction
    assert picture.step == 1 and picture.width > 3 * 48 and "eval/mean_iou" in found.Tags()["scalars"]


def test_a_tracker_that_fails_does_not_end_the_training(make_trainer, monkeypatch, capsys):
    trainer = make_trainer(max_steps=3)
    calls = []

    def fail(values, step):
        calls.append(step)
        raise ConnectionError("the network is down")

    monkeypatch.setattr(trainer.accelerator, "log", fail)
    assert trainer.train()["steps"] == 3 and calls == [1]
    assert capsys.readouterr().err.count("the network is down") == 1
    assert (trainer.output_dir / "model.safetensors").exists()


def test_options_without_effect_are_told_before_training(make_trainer):
    options = FixMatchOptions(teacher_decay=0.9)
    trainer = make_trainer("fixmatch", options=options, optimizer="adamw", momentum=0.8, max_steps=1)
    with pytest.warns(UserWarning) as told:
        trainer.train()
    texts = [str(warning.message) for warning in told]
    assert "--momentum is 0.8, which does nothing with --optimizer adamw." in texts
    assert "--teacher_decay is 0.9, which does nothing with --teacher none." in texts
