"""The contrastive loss against the equation in loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from corrmatch_hf.ops.dense_contrast import prototype_contrast


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_loss_by_loops(temperature):
    anchors, prototypes, negatives = torch.randn(3, 4, 6), torch.randn(3, 6), torch.randn(3, 5, 6)
    mask = torch.rand(3, 5) > 0.3
    got = prototype_contrast(anchors, prototypes, negatives, mask, temperature)
    for c in range(3):
        for a in range(4):
            anchor = anchors[c, a].tolist()
            positive = math.exp(cosine(anchor, prototypes[c].tolist()) / temperature)
            others = sum(
                math.exp(cosine(anchor, negatives[c, n].tolist()) / temperature)
                for n in range(5)
                if mask[c, n]
            )
            assert got[c, a].item() == pytest.approx(-math.log(positive / (positive + others)), rel=1e-4)


def test_gradient_reaches_the_anchors_alone():
    anchors, prototypes, negatives = (
        torch.randn(s, requires_grad=True) for s in ((2, 3, 4), (2, 4), (2, 5, 4))
    )
    prototype_contrast(
        anchors, prototypes, negatives, torch.ones(2, 5, dtype=torch.bool), 0.5
    ).sum().backward()
    assert anchors.grad.abs().sum() > 0
    assert prototypes.grad is None and negatives.grad is None


def test_without_negatives_or_prototype_the_loss_is_finite():
    anchors = torch.randn(2, 3, 4, requires_grad=True)
    none = torch.zeros(2, 5, dtype=torch.bool)
    loss = prototype_contrast(anchors, torch.zeros(2, 4), torch.zeros(2, 5, 4), none, 0.5)
    loss.sum().backward()
    assert (loss == 0).all() and anchors.grad.isfinite().all()


def test_following_the_gradient_brings_anchors_to_the_prototype():
    anchors = torch.randn(1, 8, 16).requires_grad_()
    prototype, negatives = torch.randn(1, 16), torch.randn(1, 20, 16)
    mask = torch.ones(1, 20, dtype=torch.bool)

    def similarity(vectors):
        return F.cosine_similarity(anchors, vectors, dim=-1).mean().item()

    before = similarity(prototype[:, None]), similarity(negatives.mean(1, keepdim=True))
    for _ in range(50):
        (gradient,) = torch.autograd.grad(
            prototype_contrast(anchors, prototype, negatives, mask, 0.5).sum(), anchors
        )
        anchors.data -= gradient
    assert similarity(prototype[:, None]) > before[0] + 0.3
    assert similarity(negatives.mean(1, keepdim=True)) < before[1]
