"""The share of least certain pixels against numpy's quantile."""

import math

import numpy as np
import pytest
import torch

from corrmatch_hf.ops.dense_contrast import entropy, entropy_threshold


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
