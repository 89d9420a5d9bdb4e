"""Draws of fixed size: every class's own pixels, each at most once, at random."""

import torch

from corrmatch_hf.ops.dense_contrast import NOTHING, best_of_all, draw_per_class, pixel_scores, take


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
        index, _ = draw_per_class(labels, pixel_scores(2, 5, generator), num_labels=1, count=3)
        counts[index[0]] += 1
    assert (counts / 2000 - 0.3).abs().max() < 0.05


def test_the_best_and_what_belongs_to_them():
    scores, values = torch.tensor([[0.1, 0.9, 0.5], [3.0, 1.0, 2.0]]), torch.arange(12.0).view(2, 3, 2)
    best, kept = best_of_all(scores, 2, values)
    assert torch.equal(best, torch.tensor([[0.9, 0.5], [3.0, 2.0]]))
    assert torch.equal(kept, torch.stack([values[0, [1, 2]], values[1, [0, 2]]]))
    assert torch.equal(take(values[..., 0], torch.tensor([[2], [0]])), torch.tensor([[4.0], [6.0]]))
