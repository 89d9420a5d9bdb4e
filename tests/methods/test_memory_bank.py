"""The memory against plain lists."""

import pytest
import torch
import torch.nn.functional as F

from corrmatch_hf.methods.memory_bank import MemoryBank

SIZE = 40


def entries(n, filled, classes=3, channels=4, projected=2):
    present = torch.arange(n) < torch.tensor(filled)[:, None]
    return (
        torch.randn(classes, n, channels),
        torch.randn(classes, n, projected),
        torch.rand(classes, n),
        present,
    )


def filled_bank(steps=9):
    """A bank after some steps, and what each class should remember, oldest first."""
    bank, lists = MemoryBank(3, SIZE, 4, 2), [[], [], []]
    for step in range(steps):
        new = entries(10, [10, step % 4, 0])
        bank.add(*new)
        for c in range(3):
            for i in range(int(new[3][c].sum())):
                lists[c] = [*lists[c], (F.normalize(new[0][c, i], dim=0), new[1][c, i], new[2][c, i])][-SIZE:]
    return bank, lists


def test_the_memory_is_a_queue():
    bank, lists = filled_bank()
    assert bank.count.tolist() == [40, 12, 0]
    for c in range(3):
        n = len(lists[c])
        oldest = int(bank.added[c]) % SIZE if n == SIZE else 0
        for i, (feature, projection, score) in enumerate(lists[c]):
            place = (oldest + i) % SIZE
            torch.testing.assert_close(bank.features[c, place], feature)
            assert torch.equal(bank.projections[c, place], projection)
            assert torch.equal(bank.scores[c, place], score)
        assert (bank.features[c, n:] == 0).all(), "places never filled stay empty"


def test_density_is_that_of_the_class_alone():
    bank, lists = filled_bank()
    features = F.normalize(torch.randn(7, 4), dim=-1)
    index = torch.tensor([[0, 5], [1, 1], [6, 2]])
    got = bank.density(features, index)
    for j, i in enumerate(index[0]):
        similarity = sorted((float(f @ features[i]) for f, _, _ in lists[0]), reverse=True)
        want = sum(sum(similarity[:k]) / k for k in (8, 16, 32)) / 3
        assert got[0, j].item() == pytest.approx(want, abs=1e-5)
    assert (got[1:] == 0).all(), "twelve entries and none are too few"


def test_the_best_are_those_of_the_highest_scores():
    bank, lists = filled_bank()
    projections, there = bank.best(15)
    assert there.sum(1).tolist() == [15, 12, 0]
    for c in range(3):
        want = sorted(lists[c], key=lambda entry: -entry[2])[:15]
        for got, (_, projection, _) in zip(projections[c], want, strict=False):
            assert torch.equal(got, projection)
    other = torch.zeros(3, SIZE)
    other[0, 17] = 1
    assert torch.equal(bank.best(1, other)[0][0, 0], bank.projections[0, 17])


def test_a_copy_made_from_the_state_goes_on_bit_exactly():
    bank, _ = filled_bank()
    other = MemoryBank(3, SIZE, 4, 2)
    other.load_state_dict({k: v.clone() for k, v in bank.state_dict().items()})
    new = entries(10, [7, 10, 3])
    bank.add(*new)
    other.add(*new)
    for (name, one), two in zip(bank.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_its_size_is_the_stated_one():
    bank = MemoryBank(21, 100, 16, 8)
    stated = 4 * 21 * 100 * (16 + 8 + 1)
    assert sum(b.numel() * b.element_size() for b in bank.buffers()) == stated + 21 * 8


def test_a_memory_too_small_for_the_density_is_refused():
    with pytest.raises(ValueError, match="32"):
        MemoryBank(3, 31, 4, 2)
