"""The CPS step: its losses against slow versions and steps worked out by hand, and the two networks it trains."""

import copy
import math
import zlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from corrmatch_hf.data.batch import SemiBatch
from corrmatch_hf.errors import InputError
from corrmatch_hf.methods import cps as module
from corrmatch_hf.methods.cps import CPS, CPSOptions, Supervision
from corrmatch_hf.ops.random_masks import cutmix_mask

from .test_dgcl import INTER_PIXEL
from .tiny import random_batch, targets, tiny_model

VARIANTS = [
    {},
    {"cps_supervision": "soft"},
    {"cps_cutmix": True},
    {"cps_cutmix": True, "cps_supervision": "soft"},
]


def plain_model(**config):
    return tiny_model(correlation_head=False, **config)


def make(seed=0, num_labels=5, **options):
    return CPS(plain_model(num_labels=num_labels), CPSOptions(**options), seed=seed).train()


def gradients(method):
    return {name: p.grad for name, p in method.named_parameters()}


# ----------------------------------------------------------------------------------------- two steps worked out by hand


class PixelModel(nn.Module):
    """Logits of a pixel are a matrix (2 classes, 3 channels) times its channels."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.decoder = nn.Conv2d(3, 2, 1, bias=False)

    def forward(self, images):
        return SimpleNamespace(logits=self.decoder(images))


def picture(*rows):
    """A row of pixels per image; "a", "b" and "c" are the three channels."""
    return torch.stack([torch.eye(3)[["abc".index(p) for p in row]].T.unsqueeze(1) for row in rows])


def by_hand(**options):
    """f1 says 0 1 1 of the pixels a b c, and f2 says 0 0 1, each with probability 3/4."""
    method = CPS(PixelModel(SimpleNamespace(ignore_index=255, num_labels=2)), CPSOptions(**options))
    with torch.no_grad():
        first, second = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]) * math.log(3)
        method.model.decoder.weight.copy_(first[..., None, None])
        method.second.decoder.weight.copy_(second[..., None, None])
    return method


RIGHT, WRONG = math.log(4 / 3), math.log(4)  # cross-entropy of a label that has probability 3/4 or 1/4


def test_a_step_worked_out_by_hand():
    method = by_hand()
    batch = SemiBatch(0, picture("ab"), torch.tensor([[[0, 255]]]), picture("cb"))
    batch.valid = torch.ones(1, 1, 2, dtype=torch.bool)
    total, logs = method(batch)
    # x: both are right about "a". The networks agree on a and c, and not on b, which comes twice.
    cps = 2 * (2 * RIGHT + 2 * WRONG) / 4
    assert logs["loss/x1"].item() == pytest.approx(RIGHT)
    assert logs["loss/x2"].item() == pytest.approx(RIGHT)
    assert logs["loss/cps"].item() == pytest.approx(cps)
    assert logs["agreement"].item() == 0.5
    assert total.item() == pytest.approx(2 * RIGHT + 1.5 * cps)

    total.backward()
    # Of f1: (probability - label) for each pixel; 1.5 / 4 of each pixel is under cross supervision, one is labelled.
    share = 1.5 / 4
    row = torch.tensor([-0.25 - 0.25 * share, -0.75 * 2 * share, 0.25 * share])
    torch.testing.assert_close(method.model.decoder.weight.grad[..., 0, 0], torch.stack([row, -row]))
    # Of f2: b's label is 1 and its probability 1/4.
    row = torch.tensor([-0.25 - 0.25 * share, 0.75 * 2 * share, 0.25 * share])
    torch.testing.assert_close(method.second.decoder.weight.grad[..., 0, 0], torch.stack([row, -row]))


def test_a_step_with_cutmix_worked_out_by_hand(monkeypatch):
    mask = torch.tensor([[[False, True]], [[True, True]]])
    monkeypatch.setattr(module, "cutmix_mask", lambda *args, **kwargs: mask)
    method = by_hand(cps_cutmix=True, cps_weight=2.0)
    batch = SemiBatch(0, picture("b", "b"), torch.tensor([[[0]], [[1]]]), picture("ab", "cc"))
    batch.valid = torch.ones(2, 1, 2, dtype=torch.bool)
    total, logs = method(batch)
    # Mixed pictures are "ac" and "ab": three pixels on which the networks agree, and b.
    cps = 2 * (3 * RIGHT + WRONG) / 4
    assert logs["loss/x1"].item() == pytest.approx((WRONG + RIGHT) / 2)
    assert logs["loss/x2"].item() == pytest.approx((RIGHT + WRONG) / 2)
    assert logs["loss/cps"].item() == pytest.approx(cps)
    assert logs["agreement"].item() == 0.75
    assert total.item() == pytest.approx(WRONG + RIGHT + 2 * cps)


# ----------------------------------------------------------------------------------------------------- slow versions


def slow_mean(logits, target, soft):
    """Mean cross-entropy, pixel by pixel."""
    terms = []
    for n in range(logits.shape[0]):
        for i in range(logits.shape[2]):
            for j in range(logits.shape[3]):
                q = logits[n, :, i, j] - logits[n, :, i, j].logsumexp(0)
                t = target[n, :, i, j].detach()
                p = t.softmax(0) if soft else nn.functional.one_hot(t.argmax(), len(t)).to(t.dtype)
                terms.append(-(p * q).sum())
    return torch.stack(terms).mean()


def slow_total(method, batch):
    """The step as the published one goes: a second batch for the partners, logits mixed before the argmax."""
    o, (f1, f2) = method.options, (method.model, method.second)
    soft = o.cps_supervision == "soft"
    x1, x2 = f1(batch.image).logits, f2(batch.image).logits
    total = sum(nn.functional.cross_entropy(x, batch.label, ignore_index=255) for x in (x1, x2))
    if o.cps_cutmix:
        size = batch.weak.shape[-2:]
        mask = cutmix_mask(len(batch.weak), size, "cpu", seed=method.seed, step=batch.step)
        m = mask.unsqueeze(1).to(batch.weak.dtype)
        u0, u1 = batch.weak, batch.weak.roll(-1, 0)
        with torch.no_grad():
            t1, t2 = (f(u0).logits * (1 - m) + f(u1).logits * m for f in (f1, f2))
        mixed = u0 * (1 - m) + u1 * m
        l1, l2 = f1(mixed).logits, f2(mixed).logits
    else:
        l1, l2 = [], []
        if o.cps_on_labeled:
            l1.append(x1), l2.append(x2)
        if o.cps_on_unlabeled:
            l1.append(f1(batch.weak).logits), l2.append(f2(batch.weak).logits)
        l1 = t1 = torch.cat(l1)
        l2 = t2 = torch.cat(l2)
    return total + o.cps_weight * (slow_mean(l1, t2, soft) + slow_mean(l2, t1, soft))


@pytest.mark.parametrize("num_labels", [2, 5])
@pytest.mark.parametrize("options", [*VARIANTS, {"cps_on_labeled": False}, {"cps_on_unlabeled": False}])
def test_losses_and_gradients_equal_the_slow_version(options, num_labels):
    method = make(num_labels=num_labels, seed=4, **options).double()
    batch = random_batch(step=3, labeled=2, unlabeled=3, size=17, num_labels=num_labels, rows=())
    batch = batch.to("cpu", dtype=torch.float64)
    batch.label[0, 9:] = 255
    other = copy.deepcopy(method)
    got, _ = method(batch)
    want = slow_total(other, batch)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)
    got.backward()
    want.backward()
    slow = gradients(other)
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, slow[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("options", VARIANTS)
def test_no_gradient_reaches_the_network_that_gives_the_targets(options):
    """What f2 says teaches f1 alone: f2's own loss is not in the sum, so nothing moves it."""
    method = make(**options)
    x = [torch.randn(1, 5, 4, 4, requires_grad=True) for _ in range(2)]
    targets = method._targets(x)
    assert not any(t.requires_grad for t in targets)
    method._supervised(x[0], targets[1]).sum().backward()
    assert x[0].grad.abs().sum() > 0 and x[1].grad is None


# --------------------------------------------------------------------------------------------------- inter-pixel loss


@pytest.mark.parametrize("kind", INTER_PIXEL)
@pytest.mark.parametrize("options", [*VARIANTS, {"cps_on_labeled": False}])
def test_each_network_is_the_others_teacher_in_the_inter_pixel_loss(kind, options):
    """Value and gradients: the step without it, plus the terms on what the networks say of the unlabelled images."""
    more = {"inter_pixel_loss": kind, "inter_pixel_weight": 3.0, "inter_pixel_temperature": 2.0}
    on, off = make(seed=4, **options, **more), make(seed=4, **options)
    off.load_state_dict(on.state_dict())
    f1, f2 = copy.deepcopy(on.model), copy.deepcopy(on.second)
    batch = random_batch(step=3, labeled=2, unlabeled=3, size=17, rows=())
    batch.valid[0, 12:], batch.valid[1, :, :5] = False, False

    valid = batch.valid
    if options.get("cps_cutmix"):
        mask = cutmix_mask(3, (17, 17), "cpu", seed=4, step=3)
        assert (mask & ~batch.valid).sum() > 0, "the mask shows the partner where the image is padding"
        wide = mask.unsqueeze(1)
        t1, t2 = (f(batch.weak).logits.detach() for f in (f1, f2))
        t1, t2 = (torch.where(wide, t.roll(-1, 0), t) for t in (t1, t2))
        mixed = torch.where(wide, batch.weak.roll(-1, 0), batch.weak)
        s1, s2 = f1(mixed).logits, f2(mixed).logits
        valid = torch.where(mask, valid.roll(-1, 0), valid)
    else:
        s1, s2 = f1(batch.weak).logits, f2(batch.weak).logits
        t1, t2 = s1.detach(), s2.detach()
    term = 3 * (INTER_PIXEL[kind](s1, t2, valid) + INTER_PIXEL[kind](s2, t1, valid))

    got, logs = on(batch)
    plain, plain_logs = off(batch)
    assert set(logs) == set(plain_logs) | {"loss/inter_pixel"}
    torch.testing.assert_close(logs["loss/inter_pixel"], term.detach(), rtol=1e-4, atol=1e-6)
    assert term > 0
    torch.testing.assert_close(got, plain + term, rtol=1e-5, atol=1e-6)
    for loss in (got, plain, term):
        loss.backward()
    slow = [*f1.parameters(), *f2.parameters()]
    both = [*on.model.parameters(), *on.second.parameters()]
    rest = [*off.model.parameters(), *off.second.parameters()]
    for one, two, three in zip(both, rest, slow, strict=True):
        torch.testing.assert_close(one.grad, two.grad + three.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", INTER_PIXEL)
def test_the_inter_pixel_loss_moves_the_students_alone(kind):
    method = make(inter_pixel_loss=kind, cps_weight=0.0)
    label = torch.full((2, 4, 4), 255)  # no other loss
    x = [torch.randn(2, 5, 4, 4) for _ in range(2)]
    students, teachers = ([torch.randn(2, 5, 4, 4, requires_grad=True) for _ in range(2)] for _ in range(2))
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    # The targets of the cross supervision have no weight here.
    part = Supervision(students, method._targets(x), teachers, valid)
    total, _ = method.losses(x, [part], targets(label))
    total.backward()
    assert all(one.grad.abs().sum() > 0 for one in students)
    assert all(one.grad is None for one in teachers)


# ------------------------------------------------------------------------------------------------------ two networks


def test_the_networks_share_the_encoder_and_not_the_head():
    model = plain_model()
    method = CPS(model)
    assert method.segmentation_model is model
    for one, other in zip(model.encoder.parameters(), method.second.encoder.parameters(), strict=True):
        assert torch.equal(one, other) and one is not other
    convolutions = [
        [m.weight for m in network.decoder.modules() if isinstance(m, nn.Conv2d)]
        for network in (model, method.second)
    ]
    for one, other in zip(*convolutions, strict=True):
        assert not torch.equal(one, other)
    # Drawn by the same rule: kaiming normal over the inputs.
    one, other = (torch.cat([w.flatten() * w[0].numel() ** 0.5 for w in ws]) for ws in convolutions)
    assert other.std().item() == pytest.approx(math.sqrt(2), rel=0.05)
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.05


def test_the_second_head_depends_on_the_seed_alone_and_leaves_the_global_generator():
    model = plain_model()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = CPS(copy.deepcopy(model), seed=6).second.decoder.classify.weight
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = CPS(copy.deepcopy(model), seed=6).second.decoder.classify.weight
    other = CPS(copy.deepcopy(model), seed=7).second.decoder.classify.weight
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_equal_networks_are_refused():
    torch.manual_seed(zlib.crc32(b"5/second network"))
    model = plain_model()
    with pytest.raises(InputError, match=r"equal heads.*--seed"):
        CPS(model, seed=5)


@pytest.mark.parametrize("options", VARIANTS)
def test_every_parameter_of_both_networks_is_trained(options):
    method = CPS(tiny_model(), CPSOptions(**options)).train()  # with correlation heads, which nothing trains
    loss, logs = method(random_batch())
    loss.backward()
    for name, p in method.named_parameters():
        assert p.requires_grad == ("correlation." not in name), name
        assert (p.grad is not None) == p.requires_grad, name
    for network in (method.model, method.second):
        assert network.decoder.classify.weight.grad.abs().sum() > 0
    assert set(logs) == {"loss/x1", "loss/x2", "loss/cps", "agreement"}
    assert not any(value.requires_grad for value in logs.values())
    assert 0 < logs["agreement"] < 1


@pytest.mark.parametrize("options", VARIANTS)
def test_the_cross_supervision_keeps_its_gradient_under_autocast(options):
    """Autocast caches the cast weights; those of the passes without gradient must not be used with one."""
    batch = random_batch()
    batch.label.fill_(255)  # all gradient is the cross supervision's
    method = make(**options)
    exact = copy.deepcopy(method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = method(batch)
    loss.backward()
    exact(batch)[0].backward()
    want = gradients(exact)
    assert sum(grad.any() for grad in want.values()) > len(want) / 2
    for name, grad in gradients(method).items():
        assert grad.any() == want[name].any(), name


def test_each_part_of_the_batch_has_its_own_pass_in_train_mode():
    for options, passes in (({}, 2), ({"cps_cutmix": True}, 3), ({"cps_on_unlabeled": False}, 1)):
        method, seen = make(**options), []

        def note(network, args, seen=seen):
            seen.append((network.training, torch.is_grad_enabled(), len(args[0])))

        for network in (method.model, method.second):
            network.register_forward_pre_hook(note)
        method(random_batch(labeled=2, unlabeled=3, rows=()))
        assert all(training for training, *_ in seen)
        assert sorted(images for *_, images in seen) == [2, 2] + [3] * (2 * passes - 2)
        assert sum(not grad for _, grad, _ in seen) == (2 if options.get("cps_cutmix") else 0)
        for network in (method.model, method.second):
            norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
            assert all(norm.num_batches_tracked == passes for norm in norms)


def test_the_cutmix_step_is_a_function_of_seed_and_step():
    def cps(seed, step):
        torch.manual_seed(0)
        method = CPS(plain_model(), CPSOptions(cps_cutmix=True), seed=0).train()
        method.seed = seed  # of the masks alone, not of the second head
        return method(random_batch(step))[1]["loss/cps"].item()

    assert cps(0, 3) == cps(0, 3)
    assert cps(0, 3) != cps(1, 3)
    assert cps(0, 3) != cps(0, 4)


def test_an_image_alone_cannot_be_mixed():
    method, batch = make(cps_cutmix=True), random_batch(labeled=2, unlabeled=1, rows=())
    with pytest.raises(InputError, match=r"--cps_cutmix mixes .* raise --per_device_unlabeled_batch_size"):
        method(batch)
    assert make()(batch)[0].isfinite()


def test_labelled_images_take_the_labelled_loss_of_the_options():
    batch = random_batch()
    plain, hard = (
        make(labeled_loss=name, ohem_threshold=0.1, ohem_min_kept=50)(batch)[1] for name in ("ce", "ohem")
    )
    assert hard["loss/x1"] != plain["loss/x1"] and hard["loss/x2"] != plain["loss/x2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inter_pixel_loss": "kl", "cps_on_unlabeled": False}, "inter_pixel_loss kl compares"),
        ({"cps_cutmix": True, "cps_on_unlabeled": False}, "cps_cutmix mixes unlabelled"),
        ({"cps_on_labeled": False, "cps_on_unlabeled": False}, "method supervised"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)
