"""The package's step gives the losses of the plain one; memory of pixel propagation grows with the positions."""

import sys

import pytest
import torch

from benchmarks.measure import extra_mib
from benchmarks.whole_step import OurStep, PlainStep, confident_method, step_batch
from corrmatch_hf import pixel_propagation


def test_three_steps_give_the_losses_of_the_plain_form():
    method = confident_method("test_resnet", 5, "cpu")
    batch, partners, partners_valid = step_batch(65, 2, 5, "cpu")
    plain, ours = PlainStep(method), OurStep(method)
    for step in range(3):
        batch.step = step
        expected, found = plain(batch, partners, partners_valid), ours(batch)
        assert expected["loss/s"] > 0 and 0.05 < found["kept_ratio"] < 0.95
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value, rel=1e-4, abs=1e-6), (step, name)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_memory_of_pixel_propagation_is_linear():
    def needed(side):
        query, key = (torch.randn(1, 21, side, side).requires_grad_() for _ in range(2))
        logits = torch.randn(1, 21, side, side)
        return extra_mib(lambda: pixel_propagation(query, key, logits).sum().backward())

    small, large = needed(40), needed(80)  # four times the positions; the matrix alone takes 156 MiB
    assert large < 5 * small + 4 and large < 60
