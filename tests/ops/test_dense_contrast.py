"""The parts of DGCL's contrast, each against loops written from its definition."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from corrmatch_hf.ops.dense_contrast import (
    NEIGHBOURS,
    NOTHING,
    best_of_all,
    density,
    draw_per_class,
    entropy,
    entropy_threshold,
    pixel_scores,
    prototype_contrast,
    take,
)

# -------------------- the least certain pixels


def test_entropy_by_loops():
    logits = torch.randn(2, 4, 3, 5)
    p = logits.softmax(1)
    got = entropy(logits.requires_grad_())
    assert not got.requires_grad
    for n in range(2):
        for y in range(3):
            for x in range(5):
                want = -sum(v * math.log(v) for v in p[n, :, y, x].tolist())
                assert got[n, y, x].item() == pytest.approx(want, abs=1e-5)


def test_entropy_is_finite_for_certain_logits():
    assert entropy(torch.tensor([1e4, -1e4, 0.0]).view(1, 3, 1, 1)).item() == 0


@pytest.mark.parametrize("dropped", [0.0, 0.2, 0.37, 0.8, 1.0])
def test_the_threshold_is_the_quantile_of_the_valid_pixels(dropped):
    values, valid = torch.rand(3, 7, 5), torch.rand(3, 7, 5) > 0.4
    want = np.quantile(values.numpy()[valid.numpy()].astype(np.float64), 1 - dropped)
    got = entropy_threshold(values, valid, dropped)
    assert got.item() == pytest.approx(want, abs=1e-6)
    kept = (valid & (values <= got)).sum().item() / valid.sum().item()
    assert kept == pytest.approx(1 - dropped, abs=1 / valid.sum().item())


def test_without_valid_pixels_the_threshold_is_finite():
    values = torch.rand(1, 4, 4)
    assert entropy_threshold(values, torch.zeros(1, 4, 4, dtype=torch.bool), 0.2).isfinite()


def test_equal_entropies_are_all_kept():
    values = torch.ones(1, 4, 4)
    assert (values <= entropy_threshold(values, values > 0, 0.8)).all()


# -------------------- draws of each class


def test_a_draw_holds_the_highest_scored_pixels_of_each_class():
    labels = torch.tensor([2, 0, -1, 2, 2, 0, 255, 2])
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    index, found = draw_per_class(labels, scores, num_labels=4, count=3)
    want = {0: [5, 1], 1: [], 2: [7, 4, 3], 3: []}
    for c in range(4):
        assert index[c][found[c] > NOTHING].tolist() == want[c]
        assert found[c, : len(want[c])].tolist() == scores[want[c]].tolist()
        assert (found[c, len(want[c]) :] == NOTHING).all()
    assert ((index >= 0) & (index < len(labels))).all()


def test_a_draw_larger_than_the_image_takes_all():
    labels = torch.tensor([1, 1, 0])
    index, found = draw_per_class(labels, torch.rand(3), num_labels=2, count=100)
    assert index.shape == (2, 3)
    assert (found > NOTHING).sum(1).tolist() == [1, 2]


def test_every_pixel_is_drawn_equally_often():
    labels, counts = torch.zeros(10, dtype=torch.long), torch.zeros(10)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        index, _ = draw_per_class(
            labels, pixel_scores(2, 5, generator, torch.device("cpu")), num_labels=1, count=3
        )
        counts[index[0]] += 1
    assert (counts / 2000 - 0.3).abs().max() < 0.05


def test_the_best_and_what_belongs_to_them():
    scores, values = torch.tensor([[0.1, 0.9, 0.5], [3.0, 1.0, 2.0]]), torch.arange(12.0).view(2, 3, 2)
    best, kept = best_of_all(scores, 2, values)
    assert torch.equal(best, torch.tensor([[0.9, 0.5], [3.0, 2.0]]))
    assert torch.equal(kept, torch.stack([values[0, [1, 2]], values[1, [0, 2]]]))
    assert torch.equal(take(values[..., 0], torch.tensor([[2], [0]])), torch.tensor([[4.0], [6.0]]))


# -------------------- density


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def slow_density(feature, memory, neighbours):
    similarity = sorted(
        (sum(a * b for a, b in zip(feature, row, strict=True)) for row in memory), reverse=True
    )
    return sum(sum(similarity[:k]) / k for k in neighbours) / len(neighbours)


@pytest.mark.parametrize("count", [32, 40, 50])
@pytest.mark.parametrize("neighbours", [NEIGHBOURS, (1,), (2, 5)])
def test_density_by_loops(count, neighbours):
    features, memory = unit(6, 8), unit(50, 8)
    got = density(features, memory, torch.tensor(count), neighbours)
    want = [slow_density(f, memory[:count].tolist(), neighbours) for f in features.tolist()]
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-5, atol=1e-6)


def test_density_is_zero_until_there_are_enough_neighbours():
    assert (density(unit(4, 8), unit(50, 8), torch.tensor(31)) == 0).all()


def test_a_crowded_place_is_denser_than_an_empty_one():
    crowd = F.normalize(torch.tensor([1.0, 0, 0]) + 0.1 * torch.randn(40, 3), dim=-1)
    near, far = density(torch.eye(3)[:2], crowd, torch.tensor(40))
    assert near > 0.9 > far


def test_density_is_computed_in_float32_under_autocast():
    features, memory, count = unit(5, 64), unit(40, 64), torch.tensor(40)
    want = density(features, memory, count)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(density(features, memory, count), want)


# -------------------- the loss


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
