"""Losses against reference tensors and plain definitions."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from corrmatch_hf.ops.losses import (
    cosine_distance,
    cross_entropy,
    kl_divergence,
    masked_cross_entropy,
    ohem_cross_entropy,
    soft_cross_entropy,
)


@pytest.mark.parametrize("case", range(4))
def test_ohem_reference(shared_dir, case):
    t = load_file(shared_dir / "reference/ohem.safetensors")
    loss = ohem_cross_entropy(
        t[f"{case}.logits"],
        t[f"{case}.labels"].long(),
        t[f"{case}.thresh"].item(),
        int(t[f"{case}.min_kept"]),
    )
    torch.testing.assert_close(loss, t[f"{case}.loss"], rtol=1e-5, atol=0)


def slow_ohem(logits, labels, threshold, min_kept, ignore_index):
    """Sort the valid pixels by the probability of their true class, and keep the hard ones."""
    pixels = [
        (logits[n, :, i, j], labels[n, i, j].item())
        for n in range(labels.shape[0])
        for i in range(labels.shape[1])
        for j in range(labels.shape[2])
        if labels[n, i, j] != ignore_index
    ]
    probabilities = sorted(p.softmax(0)[k].item() for p, k in pixels)
    cut = max(threshold, probabilities[min(min_kept, len(pixels)) - 1])
    kept = [-p.log_softmax(0)[k].item() for p, k in pixels if p.softmax(0)[k].item() <= cut * (1 + 1e-6)]
    return sum(kept) / len(kept)


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.7, 10), (0.05, 40), (0.05, 10_000)])
def test_ohem_against_sorting(threshold, min_kept):
    logits, labels = torch.randn(2, 4, 6, 7) * 2, torch.randint(0, 4, (2, 6, 7))
    labels[0, :2] = 254
    got = ohem_cross_entropy(logits, labels, threshold, min_kept, ignore_index=254)
    assert got.item() == pytest.approx(slow_ohem(logits, labels, threshold, min_kept, 254), rel=1e-5)


def test_ohem_gradient_is_that_of_the_kept_pixels():
    logits, labels = torch.randn(2, 4, 6, 7).double().requires_grad_(), torch.randint(0, 4, (2, 6, 7))
    labels[0, :2] = 255
    got = torch.autograd.grad(ohem_cross_entropy(logits, labels, 0.3, 20), logits)[0]
    probability = logits.detach().softmax(1).gather(1, labels.clamp(max=3).unsqueeze(1)).squeeze(1)
    kept = labels.masked_fill(probability > probability[labels != 255].sort().values[19].clamp(min=0.3), 255)
    want = torch.autograd.grad(F.cross_entropy(logits, kept, ignore_index=255), logits)[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
def test_nothing_to_learn_is_zero_with_zero_gradient(loss):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((1, 4, 4), 255))
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_cross_entropy_is_the_mean_over_valid_pixels():
    logits, labels = torch.randn(2, 5, 6, 6), torch.randint(0, 5, (2, 6, 6))
    labels[:, 0] = 255
    torch.testing.assert_close(
        cross_entropy(logits, labels), F.cross_entropy(logits, labels, ignore_index=255)
    )


def test_masked_cross_entropy_divides_by_the_denominator_given():
    logits, labels = torch.randn(1, 3, 2, 2), torch.randint(0, 3, (1, 2, 2))
    mask = torch.tensor([[[True, False], [False, True]]])
    per_pixel = F.cross_entropy(logits, labels, reduction="none")
    want = (per_pixel[0, 0, 0] + per_pixel[0, 1, 1]) / 7
    torch.testing.assert_close(masked_cross_entropy(logits, labels, mask, torch.tensor(7.0)), want)


def test_soft_losses_at_one_pixel():
    student, teacher = torch.tensor([0.2, -0.3, 1.0]), torch.tensor([1.5, 0.1, -0.7])
    p, q = teacher.softmax(0).tolist(), student.softmax(0).tolist()
    s, t = student.view(1, 3, 1, 1), teacher.view(1, 3, 1, 1).requires_grad_()
    kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    ce = -sum(a * math.log(b) for a, b in zip(p, q, strict=True))
    cosine = 1 - sum(a * b for a, b in zip(p, q, strict=True)) / math.sqrt(
        sum(a * a for a in p) * sum(b * b for b in q)
    )
    assert kl_divergence(s, t).item() == pytest.approx(kl, rel=1e-5)
    assert soft_cross_entropy(s, t).item() == pytest.approx(ce, rel=1e-5)
    assert cosine_distance(s, t).item() == pytest.approx(cosine, rel=1e-5)
    assert not kl_divergence(s, t).requires_grad, "no gradient reaches the teacher"


def test_extreme_logits_stay_finite():
    student = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1)
    teacher = -student
    assert kl_divergence(student, teacher).isfinite().all()


def test_ohem_may_keep_none_but_the_hardest():
    logits = torch.tensor([[4.0, 1.0], [0.0, 0.0]]).view(1, 2, 1, 2)  # of class 0: 98 % and 73 % sure
    labels = torch.zeros(1, 1, 2, dtype=torch.long)
    loss = ohem_cross_entropy(logits, labels, threshold=0.1, min_kept=0)
    torch.testing.assert_close(loss, -logits.log_softmax(1)[0, 0, 0, 1])
