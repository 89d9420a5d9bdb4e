"""UniMatch V2 against numbers worked out by hand, and against a slow step written from the equations."""

import copy
import math

import pytest
import torch

from corrmatch_hf.methods import UniMatchV2, UniMatchV2Options
from corrmatch_hf.ops.random_masks import complementary_channel_masks

from .tiny import logits_of, pseudo, random_batch, slow_unlabeled, targets, tiny_model, tiny_vit


def test_a_step_by_hand():
    """Three pixels; the first view has a box on the last one, the second view none."""
    x, label = logits_of([[[0.2, 0.5, 0.5]]]), torch.tensor([[[0, 0, 255]]])
    weak = logits_of([[[0.97, 0.9, 0.01]]])
    partner = logits_of([[[0.5, 0.5, 0.99]]])
    strong = (logits_of([[[0.8, 0.5, 0.7]]]), logits_of([[[0.6, 0.5, 0.25]]]))
    valid = torch.ones(1, 1, 3, dtype=torch.bool)
    boxes = torch.tensor([[[[False, False, True]], [[False, False, False]]]])
    total, logs = UniMatchV2(tiny_model(num_labels=2)).losses(
        x, strong, pseudo(weak, valid), pseudo(partner, valid), targets(label, *boxes.unbind(1))
    )
    expected = {
        "x": -(math.log(0.8) + math.log(0.5)) / 2,
        "s1": -(math.log(0.8) + math.log(0.7)) / 3,  # pixel 2 is the partner's: class 1
        "s2": -(math.log(0.6) + math.log(0.75)) / 3,  # pixels 0 (class 1) and 2 (class 0) are confident
    }
    for name, value in expected.items():
        assert logs[f"loss/{name}"].item() == pytest.approx(value, rel=1e-5), name
    combined = (expected["x"] + (expected["s1"] + expected["s2"]) / 2) / 2
    assert total.item() == pytest.approx(combined, rel=1e-5)
    assert logs["kept_ratio"].item() == pytest.approx(2 / 3)


def slow_step(method, batch, threshold):
    """One image at a time, which a network without BatchNorm allows, and one pixel at a time."""
    f, g = method.model, copy.deepcopy(method.teacher.network).eval()
    count, size = len(batch.weak), batch.weak.shape[-2:]
    with torch.no_grad():
        x = torch.cat([f(image[None]).logits for image in batch.image])
        weak = torch.cat([g(image[None]).logits for image in batch.weak])
        partner = torch.zeros_like(weak)
        partner_valid = torch.zeros_like(batch.valid)
        for place, row in enumerate(batch.partner_rows):
            partner[row] = g(batch.partner_weak[place : place + 1]).logits[0]
            partner_valid[row] = batch.partner_valid[place]
        width = f.encoder.channels[0]
        masks = complementary_channel_masks(
            count, width, "cpu", seed=method.seed, step=batch.step, use="complementary features", whole=True
        )
        terms = []
        for view in range(2):
            views = []
            for i in range(count):
                levels = f.encode(batch.strong[i, view][None])
                dropped = type(levels)(
                    level * masks[view * count + i][None, :, None, None] for level in levels
                )
                views.append(f.upsample(f.decode(dropped).logits, size))
            terms.append(
                slow_unlabeled(
                    weak, torch.cat(views), partner, batch.valid, partner_valid, batch.box[:, view], threshold
                )
            )
    labeled, pixels = 0.0, 0
    for i, y, z in torch.nonzero(batch.label != 255).tolist():
        labeled -= x[i, :, y, z].log_softmax(0)[batch.label[i, y, z]].item()
        pixels += 1
    return (labeled / pixels + (terms[0] + terms[1]) / 2) / 2, terms


def test_a_step_equals_the_equations():
    torch.manual_seed(0)
    method = UniMatchV2(tiny_vit(), UniMatchV2Options(confidence_threshold=0.4), seed=11).train()
    with torch.no_grad():
        for p in method.teacher.parameters():  # a teacher that is not its student
            p.add_(0.05 * torch.randn_like(p))
        method.teacher.network.decoder.classify.weight *= 20  # and is sure of some pixels
    batch = random_batch(step=3, unlabeled=3, size=32, rows=(0, 2), views=2)
    batch.valid[:, 28:] = False
    batch.label[0, :5] = 255
    loss, logs = method(batch)
    total, terms = slow_step(method, batch, 0.4)
    assert 0 < logs["kept_ratio"] < 1, "the threshold would not matter"
    assert [logs["loss/s1"].item(), logs["loss/s2"].item()] == pytest.approx(terms, rel=1e-4)
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_the_levels_of_a_pyramid_lack_channels_of_their_own():
    """And of the labelled images nothing is dropped, nor without the perturbation."""
    method = UniMatchV2(tiny_model()).train()
    seen, encode, decode = [], method.model.encode, method.model.decode
    method.model.encode = lambda images: seen.append(encode(images)) or seen[-1]
    method.model.decode = lambda features: seen.append(features) or decode(features)
    method(random_batch(unlabeled=4, rows=(1,), views=2))
    labelled, same, before, after = seen
    assert same is labelled
    for level, dropped in zip(before, after, strict=True):
        first, second = dropped.chunk(2)
        whole = [
            torch.equal(torch.cat([first[i], second[i]]), torch.cat([level[i], level[4 + i]]))
            for i in range(4)
        ]
        assert sum(whole) == 2
        for i in (i for i in range(4) if not whole[i]):
            absent = (first[i] == 0).all((-2, -1)), (second[i] == 0).all((-2, -1))
            dead = (level[i] == 0).all((-2, -1)) | (level[4 + i] == 0).all((-2, -1))
            assert ((absent[0] ^ absent[1]) | dead).all() and absent[0].any() and absent[1].any()
            there = ~absent[0]
            assert torch.equal(first[i][there], 2 * level[i][there])
    assert len(before[0][0]) != len(before[1][0])

    seen.clear()
    method.options.feature_perturbation = "none"
    method(random_batch(unlabeled=4, rows=(1,), views=2))
    assert seen[2] is seen[3]


def test_the_teacher_gives_the_pseudo_labels_follows_and_is_what_is_saved():
    method = UniMatchV2(tiny_model(), UniMatchV2Options(confidence_threshold=0.0, teacher_decay=0.5)).train()
    assert method.segmentation_model is method.teacher.network
    batch = random_batch(views=2)
    _, before = method(batch)
    buffers = {k: v.clone() for k, v in method.teacher.network.named_buffers()}
    with torch.no_grad():
        method.teacher.network.decoder.classify.bias[3] += 50.0  # now everything is class 3 to it
    loss, after = method(batch)
    torch.testing.assert_close(after["loss/x"], before["loss/x"])
    assert after["loss/s1"] != before["loss/s1"] and after["loss/s2"] != before["loss/s2"]
    assert all(torch.equal(buffers[k], v) for k, v in method.teacher.network.named_buffers()), (
        "evaluation mode"
    )
    loss.backward()
    assert not any(p.grad is not None for p in method.teacher.parameters())
    method.after_step()  # the first update copies the student, its statistics, too
    for name, value in method.model.state_dict().items():
        assert torch.equal(value, method.teacher.network.state_dict()[name]), name
