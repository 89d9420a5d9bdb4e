"""The loop: what it writes, that it resumes exactly, that it refuses and stops clearly."""

import dataclasses
import json
import warnings

import pytest
import torch
import yaml
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation
from corrmatch_hf.errors import InputError
from corrmatch_hf.methods import METHODS, CorrMatch, FixMatchOptions, method_class
from corrmatch_hf.training.checkpoint import list_checkpoints, load_checkpoint, write_checksums
from corrmatch_hf.training.interruption import _is_lost_connection
from corrmatch_hf.training.non_finite import NonFiniteLossError
from corrmatch_hf.training.output_folder import CODE


def weights(trainer):
    return {k: v.clone() for k, v in trainer.method.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def read_log(folder):
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["corrmatch", "supervised"])
def test_a_run_leaves_everything(make_trainer, method, capsys):
    trainer = make_trainer(method, eval_steps=2, report=True)
    before = weights(trainer)
    result = trainer.train()
    assert any(not torch.equal(before[k], v) for k, v in weights(trainer).items())
    folder = trainer.output_dir
    for name in (
        "model.safetensors", "config.json", "preprocessor_config.json", "metrics.json", "training_config.yaml",
        "training_log.jsonl", "curves.png", "predictions.png", "README.md", "run.json", "handler.py",
        "requirements.txt", "samples/1.jpg", "samples/1_overlay.png", "best/model.safetensors", "best/README.md",
        "best/handler.py",
    ):  # fmt: skip
        assert (folder / name).is_file(), name
    assert (
        json.loads((folder / "metrics.json").read_text())["final"]["mean_iou"] == result["final"]["mean_iou"]
    )
    rows = read_log(folder)
    assert [r["step"] for r in rows if "loss" in r] == [1, 2, 3, 4]
    assert [r["step"] for r in rows if "mean_iou" in r] == [2, 4]
    assert ("threshold" in rows[0]) == (method == "corrmatch")
    best = (folder / "best" / "README.md").read_text(encoding="utf-8")
    assert (
        f"after step {result['best']['step']}" in best and f"{100 * result['best']['mean_iou']:.2f}" in best
    )
    out = capsys.readouterr().out
    assert "mean IoU" in out and "triangle" in out

    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    AutoImageProcessor.from_pretrained(folder)
    image = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        torch.testing.assert_close(model(image).logits, trainer.evaluated_model.eval()(image).logits)
    assert_same(model.state_dict(), trainer.evaluated_model.state_dict())
    assert model.config.id2label[4] == trainer.data.id2label[4]


CASES = [  # method, options, worker processes
    *((name, {}, 0) for name in METHODS if name != "dgcl"),
    ("dgcl", {"dgcl_memory_size": 64, "dgcl_supervised_share": 0.0}, 0),
    ("corrmatch", {}, 2),
    ("fixmatch", {"teacher": "ema"}, 0),
    ("corrmatch", {"teacher": "ema", "feature_perturbation": "complementary"}, 0),
    ("cps", {"cps_cutmix": True}, 0),
]


@pytest.mark.parametrize("name, options, workers", CASES)
def test_a_resumed_run_equals_an_uninterrupted_one(make_trainer, tmp_path, name, options, workers):
    settings = {"max_steps": 5, "eval_steps": 2, "save_steps": 2, "ema_decay": 0.9, "num_workers": workers}

    def make(folder, **more):
        given = method_class(name).Options(**options)
        return make_trainer(name, options=given, output_dir=str(tmp_path / folder), **settings, **more)

    whole = make("whole")
    whole.train()

    class Cut(Exception):
        pass

    cut = make("cut")
    take_step, taken = cut._optimizer_step, []

    def interrupted(*args):
        if len(taken) == 3:
            raise Cut
        taken.append(1)
        return take_step(*args)

    cut._optimizer_step = interrupted
    with pytest.raises(Cut):
        cut.train()
    torch.manual_seed(123)
    resumed = make("cut", resume_from_checkpoint="latest")
    resumed.train()
    assert resumed.step == 5
    assert_same(resumed.method.state_dict(), whole.method.state_dict())
    assert_same(resumed.average.state_dict(), whole.average.state_dict())
    keep = {key for row in read_log(whole.output_dir) for key in row} - {"images_per_second"}
    logs = [[{k: r.get(k) for k in keep} for r in read_log(t.output_dir)] for t in (resumed, whole)]
    assert logs[0] == logs[1]


def test_options_of_the_method_that_changed_are_named(make_trainer):
    make_trainer("fixmatch", options=FixMatchOptions(teacher="ema")).train()
    changed = FixMatchOptions(teacher="ema", confidence_threshold=0.1)
    with pytest.warns(UserWarning, match="--confidence_threshold was 0.95"):
        make_trainer("fixmatch", options=changed, resume_from_checkpoint="latest", max_steps=5).train()
    with pytest.raises(InputError, match="teacher is 'ema' there and 'none' here"):
        make_trainer("fixmatch", resume_from_checkpoint="latest", max_steps=6).train()


def test_checkpoints_rotate(make_trainer):
    trainer = make_trainer(max_steps=4, save_steps=1, max_checkpoints=2)
    trainer.train()
    found = list_checkpoints(trainer.output_dir / "checkpoints")
    assert [p.name for p in found] == ["step_00000003", "step_00000004"]
    assert not list((trainer.output_dir / "checkpoints").glob(".*")), "nothing half-written stays"


def test_a_run_that_went_back_keeps_what_it_writes(make_trainer):
    whole = make_trainer(max_steps=6, save_steps=2, max_checkpoints=3)
    whole.train()
    folder = whole.output_dir / "checkpoints"
    back = make_trainer(
        max_steps=6, save_steps=1, max_checkpoints=2, resume_from_checkpoint=str(folder / "step_00000002")
    )
    back.max_steps = 3  # as if it were stopped there
    back.train()
    assert [p.name for p in list_checkpoints(folder)] == ["step_00000002", "step_00000003"]


def test_a_run_that_is_already_longer_is_refused(make_trainer):
    make_trainer(max_steps=3, save_steps=3).train()
    with pytest.raises(InputError, match="is of step 3, but the run ends at step 2"):
        make_trainer(max_steps=2, resume_from_checkpoint="latest").train()


def test_another_optimiser_is_told(make_trainer):
    make_trainer(max_steps=2, save_steps=1).train()
    with (
        pytest.raises(InputError, match="does not fit the options"),
        pytest.warns(UserWarning, match="--optimizer"),
    ):
        make_trainer(max_steps=3, optimizer="adamw", resume_from_checkpoint="latest").train()


def test_our_own_errors_are_no_lost_process():
    assert _is_lost_connection(RuntimeError("[gloo/transport] connection closed by peer"))
    assert not _is_lost_connection(NonFiniteLossError("The loss is not finite at step 3: igloo/p1.png"))


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


def test_an_output_folder_with_a_run_is_not_touched(make_trainer):
    first = make_trainer(max_steps=1)
    first.train()
    before = (first.output_dir / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="--overwrite True"):
        make_trainer(max_steps=1).train()
    assert (first.output_dir / "model.safetensors").read_bytes() == before
    make_trainer(max_steps=2, overwrite=True).train()
    assert [p.name for p in list_checkpoints(first.output_dir / "checkpoints")] == ["step_00000002"]


def test_a_run_is_replaced_only_once_the_data_are_known_to_be_good(make_trainer, monkeypatch):
    first = make_trainer(max_steps=1)
    first.train()
    before = sorted((path, path.stat().st_mtime_ns) for path in first.output_dir.rglob("*"))

    def found_bad(*args, **kwargs):
        raise InputError("Cannot read the picture photo.png.")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="Cannot read the picture"):
        patch.setattr("corrmatch_hf.training.preflight.check_dataset", found_bad)
        make_trainer(max_steps=1, overwrite=True).train()
    assert sorted((path, path.stat().st_mtime_ns) for path in first.output_dir.rglob("*")) == before
    make_trainer(max_steps=1, overwrite=True).train()


def test_files_of_others_are_never_deleted(make_trainer, tmp_path):
    notes = tmp_path / "run" / "README.md"
    notes.parent.mkdir()
    notes.write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        make_trainer(max_steps=1, overwrite=True).train()
    assert notes.read_text() == "mine"


@pytest.mark.parametrize("how", [{"resume_from_checkpoint": "latest"}, {"overwrite": True}])
def test_code_that_version_0_1_saved_goes_and_files_of_others_stay(make_trainer, how):
    folder = make_trainer(max_steps=1).output_dir
    make_trainer(max_steps=1).train()
    for name in ("encoder_weights_corrmatch.py", "own_corrmatch.py"):
        (folder / name).touch()
    make_trainer(max_steps=1, **how).train()
    assert {path.name for path in folder.glob("*_corrmatch.py")} == {*CODE, "own_corrmatch.py"}


def test_resuming_a_finished_run_keeps_its_metrics(make_trainer):
    first = make_trainer(max_steps=1).train()
    again = make_trainer(max_steps=1, resume_from_checkpoint="latest").train()
    assert again["final"] == first["final"]


def test_changed_options_are_named_on_resume(make_trainer):
    make_trainer(max_steps=1).train()
    with pytest.warns(UserWarning, match="--crop_size was 33 when the checkpoint was written and is 49 now"):
        make_trainer(max_steps=1, resume_from_checkpoint="latest", crop_size=49).train()


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


def test_one_feature_of_one_image_is_refused(make_trainer):
    with pytest.raises(InputError, match="--crop_size 16 gives a single feature"):
        make_trainer(crop_size=16, per_device_batch_size=1)
    make_trainer(crop_size=16, per_device_batch_size=2)


def test_resume_errors(make_trainer):
    with pytest.raises(InputError, match="there is no checkpoint"):
        make_trainer(resume_from_checkpoint="latest").train()
    make_trainer(max_steps=1).train()
    with pytest.raises(InputError, match="method is 'corrmatch' there and 'supervised' here"):
        make_trainer("supervised", resume_from_checkpoint="latest").train()
    with pytest.raises(InputError, match="name a step_"):
        make_trainer(resume_from_checkpoint="nowhere").train()


def test_a_non_finite_loss_stops_the_run_and_names_the_batch(make_trainer):
    trainer = make_trainer(max_steps=6, save_steps=2, logging_steps=2)
    losses = trainer.method.losses

    def poisoned(*args, **kwargs):
        total, logs = losses(*args, **kwargs)
        if trainer.step == 2:
            logs["loss/kl"] = logs["loss/kl"] * float("nan")
            total = total * float("nan")
        return total, logs

    trainer.method.losses = poisoned
    with pytest.raises(NonFiniteLossError, match=r"step 3 .*loss/kl nan.*Files of the batch: .*labeled"):
        trainer.train()
    (only,) = list_checkpoints(trainer.output_dir / "checkpoints")
    assert only.name == "step_00000002"
    again = make_trainer()
    load_checkpoint(again.accelerator, again.optimizer, only)
    assert all(p.isfinite().all() for p in again.method.parameters())


def test_weights_that_are_not_finite_are_never_saved(make_trainer):
    trainer = make_trainer(max_steps=3, save_steps=2)
    step = trainer._optimizer_step

    def breaking(*args):
        logs = step(*args)
        with torch.no_grad():
            next(trainer.method.parameters()).fill_(float("inf"))
        return logs

    trainer._optimizer_step = breaking
    with pytest.raises(NonFiniteLossError):
        trainer.train()
    assert list_checkpoints(trainer.output_dir / "checkpoints") == []


def test_refusals_before_the_first_step(make_trainer, tiny_data):
    with pytest.raises(InputError, match="--method supervised"):
        make_trainer(data=dataclasses.replace(tiny_data, unlabeled=None))
    with pytest.raises(InputError, match="--crop_size 4"):
        make_trainer(crop_size=4, model=fixed_size_model(tiny_data), method="supervised")
    with pytest.raises(InputError, match="classes"):
        other = dataclasses.replace(tiny_data, id2label={**tiny_data.id2label, 5: "star"})
        make_trainer(data=other, model=make_trainer().method.model)
    with pytest.raises(InputError, match="ignore"):
        other = dataclasses.replace(tiny_data, ignore_index=254)
        make_trainer(data=other, model=make_trainer().method.model)


@pytest.mark.parametrize("crop, given", [(33, "32 or 48"), (47, "32 or 48"), (7, "16 or 32")])
def test_a_crop_that_is_no_whole_number_of_patches_is_refused(make_trainer, tiny_data, crop, given):
    """It would be resized in every step, and no pixel would lie where it was."""
    with pytest.raises(
        InputError, match=f"--crop_size is {crop}, not a multiple of 16, .*'test_vit'; give {given}"
    ):
        make_trainer("unimatch_v2", model=small_vit(tiny_data), crop_size=crop)


def test_a_transformer_trains_resumes_and_is_saved(make_trainer, tiny_data):
    settings = {
        "crop_size": 48, "optimizer": "adamw", "layer_decay": 0.7, "cutmix_partner": "reversed", "save_steps": 2
    }  # fmt: skip
    whole = make_trainer("unimatch_v2", model=small_vit(tiny_data), **settings)
    result = whole.train()
    assert 0 <= result["final"]["mean_iou"] <= 1
    saved = AutoModelForSemanticSegmentation.from_pretrained(whole.output_dir)
    assert_same(saved.state_dict(), whole.method.teacher.network.state_dict())
    resumed = make_trainer(
        "unimatch_v2", model=small_vit(tiny_data), **settings,
        resume_from_checkpoint=str(whole.output_dir / "checkpoints" / "step_00000002"),
    )  # fmt: skip
    resumed.train()
    assert_same(resumed.method.state_dict(), whole.method.state_dict())
    with pytest.raises(InputError, match="decoder is 'dpt' there and 'linear' here"):
        make_trainer(
            "unimatch_v2",
            model=small_vit(tiny_data, decoder="linear"),
            resume_from_checkpoint="latest",
            **settings,
        ).train()
    for changed, named in (
        (
            {"freeze_encoder": True, "layer_decay": None},
            "freeze_encoder is False there and True here, layer_decay is",
        ),
        ({"layer_decay": 0.9}, "layer_decay is 0.7 there and 0.9 here"),
    ):
        with pytest.raises(InputError, match=named):
            make_trainer(
                "unimatch_v2",
                model=small_vit(tiny_data),
                resume_from_checkpoint="latest",
                **settings | changed,
            ).train()


def test_an_encoder_of_one_size_trains_on_crops_of_it_and_is_evaluated_on_any(make_trainer, tiny_data):
    def model():
        return CorrMatchForSegmentation(
            CorrMatchConfig(
                encoder_name="beit_base_patch16_224",
                encoder_kwargs={"depth": 4, "embed_dim": 24, "num_heads": 2, "img_size": 48},
                decoder="linear",
                correlation_head=False,
                id2label=tiny_data.id2label,
                label2id={v: k for k, v in tiny_data.id2label.items()},
            )
        )

    result = make_trainer("supervised", model=model(), crop_size=48, max_steps=1).train()
    assert 0 <= result["final"]["mean_iou"] <= 1
    with pytest.raises(
        InputError, match=r"--crop_size is 64, but .* only images of 48x48 pixels; give 48, or .*: 64\}"
    ):
        make_trainer("supervised", model=model(), crop_size=64, max_steps=1)


def test_one_image_of_one_patch_trains_where_there_is_no_batch_norm(make_trainer, tiny_data):
    trainer = make_trainer(
        "supervised", model=small_vit(tiny_data), crop_size=16, max_steps=1, per_device_batch_size=1
    )
    assert 0 <= trainer.train()["final"]["mean_iou"] <= 1


def small_vit(data, decoder="dpt"):
    return CorrMatchForSegmentation(
        CorrMatchConfig(
            encoder_name="test_vit",
            encoder_kwargs={"depth": 4, "embed_dim": 48, "num_heads": 3},
            decoder=decoder,
            decoder_channels=8,
            correlation_head=False,
            id2label=data.id2label,
            label2id={v: k for k, v in data.id2label.items()},
        )
    )


def fixed_size_model(data):
    """CoAtNet takes images of its own size only."""
    return CorrMatchForSegmentation(
        CorrMatchConfig(
            encoder_name="coatnet_pico_rw_224",
            output_stride=32,
            id2label=data.id2label,
            encoder_kwargs={"depths": (1, 1, 1, 1), "embed_dim": (8, 8, 16, 16), "img_size": 64},
            correlation_head=False,
        )
    )


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
    assert list(trainer.output_dir.rglob("events.out.tfevents*"))


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
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-3)
