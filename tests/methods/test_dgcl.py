"""The DGCL step against loops written from the equations; resuming; absent classes; two processes."""

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation.inference import evaluating
from corrmatch_hf.methods.dgcl import DGCL, NO_CLASS, DGCLOptions, Pixels, _labels_by_entropy
from corrmatch_hf.ops.inter_pixel import inter_pixel_correlation, inter_pixel_kl, inter_pixel_pairwise

from ..two_processes import in_two_processes
from .test_processes import frozen_batch_norm, part
from .tiny import random_batch, tiny_model

K = 5
MEMORY = 60


def make(num_labels=K, seed=0, **options):
    options = {"memory_size": MEMORY, "projection_channels": 8} | options
    options = DGCLOptions(
        **{name if "inter_pixel" in name else f"dgcl_{name}": value for name, value in options.items()}
    )
    return DGCL(tiny_model(num_labels), options, seed=seed).train()


def fill(method, classes=range(K)):
    """A full memory of random entries for `classes`."""
    memory, generator = method.memory, torch.Generator().manual_seed(1)
    for name, buffer in memory.named_buffers():
        if name != "added":
            value = torch.randn(buffer.shape, generator=generator)
            buffer.copy_(F.normalize(value, dim=-1) if name == "features" else value)
    memory.added[list(classes)] = memory.size
    return method


def random_pixels(images=(1, 1), each=30, classes=K, channels=16, projected=8):
    count = sum(images) * each
    return Pixels(
        features=F.normalize(torch.randn(count, channels), dim=-1),
        projections=torch.randn(count, projected, requires_grad=True),
        confidence=torch.rand(count),
        labels=torch.randint(-1, classes, (count,)),
        images=images,
    )


def slow_contrast(method, pixels):
    """L_c with loops; every pixel of another class is a negative, every pixel a candidate."""
    o, memory = method.options, method.memory
    anchors_of, keys_of, temperature = o.dgcl_anchors, o.dgcl_keys, o.dgcl_temperature
    losses = []
    for c in range(len(memory.added)):
        own = [i for i, label in enumerate(pixels.labels.tolist()) if label == c]
        if c == o.dgcl_ignored_class or memory.added[c] < memory.size or not own:
            continue
        rank = {}
        for i in own:
            nearest = sorted((float(pixels.features[i] @ row) for row in memory.features[c]), reverse=True)
            rank[i] = sum(sum(nearest[:k]) / k for k in (8, 16, 32)) / 3
        if o.dgcl_anchor_sampling == "confidence":
            rank = {i: float(pixels.confidence[i]) for i in own}
        rising = sorted(own, key=rank.get)
        entries = sorted(range(memory.size), key=lambda i: -float(memory.scores[c, i]))[:keys_of]
        keys = [pixels.projections[i].detach() for i in rising[-keys_of:]]
        keys += [memory.projections[c, i] for i in entries]
        prototype = F.normalize(sum(keys) / len(keys), dim=0)
        others = [i for i, label in enumerate(pixels.labels.tolist()) if label not in (c, NO_CLASS)]
        of_class = []
        for i in rising[:anchors_of]:
            anchor = F.normalize(pixels.projections[i], dim=0)
            positive = (anchor @ prototype / temperature).exp()
            negative = sum(
                (anchor @ F.normalize(pixels.projections[j].detach(), dim=0) / temperature).exp()
                for j in others
            )
            of_class.append(-(positive / (positive + negative)).log())
        losses.append(sum(of_class) / len(of_class))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ignored_class": -1},
        {"ignored_class": 3, "temperature": 0.1},
        {"anchor_sampling": "confidence", "key_sampling": "confidence"},
        {"anchors": 100, "keys": 100},
    ],
)
def test_the_contrast_by_loops(options):
    method = fill(make(**{"anchors": 4, "keys": 3} | options), classes=(0, 1, 3, 4))
    pixels = random_pixels()
    want = slow_contrast(method, pixels)
    (want_gradient,) = torch.autograd.grad(want, pixels.projections)
    got, ready = method._contrast(pixels, step=7)
    (gradient,) = torch.autograd.grad(got, pixels.projections)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, want_gradient, rtol=1e-4, atol=1e-7)
    assert ready == 4


def test_random_sampling_takes_pixels_of_the_class_and_others_in_another_step():
    method = fill(make(anchors=4, keys=3, anchor_sampling="random", key_sampling="random"))
    pixels = random_pixels()

    def anchors_of(step):
        (gradient,) = torch.autograd.grad(fill(method)._contrast(pixels, step)[0], pixels.projections)
        return set(gradient.abs().sum(1).nonzero().flatten().tolist())

    first, second = anchors_of(1), anchors_of(2)
    assert first == anchors_of(1) != second
    for c in range(K):
        chosen = sum(pixels.labels[i] == c for i in first)
        assert chosen == (0 if c == 0 else min(4, (pixels.labels == c).sum()))


def test_the_memory_learns_candidates_with_their_density_before():
    method = fill(make())
    pixels = random_pixels()
    before = method.memory.features.clone()
    method._contrast(pixels, step=0)
    memory = method.memory
    assert memory.added.tolist() == [MEMORY, *[MEMORY + 6] * 4], "a tenth of each, none of the ignored class"
    for c in range(1, K):
        assert torch.equal(memory.features[c, 6:], before[c, 6:])
        for place in range(6):
            (i,) = (pixels.projections == memory.projections[c, place]).all(1).nonzero().flatten()
            assert pixels.labels[i] == c
            torch.testing.assert_close(memory.features[c, place], pixels.features[i])
            nearest = (before[c] @ pixels.features[i]).sort(descending=True).values
            want = sum(nearest[:k].mean() for k in (8, 16, 32)) / 3
            torch.testing.assert_close(memory.scores[c, place], want)


def test_pseudo_label_loss_by_loops():
    method, drop = make(), 0.3
    strong, weak, partner = (torch.randn(2, K, 6, 7) for _ in range(3))
    valid, partner_valid = torch.rand(2, 6, 7) > 0.2, torch.rand(2, 6, 7) > 0.2
    box = torch.zeros(2, 6, 7, dtype=torch.bool)
    box[0, 1:4, 2:6] = True
    own, others = _labels_by_entropy(weak, valid), _labels_by_entropy(partner, partner_valid)
    got, over = method._self_training(strong, own, own.mixed(others, box), drop)

    def uncertainty(logits):
        p = logits.softmax(1)
        return -(p * (p + 1e-10).log()).sum(1)

    threshold = np.quantile(uncertainty(weak)[valid].double().numpy(), 1 - drop)
    total, kept = 0.0, torch.zeros_like(valid)
    for n in range(2):
        for y in range(6):
            for x in range(7):
                source, ok = (partner, partner_valid) if box[n, y, x] else (weak, valid)
                if ok[n, y, x] and uncertainty(source)[n, y, x] <= threshold + 1e-6:
                    label = source[n, :, y, x].argmax()
                    total -= strong[n, :, y, x].log_softmax(0)[label].item()
                    kept[n, y, x] = True
    assert torch.equal(over, kept)
    assert got.item() == pytest.approx(84 / kept.sum().item() * total / kept.sum().item(), rel=1e-5)


INTER_PIXEL = {
    "kl": lambda *views: inter_pixel_kl(*views, 2.0),
    "correlation": inter_pixel_correlation,
    "pairwise": lambda *views: inter_pixel_pairwise(
        *views, torch.Generator(), 4096, 2.0
    ),  # room for all pixels
}


@pytest.mark.parametrize("kind", INTER_PIXEL)
def test_the_inter_pixel_loss_compares_the_pixels_with_a_pseudo_label(kind):
    """Value and gradients: the step without it, plus the term on the strong view and the teacher's mixed logits."""
    more = {
        "inter_pixel_loss": kind,
        "inter_pixel_weight": 3.0,
        "inter_pixel_temperature": 2.0,
        "inter_pixel_pixels": 4096,
    }
    on, off = fill(make(label_drop=0.3, **more)), fill(make(label_drop=0.3))
    # A teacher that is not its student.
    state = on.state_dict()
    state |= {k: v + 0.1 * torch.randn_like(v) for k, v in state.items() if "teacher" in k and "weight" in k}
    on.load_state_dict(state)
    off.load_state_dict(state)
    batch = random_batch(rows=(1,), size=33)
    batch.valid[0, 20:], batch.partner_valid[0, :, :8] = False, False
    student, teacher = copy.deepcopy(on.model), copy.deepcopy(on.teacher.network)

    with evaluating(teacher):
        weak, partner = teacher(batch.weak).logits, teacher(batch.partner_weak).logits

    def uncertainty(logits):
        p = logits.softmax(1)
        return -(p * (p + 1e-10).log()).sum(1)

    threshold = np.quantile(uncertainty(weak)[batch.valid].double().numpy(), 0.7)
    box = batch.box[1, 0]
    targets, valid = weak.clone(), batch.valid.clone()
    targets[1] = torch.where(box, partner[0], weak[1])
    valid[1] = torch.where(box, batch.partner_valid[0], valid[1])
    kept = valid & (uncertainty(targets) <= threshold + 1e-6)
    strong = student(torch.cat([batch.image, batch.weak, batch.strong[:, 0]])).logits[4:]
    term = 3 * INTER_PIXEL[kind](strong, targets, kept)

    got, logs = on(batch)
    plain, plain_logs = off(batch)
    assert set(logs) == set(plain_logs) | {"loss/inter_pixel"}
    torch.testing.assert_close(logs["loss/inter_pixel"], term.detach(), rtol=1e-4, atol=1e-6)
    assert term > 0
    torch.testing.assert_close(got, plain + term, rtol=1e-5, atol=1e-6)
    for loss in (got, plain, term):
        loss.backward()
    trained = [[p for p in model.parameters() if p.requires_grad] for model in (on.model, off.model, student)]
    for one, two, three in zip(*trained, strict=True):
        torch.testing.assert_close(one.grad, two.grad + three.grad, rtol=1e-3, atol=1e-5)
    assert all(p.grad is None for p in on.teacher.parameters())


def test_contrast_labels_at_the_size_of_the_features():
    method, batch = make(), random_batch(size=48)
    low = torch.randn(2, K, 12, 12)
    batch.label[0, :8] = 255
    labels = method._contrast_labels(batch, low, drop=0.5)
    assert torch.equal(labels[0, 2:], batch.label[0, 8::4, ::4])
    assert (labels[0, :2] == NO_CLASS).all()
    unlabeled = labels[2:]
    assert (unlabeled[:, 10:] == NO_CLASS).all(), "padding"
    known = unlabeled != NO_CLASS
    assert known.sum() == 120, "half of the 240 pixels that are not padding"
    assert torch.equal(unlabeled[known], low.argmax(1)[known])


def test_the_schedule_is_that_of_the_run_where_no_other_is_given():
    method = make(supervised_share=0.2)
    assert method.progress(60) == 0
    method.plan(100)
    assert method.progress(20) == 0 and method.progress(60) == 0.5 and method.progress(100) == 1
    own = make(total_steps=50, supervised_share=0.0)
    own.plan(100)
    assert own.progress(50) == 1


def test_the_filters_relax_over_the_run():
    method = make(total_steps=100, supervised_share=0.2)
    assert [method.progress(step) for step in (0, 20, 60, 100, 200)] == [0, 0, 0.5, 1, 1]
    assert method.dropped(20) == (0.2, 0.8)
    assert method.dropped(60) == pytest.approx((0.1, 0.4))
    assert method.dropped(100) == (0.0, 0.1)
    assert make().dropped(10**6) == (0.2, 0.8), "a run of unknown length keeps them as at the start"


@pytest.mark.parametrize("more", [{}, {"inter_pixel_loss": "kl"}])
def test_supervised_steps_use_labels_alone_and_the_teacher_starts_as_the_student(more):
    method = make(total_steps=10, supervised_share=0.2, **more)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        loss, logs = method(random_batch(step))
        loss.backward()
        missing = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == [], "data-parallel training needs a gradient everywhere"
        optimizer.step()
        method.after_step()
        names = {"loss/x", "loss/u", "loss/c", "kept_ratio", "ready_classes"}
        names |= {"loss/inter_pixel"} if more else set()
        assert set(logs) == names, "the same in every step"
        assert (logs["kept_ratio"] == 0) == (logs["loss/u"] == 0) == (step < 2)
        assert step >= 2 or loss == logs["loss/x"]
        student, teacher = (
            network.decoder.classify.weight for network in (method.model, method.segmentation_model)
        )
        assert torch.equal(student, teacher) == (step < 3)
    assert method.teacher.updates == 2


def test_the_teacher_labels_in_evaluation_mode_and_gets_no_gradient():
    method = make()
    seen = []
    method.teacher.network.encoder.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    method(random_batch())[0].backward()
    assert seen == [False, False]
    assert method.teacher.network.training
    assert all(p.grad is None for p in method.teacher.parameters())


def test_an_absent_class_keeps_no_other_from_learning():
    method = make(ignored_class=-1)
    found = []
    for step in range(12):
        pixels = random_pixels(classes=2)
        found.append(method._contrast(pixels, step))
    assert found[-1][1] == 2 and found[-1][0] > 0
    assert found[0][1] == 0 and found[0][0] == 0
    assert method.memory.added[2:].sum() == 0


def test_a_class_that_is_ready_but_not_seen_adds_nothing():
    method = fill(make())
    pixels = random_pixels(classes=2)
    torch.testing.assert_close(method._contrast(pixels, 0)[0], slow_contrast(fill(method), pixels))


def test_edge_cases_are_finite():
    nothing = random_batch()
    nothing.label.fill_(255)
    nothing.valid.fill_(False)
    nothing.partner_valid.fill_(False)
    one_class = random_batch()
    one_class.label.fill_(1)
    for ready in (range(K), ()):
        for batch in (
            nothing,
            one_class,
            random_batch(labeled=1, unlabeled=1, rows=(0,)),
            random_batch(rows=()),
        ):
            method = fill(make(), ready)
            loss, logs = method(batch)
            loss.backward()
            assert loss.isfinite() and all(v.isfinite() and not v.requires_grad for v in logs.values())
            assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)
            if batch is nothing:
                assert loss == 0 and method.memory.added.eq(fill(make(), ready).memory.added).all()


@pytest.mark.parametrize("num_labels", [2, 150])
def test_few_and_many_classes(num_labels):
    method = make(num_labels, memory_size=10_000, memory_total=40 * 150)
    method.memory.added.fill_(method.memory.size)
    assert method.memory.size == (3000 if num_labels == 2 else 40)
    loss, logs = method(random_batch(num_labels=num_labels))
    loss.backward()
    assert loss.isfinite() and logs["ready_classes"] == num_labels
    size = sum(b.numel() * b.element_size() for b in method.memory.buffers())
    assert size <= 4 * 40 * 150 * (16 + 8 + 1) + 8 * num_labels


def test_the_published_memory_takes_what_is_stated():
    o = DGCLOptions()
    assert (o.memory_per_class(2), o.memory_per_class(21), o.memory_per_class(150)) == (10_000, 10_000, 1400)


def test_the_contrast_separates_classes():
    """Images whose colours tell the class: the projections of a class come together, away from the others."""
    method = make(memory_size=32, ignored_class=-1, supervised_share=0.0)
    batch = random_batch(size=48, rows=(), seed=0)
    batch.label = (
        torch.arange(4).view(2, 2).repeat_interleave(24, 0).repeat_interleave(24, 1).expand(2, 48, 48)
    )
    colours = torch.randn(4, 3)[batch.label].permute(0, 3, 1, 2)
    batch.image = 3 * colours + 0.1 * batch.image

    def similarities():
        """Mean cosine of projections of equal and of different classes."""
        with torch.no_grad():
            projected = method.projection(method.model.decode(method.model.encode(batch.image)).fused)
        rows = F.normalize(projected.permute(0, 2, 3, 1).flatten(0, 2), dim=-1)
        labels = batch.label[:, ::4, ::4].flatten()
        same = labels[:, None] == labels
        cosine = rows @ rows.T
        return cosine[same].mean().item(), cosine[~same].mean().item()

    optimizer = torch.optim.SGD(method.projection.parameters(), lr=0.1)
    same, different = similarities()
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss, logs = method(batch)
        loss.backward()
        optimizer.step()
        losses.append(logs["loss/c"].item())
    learnt_same, learnt_different = similarities()
    assert learnt_same - learnt_different > same - different + 0.1
    assert losses[-1] < losses[12] - 0.3


def run(method, steps):
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss, _ = method(random_batch(step, seed=step))
        loss.backward()
        optimizer.step()
        method.after_step()
        losses.append(loss.detach())
    return losses


def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit():
    whole = make(memory_size=32, total_steps=16)
    run(whole, range(11))
    saved = {k: v.clone() for k, v in whole.state_dict().items()}
    want = run(whole, range(11, 14))
    torch.manual_seed(123)
    resumed = make(memory_size=32, total_steps=16)
    resumed.load_state_dict(saved)
    assert all(torch.equal(a, b) for a, b in zip(run(resumed, range(11, 14)), want, strict=True))
    for (name, one), two in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert (whole.memory.added[1:] >= 32).all(), "the contrast was part of it"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignored_class": 5}, "classes 0 to 4"),
        ({"memory_size": 31}, "at least 32"),
        ({"memory_total": 100}, "20 pixels to each of 5"),
    ],
)
def test_options_that_do_not_fit_the_classes(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


# ------------------------------------------------------------------------------------------------ processes

STEPS = 3


def total_batch(step):
    batch = random_batch(step=step, labeled=4, unlabeled=4, rows=(0, 1, 3), seed=step)
    batch.valid[0] = False  # the processes have different numbers of valid pixels
    batch.label[:2, 5:] = 255
    return batch


def several_steps(of_process=None):
    torch.manual_seed(0)
    # Fewer candidates, anchors, keys and negatives than there are pixels: all must be chosen over the total batch.
    method = fill(make(seed=5, memory_size=40, anchors=6, keys=5, negatives=30))
    wrapped = method if of_process is None else DistributedDataParallel(method)
    frozen_batch_norm(method)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for step in range(STEPS):
        batch = total_batch(step)
        optimizer.zero_grad()
        loss, _ = wrapped(batch if of_process is None else part(batch, of_process))
        loss.backward()
        optimizer.step()
        method.after_step()
        loss = loss.detach().clone()
        if of_process is not None:
            dist.all_reduce(loss)
            loss /= 2
        losses.append(loss)
    return torch.stack(losses), method.state_dict()


def test_two_processes_equal_one(tmp_path):
    (losses, state), (others, other_state) = in_two_processes(several_steps, tmp_path)
    want, want_state = several_steps()
    assert torch.equal(losses, others)
    torch.testing.assert_close(losses, want, rtol=1e-5, atol=0)
    for name, value in want_state.items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5)
        if name.startswith("memory."):
            assert torch.equal(state[name], other_state[name]), "nobody sends the memory round"
