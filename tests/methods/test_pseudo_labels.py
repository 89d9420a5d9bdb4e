"""Pseudo-labels and how they mix; predictions for CutMix partners, with and without a pass of their own."""

import dataclasses

import pytest
import torch

from corrmatch_hf.methods import method_class
from corrmatch_hf.methods.pseudo_labels import PseudoLabels, partner_logits

from .tiny import random_batch, tiny_vit


def batch_of_partners(places):
    """Rows 0, 2 and 3 have a box; partners with a place are what `weak` shows there."""
    batch = random_batch(unlabeled=4, size=48, rows=(0, 2, 3), views=2)
    batch.partner_valid[:, :7] = False
    for i, place in enumerate(places):
        if place >= 0:
            batch.partner_weak[i] = batch.weak[place]
    return dataclasses.replace(batch, partner_places=list(places))


class Seen:
    """Numbers of images that a network was given, pass by pass."""

    def __init__(self, network):
        self.passes = []
        network.encoder.register_forward_hook(
            lambda module, inputs, output: self.passes.append(len(inputs[0]))
        )


@pytest.mark.parametrize("places, unseen", [((3, 1, 0), []), ((-1, 1, -1), [2]), ((-1, -1, -1), [3])])
def test_partners_that_are_weak_views_need_no_pass(places, unseen):
    batch, model = batch_of_partners(places), tiny_vit().eval()
    with torch.no_grad():
        weak = model(batch.weak).logits
    expected, valid = partner_logits(model, batch)
    seen = Seen(model)
    logits, same_valid = partner_logits(model, batch, weak)
    assert seen.passes == unseen
    torch.testing.assert_close(logits, expected)
    assert torch.equal(valid, same_valid) and not logits[1].any() and not valid[1].any()
    assert logits[[0, 2, 3]].any(dim=(1, 2, 3)).all()


@pytest.mark.parametrize(
    "name, options, images",
    [
        ("unimatch_v2", {}, [4]),
        ("fixmatch", {"teacher": "ema"}, [4]),
        ("corrmatch", {"teacher": "ema"}, [4]),
        ("dgcl", {"dgcl_memory_size": 40}, [4]),
    ],
)
def test_teachers_see_every_image_once(name, options, images):
    cls = method_class(name)
    if "confidence_threshold" in cls.Options.__dataclass_fields__:
        options = {**options, "confidence_threshold": 0.2}
    batch, losses = batch_of_partners((3, 1, 0)), []
    for known in (False, True):
        torch.manual_seed(0)
        method = cls(tiny_vit(), cls.Options(**options)).train()
        seen = Seen(method.teacher.network)
        loss, _ = method(batch if known else dataclasses.replace(batch, partner_places=[]))
        losses.append(loss)
    assert seen.passes == images
    torch.testing.assert_close(losses[1], losses[0])


def test_mixed_pseudo_labels_are_those_of_the_mixed_logits():
    weak, partner = torch.randn(2, 2, 5, 6, 7)
    valid, partner_valid, box = torch.rand(3, 2, 6, 7) < 0.5
    mixed = PseudoLabels.of(weak, valid).mixed(PseudoLabels.of(partner, partner_valid), box)
    assert torch.equal(mixed.logits, torch.where(box[:, None], partner, weak))
    again = PseudoLabels.of(mixed.logits, mixed.valid)
    assert torch.equal(mixed.labels, again.labels) and torch.equal(mixed.confidence, again.confidence)
    assert torch.equal(mixed.valid, torch.where(box, partner_valid, valid))
    kept = mixed.confident(0.5)
    assert torch.equal(kept, (again.confidence >= 0.5) & mixed.valid)
    assert mixed.ratio(kept) == kept.sum() / mixed.valid.sum()
