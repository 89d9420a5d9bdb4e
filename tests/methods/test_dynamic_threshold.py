"""The threshold against the reference updates, and the rules of its variants."""

import pytest
import torch
from safetensors.torch import load_file

from corrmatch_hf.errors import InputError
from corrmatch_hf.methods import DynamicThreshold
from corrmatch_hf.methods.dynamic_threshold import largest_per_class


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


def test_largest_per_class_in_columns():
    values, labels = torch.rand(2, 6, 8), torch.randint(0, 4, (2, 6, 8))
    want = torch.stack([values[labels == c].max() for c in range(4)] + [torch.tensor(-1.0)])
    for columns in (1, 8):
        assert torch.equal(largest_per_class(values, labels, 5, columns), want)
