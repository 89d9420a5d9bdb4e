"""Density against the equation in loops."""

import pytest
import torch
import torch.nn.functional as F

from corrmatch_hf.ops.dense_contrast import NEIGHBOURS, density


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
