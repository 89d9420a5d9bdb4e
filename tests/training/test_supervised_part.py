"""Methods that begin with labelled images alone: their schedule, and what the unlabelled ones changed."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from corrmatch_hf.methods import method_class
from corrmatch_hf.training.config import TrainingConfig
from corrmatch_hf.training.optimizer import build_schedule


def burn_in(share=0.5):
    return method_class("gatematch").Options(burn_in=share)


@pytest.fixture
def figures(monkeypatch):
    """Evaluations give these mean IoUs, one after the other."""

    def give(trainer, values):
        values, evaluate = iter(values), trainer.evaluate
        monkeypatch.setattr(trainer, "evaluate", lambda: evaluate() | {"mean_iou": next(values)})

    return give


def test_a_harmful_unlabelled_part_is_told_in_log_summary_and_card(make_trainer, figures, capsys):
    trainer = make_trainer("gatematch", options=burn_in(), eval_steps=3, report=True)
    figures(trainer, [0.5, 0.4, 0.3])  # steps 2 (the burn-in's end), 3, 4
    result = trainer.train()
    assert result["supervised"] == {"step": 2, "mean_iou": 0.5} and result["best"]["step"] == 2
    told = "the mean IoU was 50.0 % after step 2, with unlabelled ones it is 30.0 % after step 4. They did not help"
    assert told in result["effect"] and "--confidence_threshold" in result["effect"]
    out = capsys.readouterr().out
    assert told in out and "warning: With labelled images alone" in out and "40.0 % after step 3" in out
    card = (trainer.output_dir / "README.md").read_text(encoding="utf-8")
    assert "They did not help" in card
    assert "They did not help" not in (trainer.output_dir / "best" / "README.md").read_text(encoding="utf-8")
    assert json.loads((trainer.output_dir / "metrics.json").read_text())["effect"] == result["effect"]


def test_a_gain_is_told_without_a_warning(make_trainer, figures, capsys):
    trainer = make_trainer("gatematch", options=burn_in(), save_steps=3)
    figures(trainer, [0.3, 0.4])
    assert "30.0 % after step 2" in trainer.train()["effect"]
    out = capsys.readouterr().out
    assert "it is 40.0 % after step 4" in out and "not help" not in out and "warning" not in out
    again = make_trainer(
        "gatematch",
        options=burn_in(),
        save_steps=3,
        resume_from_checkpoint=str(trainer.output_dir / "checkpoints" / "step_00000003"),
    )
    figures(again, [0.4])
    assert again.train()["supervised"] == {"step": 2, "mean_iou": 0.3}  # remembered
    for maps in zip(trainer.supervised_maps, again.supervised_maps, strict=True):  # for predictions.png, too
        assert np.array_equal(*maps)


def test_figures_of_other_validation_images_are_not_compared(make_trainer, tiny_data, figures):
    options = {"options": burn_in(), "save_steps": 3}
    trainer = make_trainer("gatematch", **options)
    figures(trainer, [0.3, 0.4])
    trainer.train()
    fewer = dataclasses.replace(tiny_data, validation=tiny_data.validation.select([0]))
    before = str(trainer.output_dir / "checkpoints" / "step_00000003")
    with pytest.warns(UserWarning, match="on other data"):
        result = make_trainer("gatematch", data=fewer, resume_from_checkpoint=before, **options).train()
    assert result["supervised"] is None and result["effect"] is None


def test_a_step_that_accumulates_both_kinds_is_not_of_the_supervised_part(make_trainer, figures):
    trainer = make_trainer("gatematch", options=burn_in(0.4), gradient_accumulation_steps=2)
    assert trainer.method.supervised_passes % 2 == 1  # the burn-in ends inside a step
    figures(trainer, [0.3, 0.4])
    assert trainer.train()["supervised"] == {"step": trainer.method.supervised_passes // 2, "mean_iou": 0.3}
    rows = [json.loads(line) for line in (trainer.output_dir / "training_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "mean_iou" in row] == [1, 4]


@pytest.mark.parametrize("found", [1, 2])
def test_classes_left_to_the_labelled_images_are_told(make_trainer, capsys, found):
    """Of a teacher that finds so many classes."""
    options = method_class("gatematch").Options(burn_in=0.25, soft_labels=True, teacher_recall=1.0)
    trainer = make_trainer("gatematch", options=options, report=True)
    names = list(trainer.data.id2label.values())
    recall = torch.arange(len(names)) < found
    trainer.method.class_recall.update = lambda logits, labels: None
    trainer.method.class_recall.counts.copy_(torch.stack([recall, torch.ones_like(recall)]))
    result = trainer.train()
    teach, of = {
        1: ("nothing", f"pixels of {', '.join(names[1:])} on"),
        2: (f"do not teach {', '.join(names[2:])}", "of their pixels on"),
    }[found]
    told = f"Unlabelled images {'' if 'not' in teach.split() else 'teach '}{teach}: the teacher finds too few {of}"
    assert result["starving"].startswith(told)
    assert capsys.readouterr().out.count(f"warning: {told}") == 1
    rows = [json.loads(line) for line in (trainer.output_dir / "training_log.jsonl").read_text().splitlines()]
    taught = [row["per_class"]["taught"] for row in rows if "per_class" in row]
    assert taught == [recall.int().tolist()] * 3
    assert all(row["kept_ratio"] < 1 for row in rows if "kept_ratio" in row)
    for page in ("README.md", "report.html"):
        assert told in (trainer.output_dir / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("method", ["corrmatch", "supervised"])
def test_other_methods_have_no_such_part(make_trainer, method):
    result = make_trainer(method).train()
    assert result["supervised"] is None and result["effect"] is None


def test_a_step_skipped_at_a_renewal_leaves_the_whole_teacher(make_trainer):
    """Its parameters, its statistics and what it teaches, though buffers go back to what they were before the step."""
    recall = {"teacher_recall": 1e-9, "gate_interval": 1}
    options = method_class("gatematch").Options(burn_in=1 / 3, teacher_rounds=2, soft_labels=True, **recall)
    trainer = make_trainer("gatematch", options=options, max_steps=6, on_non_finite="skip")
    method, seen = trainer.method, {}
    forward = method.forward

    def spoiled(batch):
        if batch.step == 3:
            method.class_recall.taught.zero_()
        loss, logs = forward(batch)
        if batch.step == 4:
            assert method.class_recall.taught.any()
            seen.update({key: value.clone() for key, value in method.teacher.network.state_dict().items()})
            loss = loss * float("nan")
        if batch.step == 5:
            assert method.class_recall.taught.any()
            assert all(torch.equal(value, seen[key]) for key, value in method.labeler.state_dict().items())
        return loss, logs

    method.forward = spoiled
    trainer.train()
    assert method.renewals == {2, 4} and seen


@pytest.mark.parametrize(
    ("restarts", "expected"),
    [
        ({6}, [0, 0.5, 1, 0.75, 0.5, 0.25, 0.5, 0.375, 0.25, 0.125]),
        ({8, 4}, [0, 0.5, 1, 0.5, 0.5, 0.375, 0.25, 0.125, 0.5, 0.25]),  # in each of two rounds
        ({0, 5}, [0, 0.5, 1, 2 / 3, 1 / 3, 0.5, 0.4, 0.3, 0.2, 0.1]),  # without a supervised part
        ({1}, [0, 0.5, *(0.5 * rest / 9 for rest in range(8, 0, -1))]),  # inside the warm-up
    ],
)  # fmt: skip
def test_the_rate_decays_again(restarts, expected):
    config = TrainingConfig(lr_restart=0.5, warmup_steps=2, lr_power=1.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, config, steps=10, restarts=restarts)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected)
    once = build_schedule(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), config, 10)
    assert type(once).__name__ == "LambdaLR" and once.get_last_lr() == [0]
