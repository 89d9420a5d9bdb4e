"""UniMatch against numbers worked out by hand, and against the equations pixel by pixel."""

import math

import pytest
import torch

from corrmatch_hf.methods import UniMatch, UniMatchOptions
from corrmatch_hf.methods.unimatch import Predictions

from .tiny import logits_of, pseudo, random_batch, slow_unlabeled, targets, tiny_model


def test_a_step_by_hand():
    """Three pixels; the first view has a box on the last one, the second view none."""
    x, label = logits_of([[[0.2, 0.5, 0.5]]]), torch.tensor([[[0, 0, 255]]])
    weak = logits_of([[[0.97, 0.9, 0.01]]])
    perturbed = logits_of([[[0.5, 0.9, 0.4]]])
    partner = logits_of([[[0.5, 0.5, 0.99]]])
    strong = (logits_of([[[0.8, 0.5, 0.7]]]), logits_of([[[0.6, 0.5, 0.25]]]))
    valid = torch.ones(1, 1, 3, dtype=torch.bool)
    boxes = torch.tensor([[[[False, False, True]], [[False, False, False]]]])
    total, logs = UniMatch(tiny_model(num_labels=2)).losses(
        Predictions(x, perturbed, strong),
        pseudo(weak, valid),
        pseudo(partner, valid),
        targets(label, *boxes.unbind(1)),
    )
    expected = {
        "x": -(math.log(0.8) + math.log(0.5)) / 2,
        "fp": -(math.log(0.5) + math.log(0.6)) / 3,  # pixels 0 (class 1) and 2 (class 0) are confident
        "s1": -(math.log(0.8) + math.log(0.7)) / 3,  # pixel 2 is the partner's: class 1
        "s2": -(math.log(0.6) + math.log(0.75)) / 3,
    }
    for name, value in expected.items():
        assert logs[f"loss/{name}"].item() == pytest.approx(value, rel=1e-5), name
    combined = (expected["x"] + expected["s1"] / 4 + expected["s2"] / 4 + expected["fp"] / 2) / 2
    assert total.item() == pytest.approx(combined, rel=1e-5)


def test_a_second_step_by_hand():
    """Padding under and beside the box: each view counts its own valid pixels."""
    x, label = logits_of([[[0.5, 0.5]]]), torch.tensor([[[255, 255]]])
    weak, partner = logits_of([[[0.99, 0.99]]]), logits_of([[[0.01, 0.01]]])
    strong = (logits_of([[[0.3, 0.3]]]), logits_of([[[0.3, 0.3]]]))
    valid = torch.tensor([[[True, False]]])
    boxes = torch.tensor([[[[True, True]], [[False, True]]]])
    partner_valid = torch.tensor([[[False, True]]])
    total, logs = UniMatch(tiny_model(num_labels=2)).losses(
        Predictions(x, weak, strong),
        pseudo(weak, valid),
        pseudo(partner, partner_valid),
        targets(label, *boxes.unbind(1)),
    )
    s1 = -math.log(0.7)  # pixel 1 alone, the partner's class 0
    s2 = -(math.log(0.3) + math.log(0.7)) / 2
    fp = -math.log(0.99)  # pixel 0 alone
    assert logs["loss/s1"].item() == pytest.approx(s1, rel=1e-5)
    assert logs["loss/s2"].item() == pytest.approx(s2, rel=1e-5)
    assert total.item() == pytest.approx((s1 / 4 + s2 / 4 + fp / 2) / 2, rel=1e-5)


def test_every_view_equals_the_equation_pixel_by_pixel():
    g = torch.Generator().manual_seed(0)
    weak, perturbed, partner, first, second = (3 * torch.randn(2, 4, 5, 6, generator=g) for _ in range(5))
    valid, partner_valid = (torch.rand(2, 5, 6, generator=g) < p for p in (0.8, 0.7))
    boxes = torch.rand(2, 2, 5, 6, generator=g) < 0.4
    label = torch.randint(0, 4, (2, 5, 6), generator=g)
    unimatch = UniMatch(tiny_model(num_labels=4), UniMatchOptions(confidence_threshold=0.7))
    _, logs = unimatch.losses(
        Predictions(weak, perturbed, (first, second)),
        pseudo(weak, valid),
        pseudo(partner, partner_valid),
        targets(label, *boxes.unbind(1)),
    )
    nowhere = torch.zeros_like(valid)
    views = {"s1": (first, boxes[:, 0]), "s2": (second, boxes[:, 1]), "fp": (perturbed, nowhere)}
    for name, (view, box) in views.items():
        expected = slow_unlabeled(weak, view, partner, valid, partner_valid, box, 0.7)
        assert logs[f"loss/{name}"].item() == pytest.approx(expected, rel=1e-4), name


def test_without_dropout_the_perturbed_view_is_the_weak_one():
    """Then its loss is the entropy-like term of the weak view against its own labels."""
    unimatch = UniMatch(tiny_model(), UniMatchOptions(confidence_threshold=0.0, feature_dropout=0.0)).eval()
    batch = random_batch(views=2)
    _, logs = unimatch(batch)
    with torch.no_grad():
        confidence = unimatch.model(batch.weak).logits.softmax(1).amax(1)
    expected = -confidence.log()[batch.valid].mean()
    torch.testing.assert_close(logs["loss/fp"], expected, rtol=1e-4, atol=1e-6)
