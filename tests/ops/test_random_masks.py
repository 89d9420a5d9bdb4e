"""Masks against slow versions; they do not depend on the number of processes."""

import math

import numpy as np
import pytest
import torch

from corrmatch_hf.ops import random_masks as module
from corrmatch_hf.ops.random_masks import complementary_channel_masks, cutmix_mask, next_rows, step_generator

# -------------------- channels: what one view lacks the other has twice


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


# -------------------- the boxes of CPS's CutMix


def slow_mask(draws, height, width):
    """One mask from its uniform draws (3, 4), written from the description, pixel by pixel."""
    mask = np.zeros((height, width), dtype=bool)
    for proportion, aspect, y, x in draws:
        area = 0.25 + 0.25 * proportion
        y_share = math.exp(aspect * math.log(area))
        x_share = area / y_share
        box_height = round(y_share * math.sqrt(1 / 3) * height)
        box_width = round(x_share * math.sqrt(1 / 3) * width)
        top = math.floor(y * (height - box_height + 1))
        left = math.floor(x * (width - box_width + 1))
        for i in range(top, top + box_height):
            for j in range(left, left + box_width):
                mask[i, j] = not mask[i, j]
    return mask


@pytest.mark.parametrize("size", [(31, 31), (20, 45), (1, 1)])
def test_masks_equal_the_slow_version(size):
    got = cutmix_mask(6, size, "cpu", seed=3, step=8)
    draws = torch.rand(6, 3, 4, generator=step_generator("cpu", 3, 8, "cutmix mask"))
    want = np.stack([slow_mask(own.tolist(), *size) for own in draws])
    assert got.shape == (6, *size) and got.dtype == torch.bool
    np.testing.assert_array_equal(got.numpy(), want)


def test_shares_are_those_of_three_independent_boxes_whose_overlaps_cancel():
    masks = cutmix_mask(4000, (40, 40), "cpu", seed=0, step=0).double()
    shares = masks.mean((1, 2))
    rng = np.random.default_rng(0)
    slow = np.array([slow_mask(rng.random((3, 4)), 40, 40).mean() for _ in range(600)])
    error = 4 * math.sqrt(slow.var() / len(slow) + shares.var().item() / len(shares))
    assert abs(shares.mean().item() - slow.mean()) < error
    # A box covers 1/12 to 1/6 of the image: three that do not meet at most half of it, give or take the rounding.
    assert shares.max() < 0.55 and shares.min() > 0
    # No side is preferred, and the middle is covered more often than the corners.
    place = masks.mean(0)
    for other in (place.flip(0), place.flip(1), place.T):
        assert (place - other).abs().max() < 6 * math.sqrt(0.5 / 4000)
    assert place[18:22, 18:22].mean() > place[0, 0] + 0.05


def test_masks_differ_between_images_steps_and_seeds():
    first = cutmix_mask(2, (32, 32), "cpu", seed=0, step=0)
    torch.manual_seed(99)  # the global generator has no part in it
    assert torch.equal(first, cutmix_mask(2, (32, 32), "cpu", seed=0, step=0))
    for other in (
        first.flip(0),
        cutmix_mask(2, (32, 32), "cpu", seed=1, step=0),
        cutmix_mask(2, (32, 32), "cpu", seed=0, step=1),
    ):
        assert not torch.equal(first, other)


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_processes_share_out_the_masks_of_the_total_batch(monkeypatch, processes):
    whole = cutmix_mask(6, (16, 24), "cpu", seed=2, step=5)
    monkeypatch.setattr(module, "world_size", lambda: processes)
    parts = []
    for rank in range(processes):
        monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
        parts.append(cutmix_mask(6 // processes, (16, 24), "cpu", seed=2, step=5))
    assert torch.equal(torch.cat(parts), whole)


def test_next_rows_go_round():
    rows = torch.arange(6.0).view(3, 2).requires_grad_()
    got = next_rows(rows)
    assert got.tolist() == [[2, 3], [4, 5], [0, 1]]
    assert not got.requires_grad
    assert next_rows(rows[:1]).tolist() == [[0, 1]]
