"""GateMatch against FixMatch, where both are the same, and against loops written from the equations."""

import copy
import itertools
import math

import pytest
import torch

from corrmatch_hf.data.batch import SemiBatch
from corrmatch_hf.errors import InputError
from corrmatch_hf.methods import FixMatch, FixMatchOptions, GateMatch, GateMatchOptions
from corrmatch_hf.methods.class_recall import MOMENTUM, ClassRecall
from corrmatch_hf.methods.class_weights import ClassWeights
from corrmatch_hf.methods.gatematch import Targets

from .test_corrmatch import random_batch, tiny_model


def method(num_labels=5, **options):
    options = {"burn_in": 0.0} | options
    torch.manual_seed(0)
    return GateMatch(tiny_model(num_labels), GateMatchOptions(**options))


def test_with_half_weights_and_nothing_else_it_is_fixmatch_with_a_teacher():
    ours = method(labeled_weight=0.5, unlabeled_weight=0.5, confidence_threshold=0.3).eval()
    torch.manual_seed(0)
    options = FixMatchOptions(teacher="ema", teacher_decay=0.99, confidence_threshold=0.3)
    theirs = FixMatch(tiny_model(), options).eval()
    for seed in range(3):
        batch = random_batch(step=seed, unlabeled=3, rows=(0, 2), seed=seed)
        batch.partner_places = [-1, 1]  # one partner of its own, one among the weak views
        batch.partner_weak[1], batch.partner_valid[1] = batch.weak[1], batch.valid[1]
        (a, logs), (b, expected) = ours(batch), theirs(batch)
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(logs["loss/x"], expected["loss/x"])
        torch.testing.assert_close(logs["loss/u"], expected["loss/s"])


def test_the_burn_in_needs_no_unlabelled_images():
    ours = method(burn_in=0.5, confidence_threshold=0.0)
    ours.plan(10)
    batch = random_batch()
    labelled = SemiBatch(step=4, image=batch.image, label=batch.label)
    loss, logs = ours(labelled)
    torch.testing.assert_close(loss.detach(), logs["loss/x"])
    assert logs["loss/u"] == 0
    batch.step = 5
    later = ours(batch)[1]
    assert later["loss/u"] > 0 and set(later) == set(logs)


def test_the_ramp_up():
    ours = method(burn_in=0.5, ramp_up=0.2)
    ours.plan(20)
    assert [ours.ramp(step) for step in (10, 11, 13, 14, 19)] == [0.25, 0.5, 1, 1, 1]


def test_class_weights():
    weights = ClassWeights(3, 0.5)
    weights.update(torch.tensor([[[0, 0, 0, 0, 255, 1]]]))
    weights.update(torch.tensor([[[0, 0, 0, 0, 255, 1]]]))
    share = [8 / 11, 2 / 11, 1 / 11]  # the class not seen counts as one pixel
    raw = [s**-0.5 for s in share]
    scale = sum(s * r for s, r in zip(share, raw, strict=True))
    assert weights.weights().tolist() == pytest.approx([r / scale for r in raw])
    assert ClassWeights(3, 0.0).weights().tolist() == [1, 1, 1]


def test_the_weighted_labelled_loss_pixel_by_pixel():
    ours = method(num_labels=3, class_weight_power=0.7)
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    labels[0, 0] = 255
    ours.class_weights.update(labels)
    w = ours.class_weights.weights()
    over, under = 0.0, 0.0
    for i in range(2):
        for y in range(4):
            for x in range(5):
                if (k := int(labels[i, y, x])) != 255:
                    over -= w[k].item() * logits[i, :, y, x].log_softmax(0)[k].item()
                    under += w[k].item()
    assert ours.labeled_loss(logits, labels).item() == pytest.approx(over / under, rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_unlabelled_loss_pixel_by_pixel(weighted):
    ours = method(num_labels=3, class_weight_power=0.5, unlabeled_class_weights=weighted)
    ours.class_weights.update(torch.tensor([[[0, 0, 0, 1, 1, 2]]]))
    v = ours.class_weights.weights() if weighted else torch.ones(3)
    logits, labels, k = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4)), torch.rand(1, 4, 4)
    valid = torch.rand(1, 4, 4) < 0.7
    over, under = 0.0, 0.0
    for y in range(4):
        for x in range(4):
            if valid[0, y, x]:
                label = int(labels[0, y, x])
                over -= (v[label] * k[0, y, x] * logits[0, :, y, x].log_softmax(0)[label]).item()
                under += v[label].item()
    assert ours.unlabeled_loss(logits, Targets(labels, k), valid).item() == pytest.approx(
        over / under, rel=1e-5
    )


@pytest.mark.parametrize("power", [1, 2])
def test_soft_labels_pixel_by_pixel(power):
    """Cross-entropy with the teacher's probabilities, mirror image averaged; the partner's inside the box."""
    ours = method(soft_labels=True, teacher_flip=True, sharpening=power).eval()
    batch = random_batch(unlabeled=2, rows=(1,))
    batch.partner_places = [0]  # the first image's pixels are pasted into the second
    batch.partner_weak[0], batch.partner_valid[0] = batch.weak[0], batch.valid[0]
    teacher, model = ours.teacher.network, ours.model
    with torch.no_grad():
        p = teacher(batch.weak).logits.softmax(1)
        p = (p + teacher(batch.weak.flip(-1)).logits.softmax(1).flip(-1)) / 2
        p = p**power / (p**power).sum(1, keepdim=True)
        q = model(batch.strong[:, 0]).logits.log_softmax(1)
    total = counted = 0
    for i, y, x in itertools.product(range(2), *map(range, batch.weak.shape[-2:])):
        source = 0 if i == 1 and batch.box[1, 0, y, x] else i
        if batch.valid[source, y, x]:
            counted += 1
            total -= float(p[source, :, y, x] @ q[i, :, y, x])
    assert ours(batch)[1]["loss/u"].item() == pytest.approx(total / counted, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "tau"),
    [
        ({}, 0.95),
        ({"soft_labels": True}, 0),
        ({"soft_labels": True, "threshold": "class_mean"}, 0.95),
        ({"soft_labels": True, "confidence_threshold": 0.5}, 0.5),
        ({"confidence_threshold": 0.0}, 0),
    ],
)
def test_the_threshold_that_is_not_given(options, tau):
    assert GateMatchOptions(**options).tau == tau


def test_soft_labels_of_a_sure_teacher_are_labels():
    probability = torch.nn.functional.one_hot(torch.randint(0, 3, (2, 4, 4)), 3).movedim(-1, 1).float()
    labels, weight = probability.argmax(1), torch.rand(2, 4, 4)
    logits, valid = torch.randn(2, 3, 4, 4), torch.rand(2, 4, 4) < 0.7
    soft = method(num_labels=3).unlabeled_loss(logits, Targets(labels, weight, probability), valid)
    torch.testing.assert_close(
        soft, method(num_labels=3).unlabeled_loss(logits, Targets(labels, weight), valid)
    )


def test_thresholds_follow_each_class():
    """Two batches of class 0; class 1 is not predicted and keeps its statistics."""
    confidence, labels = torch.tensor([[[0.5, 0.7, 0.9]]]), torch.zeros(1, 1, 3, dtype=torch.long)
    valid = torch.tensor([[[True, True, False]]])
    for kind in ("class_mean", "soft"):
        ours = method(num_labels=2, threshold=kind, statistics_momentum=0.5)
        ours._follow(confidence, labels, valid)
        ours._follow(confidence, labels, valid)
        assert ours.confidence_mean.tolist() == pytest.approx([0.25 * 0.95 + 0.75 * 0.6, 0.95])
        assert ours.confidence_variance.tolist() == pytest.approx([0.25 * 0.01 + 0.75 * 0.01, 0.01])
    soft = ours.weight(confidence, labels).flatten().tolist()
    m, s = ours.confidence_mean[0].item(), ours.confidence_variance[0].sqrt().item()
    expected = [math.exp(-(min(c - m, 0) ** 2) / (2 * (s / 2) ** 2)) for c in (0.5, 0.7, 0.9)]
    assert soft == pytest.approx(expected, rel=1e-4)
    ours = method(num_labels=2, threshold="class_mean", confidence_threshold=0.8)
    ours.confidence_mean[:] = torch.tensor([0.6, 0.9])  # the second one is above the largest threshold
    labels = torch.tensor([[[0, 0, 1, 1]]])
    confidence = torch.tensor([[[0.59, 0.61, 0.79, 0.81]]])
    assert ours.weight(confidence, labels).flatten().tolist() == [0, 1, 0, 1]


def test_alignment_by_hand():
    """Labels are of classes 0 and 1, three to one; the teacher says one to one at first."""
    ours = method(num_labels=2, alignment=0.5, statistics_momentum=0.5)
    ours.class_weights.update(torch.tensor([[[0, 0, 0, 1, 255]]]))
    p = torch.tensor([0.4, 0.6]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    valid = torch.tensor([[[True, False]]])
    p0 = torch.tensor([[[[0.4, 0.9]], [[0.6, 0.1]]]])  # the second pixel is padding
    first = ours._aligned(p0, valid, update=True)
    assert ours.prediction_mean.tolist() == pytest.approx([0.4, 0.6])
    raw = [0.4 * (0.75 / 0.4) ** 0.5, 0.6 * (0.25 / 0.6) ** 0.5]
    assert first[0, :, 0, 0].tolist() == pytest.approx([r / sum(raw) for r in raw])
    ours._aligned(p.flip(1), valid, update=True)
    assert ours.prediction_mean.tolist() == pytest.approx([0.5, 0.5])
    before = ours.prediction_mean.clone()
    ours._aligned(p, valid, update=False)
    torch.testing.assert_close(ours.prediction_mean, before)


PROPAGATING = {"region_propagation": True, "correlation_weight": 0.5, "region_ratio": 0.3,
               "confidence_threshold": 0.21}  # fmt: skip


def test_propagation_only_adds_labels_and_waits_for_its_gate():
    ours = method(propagation_accuracy=0.5, **PROPAGATING)
    batch = random_batch()
    plain, after = ours.targets(batch.weak, batch.valid, step=0, gated=False)
    assert (after.weight >= plain.weight).all() and after.weight.sum() > plain.weight.sum()
    assert not after.weight[~batch.valid].any()
    for accuracy, is_open in ((0.4, False), (0.6, True)):
        ours.added_accuracy.fill_(accuracy)
        gated = ours.targets(batch.weak, batch.valid, step=0)[1]
        torch.testing.assert_close(gated.weight, after.weight if is_open else plain.weight)


def test_the_gate_measures_the_pixels_that_propagation_adds():
    ours = method(propagation_accuracy=0.5, gate_interval=1, **PROPAGATING)
    batch = random_batch()
    batch.label[:, :10] = 255
    valid = batch.label != 255
    plain, after = ours.targets(batch.image, valid, step=0, gated=False)
    right = count = 0
    for place in valid.nonzero().tolist():
        place = tuple(place)
        changed = plain.weight[place] <= 0.5 or after.labels[place] != plain.labels[place]
        if after.weight[place] > 0.5 and changed:
            count += 1
            right += int(after.labels[place] == batch.label[place])
    assert count
    ours._measure_propagation(batch)
    assert ours.added_accuracy.item() == pytest.approx(right / count)


def test_pixel_propagation_trains_the_correlation_head():
    ours = method(correlation_weight=0.5, confidence_threshold=0.0)
    loss, logs = ours(random_batch())
    loss.backward()
    assert "loss/x_corr" in logs
    assert all(p.grad is not None and p.grad.any() for p in ours.model.correlation.query.parameters())


@pytest.mark.parametrize("kind", ["dropout", "complementary"])
def test_feature_perturbation(kind):
    ours = method(feature_perturbation=kind, confidence_threshold=0.0)
    views = 2 if kind == "complementary" else 1
    assert ours.strong_views == views
    batch = random_batch(views=views)
    first, again = ours(batch)[0], ours(batch)[0]
    torch.testing.assert_close(first, again)  # the draw depends on seed and step alone
    plain = method(confidence_threshold=0.0)
    assert not torch.allclose(first, plain(batch)[0])


def test_the_mirror_image_is_averaged():
    ours = method(teacher_flip=True).eval()
    image = torch.randn(1, 3, 33, 33)
    both = torch.cat([image, image.flip(-1)])
    targets = ours.targets(both, torch.ones(2, 33, 33, dtype=torch.bool), step=0)[0]
    torch.testing.assert_close(targets.labels[0], targets.labels[1].flip(-1))


def test_options_that_cannot_work():
    with pytest.raises(InputError, match="--correlation_weight"):
        GateMatchOptions(region_propagation=True).check()
    with pytest.raises(InputError, match="give --soft_labels False"):
        GateMatchOptions(region_propagation=True, correlation_weight=0.5, soft_labels=True).check()
    with pytest.raises(InputError, match="or give --soft_labels"):
        GateMatchOptions(sharpening=2).check()
    with pytest.raises(InputError, match="give --class_weight_power"):
        GateMatchOptions(unlabeled_class_weights=True).check()
    with pytest.raises(InputError, match="or give --region_propagation --correlation_weight"):
        GateMatchOptions(propagation_accuracy=0.9).check()
    with pytest.raises(InputError, match="give --burn_in"):
        GateMatchOptions(burn_in=0, teacher_rounds=1, teacher_recall=0.5).check()
    with pytest.raises(InputError, match="give --labeled_loss ce"):
        GateMatchOptions(class_weight_power=0.5, labeled_loss="ohem").check()
    with pytest.raises(InputError, match="--num_shapes is 0"):
        GateMatchOptions(num_shapes=0).check()


def test_the_recall_of_each_class_by_hand():
    recall = ClassRecall(3)
    found, seen = [0.0] * 3, [0.0] * 3
    for _ in range(3):
        logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 2, (2, 4, 4))  # class 2 is not seen
        labels[0, 0] = 255
        recall.update(logits, labels)
        found, seen = ([v * MOMENTUM for v in values] for values in (found, seen))
        for i, y, x in itertools.product(range(2), range(4), range(4)):
            if (label := int(labels[i, y, x])) != 255:
                seen[label] += 1
                found[label] += int(logits[i, :, y, x].argmax()) == label
    expected = [a / b if b else 0 for a, b in zip(found, seen, strict=True)]
    assert recall.recall().tolist() == pytest.approx(expected)
    assert not recall.taught.any()  # before the first decision
    least = sum(expected[:2]) / 2
    recall.decide(least)
    assert recall.taught.tolist() == [value >= least for value in expected]


@pytest.mark.parametrize("soft", [True, False])
def test_unlabelled_images_leave_out_classes_that_are_not_taught(soft):
    """By loops: such a class takes part in no pixel, so that its logits have no gradient, and others share the rest."""
    ours = method(num_labels=4, soft_labels=soft, teacher_recall=0.5, confidence_threshold=0.0).eval()
    taught = [0, 2]
    ours.class_recall.taught[taught] = True
    batch = random_batch(unlabeled=2, rows=(), num_labels=4)
    with torch.no_grad():
        p = ours.teacher.network(batch.weak).logits.softmax(1)
    target, _ = ours.targets(batch.weak, batch.valid, step=0)
    logits = torch.randn_like(p).requires_grad_()
    loss = ours.unlabeled_loss(logits, target, batch.valid)
    loss.backward()
    assert not logits.grad[:, [1, 3]].any() and logits.grad[:, taught].any()
    total = 0.0
    for i, y, x in itertools.product(range(2), *map(range, batch.weak.shape[-2:])):
        if not batch.valid[i, y, x]:
            continue
        q = logits.detach()[i, taught, y, x].log_softmax(0)
        given = p[i, :, y, x]
        if soft:
            total -= float(given[taught] @ q)
        elif int(given.argmax()) in taught:
            total -= float(q[taught.index(int(given.argmax()))])
    assert loss.item() == pytest.approx(total / int(batch.valid.sum()), rel=1e-4)
    # A true label that was pasted counts, whatever its class.
    labels = torch.ones(1, 4, 4, dtype=torch.long)
    true, few = ours.true_targets(labels), torch.randn(1, 4, 4, 4)
    expected = -few[:, [1, *taught]].log_softmax(1)[:, 0].mean()
    torch.testing.assert_close(ours.unlabeled_loss(few, true, labels.bool()), expected)
    # With no class taught, unlabelled images teach nothing.
    ours.class_recall.taught.fill_(False)
    target, _ = ours.targets(batch.weak, batch.valid, step=0)
    assert ours.unlabeled_loss(logits, target, batch.valid) == 0


def test_what_is_taught_is_decided_when_the_labelling_copy_is_renewed():
    ours = method(burn_in=1 / 6, teacher_rounds=2, soft_labels=True, teacher_recall=0.5, gate_interval=4)
    ours.plan(12)
    decided, measured = [], []
    ours.class_recall.update = lambda logits, labels: measured.append((step, logits))
    for step in range(9):
        batch = random_batch(step=step)
        ours.class_recall.counts[0] = step >= 5  # found from step 5 on alone
        ours.class_recall.counts[1] = 1
        teacher = copy.deepcopy(ours.teacher.network).eval()
        ours(batch)
        if measured and measured[-1][0] == step:  # the teacher, as it predicts
            torch.testing.assert_close(measured[-1][1], teacher(batch.image).logits)
        decided.append(bool(ours.class_recall.taught.all()))
    assert decided == [False] * 7 + [True] * 2  # renewed at steps 2 and 7
    assert [step for step, _ in measured] == [0, 2, 4, 7, 8]


def test_objects_can_be_pasted_while_a_class_is_not_taught():
    ours = method(num_labels=3, paste_probability=1.0, paste_while="untaught", teacher_recall=0.5)
    always = method(num_labels=3, paste_probability=1.0)
    batch = random_batch(num_labels=3)
    for each in (ours, always):
        each.class_weights.update(batch.label)
    for taught in ([False] * 3, [True, False, True]):
        ours.class_recall.taught.copy_(torch.tensor(taught))
        pixels, _ = ours.pasted_objects(batch, 0)
        assert pixels.any() and torch.equal(pixels, always.pasted_objects(batch, 0)[0])
    ours.class_recall.taught.fill_(True)
    assert not ours.pasted_objects(batch, 0)[0].any()
    with pytest.raises(InputError, match="give --teacher_recall"):
        GateMatchOptions(paste_probability=0.5, paste_while="untaught").check()


def test_objects_of_labelled_images_are_pasted_with_their_labels():
    ours = method(num_labels=3, paste_probability=1.0)
    batch = random_batch(labeled=2, unlabeled=3, num_labels=3)
    batch.label[:, :40], batch.label[:, 40:44], batch.label[:, 44:] = 0, 1, 2
    batch.label[:, :2] = 255
    ours.class_weights.update(batch.label)
    seen = set()
    for step in range(12):
        batch.step = step
        pixels, rows = ours.pasted_objects(batch, 0)
        assert rows.tolist() == [0, 0, 1]
        for row, mask in zip(rows.tolist(), pixels, strict=True):
            label = batch.label[row]
            shown = frozenset(label[mask].tolist())
            assert not shown & {0, 255}  # neither the most frequent class nor what is ignored
            assert int(mask.sum()) == sum(int((label == k).sum()) for k in shown)  # classes as a whole
            seen.add(shown)
    assert seen == {frozenset(), frozenset({1}), frozenset({2}), frozenset({1, 2})}
    none = method(num_labels=3, paste_probability=0.0)
    assert not none.pasted_objects(batch, 0)[0].any()
    # Everything pasted, and no pseudo-label kept: the unlabelled loss is that of the true labels.
    options = {"num_labels": 3, "paste_probability": 1.0, "confidence_threshold": 1.0}
    ours, soft = method(**options).eval(), method(**options, soft_labels=True).eval()
    for each in (ours, soft):
        each.class_weights.update(batch.label)
    loss = ours(batch)[1]["loss/u"]
    torch.testing.assert_close(soft(batch)[1]["loss/u"], loss)
    pixels, rows = ours.pasted_objects(batch, 0)
    image = torch.where(pixels.unsqueeze(1), batch.image[rows], batch.strong[:, 0])
    each = torch.nn.functional.cross_entropy(
        ours.model(image).logits, batch.label[rows], ignore_index=255, reduction="none"
    )
    mixed_valid = (
        torch.where(batch.box[:, 0] & (torch.arange(3) == 1).view(3, 1, 1), True, batch.valid) | pixels
    )
    torch.testing.assert_close(loss, (each * pixels).sum() / mixed_valid.sum())


def test_labels_of_rounds_come_from_a_copy_of_the_teacher():
    """With two rounds in ten steps after a burn-in of two, the copy is renewed at steps 2 and 7 alone."""
    ours = method(burn_in=1 / 6, teacher_rounds=2, confidence_threshold=0.0)
    ours.plan(12)
    assert ours.renewals == {2, 7} and ours.rate_restarts == {2}
    soft = method(burn_in=1 / 6, teacher_rounds=2, soft_labels=True)
    soft.plan(12)
    assert soft.rate_restarts == {2, 7}
    copies = []
    for step in range(2, 9):
        with torch.no_grad():  # the teacher moves on in every step
            for parameter in ours.teacher.network.parameters():
                parameter.add_(0.01)
        ours(random_batch(step=step))
        copies.append(next(ours.labeler.parameters()).clone())
        if step in ours.renewals:
            assert torch.equal(copies[-1], next(ours.teacher.network.parameters()))
    same = [torch.equal(a, b) for a, b in itertools.pairwise(copies)]
    assert same == [True, True, True, True, False, True]
    assert not any(parameter.requires_grad for parameter in ours.labeler.parameters())


def test_a_run_that_begins_within_a_round_takes_the_teacher_as_it_is():
    """As after resuming with an earlier end of the burn-in: labels never come from an untrained copy."""
    ours = method(burn_in=1 / 6, teacher_rounds=2, soft_labels=True)
    ours.plan(12)
    with torch.no_grad():
        for parameter in ours.teacher.network.parameters():
            parameter.add_(0.01)
    ours(random_batch(step=4))
    taught = next(ours.labeler.parameters()).clone()
    assert torch.equal(taught, next(ours.teacher.network.parameters()))
    with torch.no_grad():
        next(ours.teacher.network.parameters()).add_(0.01)
    ours(random_batch(step=5))
    assert torch.equal(taught, next(ours.labeler.parameters()))
    again = method(burn_in=1 / 6, teacher_rounds=2, soft_labels=True)  # resumed with the same options
    again.plan(12)
    again.load_state_dict(ours.state_dict())
    again(random_batch(step=6))
    assert torch.equal(taught, next(again.labeler.parameters()))
