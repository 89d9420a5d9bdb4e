"""CutMix masks against a slow version, their statistics, and that they do not depend on the number of processes."""

import math

import numpy as np
import pytest
import torch

from corrmatch_hf.ops import random_masks as module
from corrmatch_hf.ops.random_masks import cutmix_mask, next_rows, step_generator


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
