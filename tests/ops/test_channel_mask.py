"""Masks over channels: what one view lacks the other has twice, the same for any number of processes."""

import pytest
import torch

from corrmatch_hf.ops import random_masks as module
from corrmatch_hf.ops.random_masks import complementary_channel_masks


def masks(rows=6, channels=50, *, whole=True, seed=3, step=1, use="here"):
    return complementary_channel_masks(rows, channels, "cpu", seed=seed, step=step, use=use, whole=whole)


def whole_pairs(found):
    return [i for i, row in enumerate(found.chunk(2)[0]) if (row == 1).all()]


@pytest.mark.parametrize("rows, count", [(1, 0), (2, 1), (5, 2), (6, 3)])
def test_half_of_the_pairs_stay_whole_and_the_rest_complement_each_other(rows, count):
    first, second = masks(rows).chunk(2)
    assert first.shape == second.shape == (rows, 50)
    assert torch.equal(first + second, torch.full((rows, 50), 2.0))
    untouched = [i for i in range(rows) if (first[i] == 1).all()]
    assert len(untouched) == count
    dropped = first[[i for i in range(rows) if i not in untouched]]
    assert set(dropped.unique().tolist()) == {0.0, 2.0}


def test_none_stays_whole_where_none_may():
    assert set(masks(whole=False).unique().tolist()) == {0.0, 2.0}


def test_channels_and_pairs_are_drawn_evenly():
    steps = [masks(4, 20, step=step) for step in range(600)]
    kept = torch.stack(steps)[:, :4]
    times_whole = (kept == 1).all(-1).float().mean(0)
    assert (times_whole - 0.5).abs().max() < 0.09  # four standard deviations
    doubled = torch.stack([masks(4, 20, step=step, whole=False) for step in range(600)])[:, :4] == 2
    assert (doubled.float().mean(0) - 0.5).abs().max() < 0.09
    assert abs(doubled.float().mean() - 0.5) < 0.01


def test_the_same_pairs_stay_whole_whatever_the_number_of_channels():
    narrow, wide = masks(8, 20), masks(8, 64)
    assert whole_pairs(narrow) == whole_pairs(wide) and len(whole_pairs(wide)) == 4
    assert not torch.equal(narrow, wide[:, :20])


def test_a_draw_depends_on_seed_step_and_use_alone():
    torch.manual_seed(1)
    first = masks()
    torch.manual_seed(2)
    assert torch.equal(first, masks())
    for other in ({"seed": 4}, {"step": 2}, {"use": "there"}):
        assert not torch.equal(first, masks(**other))


def test_processes_share_the_draw_of_the_total_batch(monkeypatch):
    one = masks(6).chunk(2)
    monkeypatch.setattr(module, "world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
        for whole, part in zip(one, masks(2).chunk(2), strict=True):
            assert torch.equal(part, whole[2 * rank : 2 * rank + 2])
