"""Sums and maxima over the pixels of each class, against loops over the classes."""

import pytest
import torch

from corrmatch_hf.ops.per_class import largest_per_class, sums_per_class


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_sums_per_class(shape, dtype):
    values = torch.randint(0, 9, (2, 6, 8, *shape)).to(dtype)
    labels = torch.randint(-1, 7, (2, 6, 8))  # -1, 5 and 6 are no class
    counted = torch.rand(2, 6, 8) < 0.5
    for given, mask in ((None, torch.ones_like(counted)), (counted, counted)):
        want = torch.stack([values[(labels == c) & mask].sum(0) for c in range(5)])
        got = sums_per_class(values, labels, 5, given)
        assert got.dtype == dtype and torch.equal(got, want)


def test_sums_per_class_leaves_its_arguments():
    labels, counted = torch.tensor([[[0, 255]]]), torch.tensor([[[True, True]]])
    assert sums_per_class(torch.ones(1, 1, 2), labels, 2, counted).tolist() == [1, 0]
    assert labels.tolist() == [[[0, 255]]] and counted.all()


def test_largest_per_class_in_columns():
    values, labels = torch.rand(2, 6, 8), torch.randint(0, 4, (2, 6, 8))
    want = torch.stack([values[labels == c].max() for c in range(4)] + [torch.tensor(-1.0)])
    for columns in (1, 8):
        assert torch.equal(largest_per_class(values, labels, 5, columns), want)
