"""FixMatch against numbers worked out by hand, and against loops written from the equations."""

import math

import pytest
import torch

from corrmatch_hf.methods import FixMatch, FixMatchOptions

from .tiny import logits_of, pseudo, random_batch, slow_unlabeled, targets, tiny_model


def method(**options):
    return FixMatch(tiny_model(num_labels=2), FixMatchOptions(**options))


def test_a_step_by_hand():
    """One image of four pixels: confident, not confident, padding, and one of the partner's."""
    x, label = logits_of([[[0.25, 0.5, 0.9, 0.9]]]), torch.tensor([[[0, 1, 255, 1]]])
    weak = logits_of([[[0.96, 0.9, 0.99, 0.3]]])
    partner = logits_of([[[0.5, 0.5, 0.5, 0.02]]])  # inside the box: class 0, 0.98 sure
    strong = logits_of([[[0.6, 0.6, 0.6, 0.2]]])
    valid = torch.tensor([[[True, True, False, True]]])
    box = torch.tensor([[[False, False, False, True]]])
    total, logs = method().losses(
        x, strong, pseudo(weak, valid), pseudo(partner, box.clone()), targets(label, box)
    )

    labeled = -(math.log(0.75) + math.log(0.5) + math.log(0.9)) / 3
    unlabeled = -(math.log(0.6) + math.log(0.8)) / 3  # two confident pixels, three valid ones
    assert logs["loss/x"].item() == pytest.approx(labeled, rel=1e-5)
    assert logs["loss/s"].item() == pytest.approx(unlabeled, rel=1e-5)
    assert total.item() == pytest.approx((labeled + unlabeled) / 2, rel=1e-5)
    assert logs["kept_ratio"].item() == pytest.approx(2 / 3)


def test_a_second_step_by_hand():
    """Everything counts at threshold 0; the partner's padding inside the box does not."""
    x, label = logits_of([[[0.5, 0.5]]]), torch.tensor([[[0, 0]]])
    weak, partner = logits_of([[[0.6, 0.3]]]), logits_of([[[0.9, 0.9]]])
    strong = logits_of([[[0.1, 0.7]]])
    box = torch.tensor([[[True, False]]])
    valid = torch.ones_like(box)
    total, logs = method(confidence_threshold=0.0).losses(
        x, strong, pseudo(weak, valid), pseudo(partner, ~valid), targets(label, box)
    )
    unlabeled = -math.log(0.3)  # the second pixel alone is valid: class 0
    assert logs["loss/s"].item() == pytest.approx(unlabeled, rel=1e-5)
    assert total.item() == pytest.approx((math.log(2) + unlabeled) / 2, rel=1e-5)


def test_the_loss_equals_the_equation_pixel_by_pixel():
    g = torch.Generator().manual_seed(0)
    weak, strong, partner = (3 * torch.randn(2, 4, 5, 6, generator=g) for _ in range(3))
    valid, partner_valid, box = (torch.rand(2, 5, 6, generator=g) < p for p in (0.8, 0.7, 0.4))
    label = torch.randint(0, 4, (2, 5, 6), generator=g)
    for threshold in (0.0, 0.6, 0.95, 1.0):
        fixmatch = FixMatch(tiny_model(num_labels=4), FixMatchOptions(confidence_threshold=threshold))
        _, logs = fixmatch.losses(
            weak, strong, pseudo(weak, valid), pseudo(partner, partner_valid), targets(label, box)
        )
        expected = slow_unlabeled(weak, strong, partner, valid, partner_valid, box, threshold)
        assert logs["loss/s"].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_the_teacher_gives_the_pseudo_labels_and_is_what_is_saved():
    fixmatch = FixMatch(tiny_model(), FixMatchOptions(teacher="ema", confidence_threshold=0.0)).train()
    assert fixmatch.segmentation_model is fixmatch.teacher.network
    batch = random_batch()
    _, before = fixmatch(batch)
    with torch.no_grad():
        fixmatch.teacher.network.decoder.classify.bias[3] += 50.0  # now everything is class 3 to it
    _, after = fixmatch(batch)
    torch.testing.assert_close(after["loss/x"], before["loss/x"])
    assert after["loss/s"] != before["loss/s"] and after["kept_ratio"] == 1
    buffers = {k: v.clone() for k, v in fixmatch.teacher.network.named_buffers()}
    fixmatch(batch)  # the teacher is in evaluation mode: its statistics stay
    assert all(torch.equal(buffers[k], v) for k, v in fixmatch.teacher.network.named_buffers())
