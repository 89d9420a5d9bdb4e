"""The threshold against the reference updates, and the rules of its variants."""

import pytest
import torch
from safetensors.torch import load_file

from corrmatch_hf.errors import InputError
from corrmatch_hf.methods import DynamicThreshold


def test_reference(shared_dir):
    t = load_file(shared_dir / "reference/threshold.safetensors")
    threshold = DynamicThreshold(t["logits"].shape[2], t["init"].item(), t["momentum"].item())
    for logits, ignore, want in zip(t["logits"], t["ignore"], t["threshold"], strict=True):
        confidence, labels = logits.softmax(1).max(1)
        got = threshold.update(confidence, labels, ignore != 255)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


CONFIDENCE = torch.tensor([[[0.9, 0.6, 0.8, 0.99]]])
LABELS = torch.tensor([[[0, 0, 2, 1]]])
VALID = torch.tensor([[[True, True, True, False]]])


@pytest.mark.parametrize(
    ("rule", "target"),
    [("class_max", (0.9 + 0.8) / 2), ("global_max", 0.9), ("global_mean", (0.9 + 0.6 + 0.8) / 3)],
)
def test_rules(rule, target):
    threshold = DynamicThreshold(3, initial=0.5, momentum=0.9, update=rule)
    threshold.update(CONFIDENCE, LABELS, VALID)
    assert threshold.value.item() == pytest.approx(0.9 * 0.5 + 0.1 * target)


@pytest.mark.parametrize("rule", ["class_max", "global_max", "global_mean", "per_class"])
def test_rules_are_loops_over_the_classes(rule):
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        classes, n, h, w = (int(torch.randint(1, high, (), generator=generator)) for high in (30, 4, 12, 12))
        labels = torch.randint(classes, (n, h, w), generator=generator)
        confidence = torch.rand(n, h, w, generator=generator).round(decimals=seed % 5)  # 0, 1 and equal ones
        valid = torch.rand(n, h, w, generator=generator) < 0.3
        before = [t.clone() for t in (confidence, labels, valid)]
        threshold = DynamicThreshold(classes, initial=0.5, momentum=0.75, update=rule)
        threshold.update(confidence, labels, valid)
        best = {c: confidence[valid & (labels == c)].max() for c in labels[valid].unique().tolist()}
        if rule == "per_class":
            want = torch.full((classes,), 0.5)
            for c, value in best.items():
                want[c] = 0.75 * want[c] + 0.25 * value
            assert torch.equal(threshold.value, want)
        elif best:
            mean = torch.stack([*best.values()]).double().mean()
            target = {"class_max": mean, "global_max": max(best.values())}.get(
                rule, confidence[valid].double().mean()
            )
            assert threshold.value.item() == pytest.approx(0.75 * 0.5 + 0.25 * target.item(), rel=1e-6)
        assert all(torch.equal(a, b) for a, b in zip(before, (confidence, labels, valid), strict=True))


def test_per_class_moves_only_the_classes_seen():
    threshold = DynamicThreshold(3, initial=0.5, momentum=0.9, update="per_class")
    threshold.update(CONFIDENCE, LABELS, VALID)
    assert threshold.value.tolist() == pytest.approx([0.45 + 0.09, 0.5, 0.45 + 0.08])
    assert threshold.confident(CONFIDENCE, LABELS).tolist() == [[[True, True, True, True]]]
    assert threshold.confident(CONFIDENCE - 0.3, LABELS).tolist() == [[[True, False, False, True]]]


@pytest.mark.parametrize("rule", ["class_max", "global_max", "global_mean", "per_class", "fixed"])
def test_no_valid_pixel_changes_nothing(rule):
    threshold = DynamicThreshold(3, initial=0.5, update=rule)
    before = threshold.value.clone()
    assert torch.equal(threshold.update(CONFIDENCE, LABELS, torch.zeros_like(VALID)), before)


def test_fixed_stays():
    threshold = DynamicThreshold(3, initial=0.0, update="fixed")
    assert threshold.update(CONFIDENCE, LABELS, VALID).item() == 0


def test_value_is_saved_with_the_state():
    threshold = DynamicThreshold(3)
    assert "value" in threshold.state_dict()


def test_unknown_rule_names_the_nearest():
    with pytest.raises(InputError, match="class_max"):
        DynamicThreshold(3, update="clas_max")
