"""Region propagation against the reference tensors, and against algorithm 1 written as nested loops."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from corrmatch_hf.ops.region_propagation import _propagate_batched, region_propagation


def slow(labels, confident, shapes, threshold):
    """Algorithm 1, pixel sets and Python loops."""
    tau = np.float32(threshold)
    labels, result = labels.clone(), confident.clone()
    for n in range(labels.shape[0]):
        for s in range(shapes.shape[1]):
            shape = shapes[n, s]
            seg = shape & confident[n]
            if not seg.any():
                continue
            if np.float32(seg.sum().item()) / np.float32(shape.sum().item()) < tau:
                continue
            ids, counts = labels[n][seg].unique(sorted=True, return_counts=True)
            best = counts.argmax()
            if np.float32(counts[best].item()) / np.float32(seg.sum().item()) > tau:
                labels[n][shape] = ids[best]
                result[n] |= shape
    return labels, result


def batched(labels, confident, shapes, threshold):
    return _propagate_batched(
        labels, confident, shapes, torch.tensor(threshold, dtype=torch.float32), int(labels.max()) + 1
    )


def random_case(seed, n=2, s=24, size=(13, 17), classes=4):
    generator = torch.Generator().manual_seed(seed)

    def blobs(count):
        noise = torch.rand(count, 1, 5, 5, generator=generator)
        return torch.nn.functional.interpolate(noise, size=size, mode="bilinear")[:, 0]

    labels = torch.stack([blobs(classes).argmax(0) for _ in range(n)])
    confident = blobs(n) > 0.35
    shapes = (blobs(n * s) > 0.6).view(n, s, *size)
    return labels, confident, shapes


@pytest.mark.parametrize("propagate", [region_propagation, batched])
def test_reference(shared_dir, propagate):
    t = load_file(shared_dir / "reference/region_propagation.safetensors")
    labels, confident, shapes = t["labels"].long(), t["confident"].bool(), t["shapes"].bool()
    before = labels.clone(), confident.clone(), shapes.clone()
    got_labels, got_confident = propagate(labels, confident, shapes, t["threshold"].item())
    assert torch.equal(got_labels, t["labels_out"].long())
    assert torch.equal(got_confident, t["confident_out"].bool())
    for tensor, copy in zip((labels, confident, shapes), before, strict=True):
        assert torch.equal(tensor, copy), "inputs must not change"


@pytest.mark.parametrize("propagate", [region_propagation, batched])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.7, 0.95])
def test_against_algorithm_1(propagate, threshold):
    painted = 0
    for seed in range(20):
        case = random_case(seed)
        want_labels, want_confident = slow(*case, threshold)
        got_labels, got_confident = propagate(*case, threshold)
        assert torch.equal(got_labels, want_labels), seed
        assert torch.equal(got_confident, want_confident), seed
        painted += int((want_labels != case[0]).sum())
    assert painted > 0 or threshold > 0.9, "the cases must exercise painting"


@pytest.mark.parametrize("propagate", [region_propagation, batched])
def test_ties_take_the_lowest_class_and_empty_shapes_do_nothing(propagate):
    labels = torch.tensor([[[2, 1, 1, 2, 0]]])
    confident = torch.tensor([[[True, True, True, True, False]]])
    shapes = torch.zeros(1, 2, 1, 5, dtype=torch.bool)
    shapes[0, 1] = True  # four of five confident, two of class 1 and two of class 2
    got, got_confident = propagate(labels, confident, shapes, 0.4)
    assert got.tolist() == [[[1, 1, 1, 1, 1]]]
    assert got_confident.all()


@pytest.mark.parametrize("propagate", [region_propagation, batched])
def test_later_shapes_see_what_earlier_ones_painted(propagate):
    labels = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
    confident = torch.ones(1, 1, 6, dtype=torch.bool)
    shapes = torch.tensor([[[[1, 1, 1, 1, 0, 0]], [[0, 0, 1, 1, 1, 0]]]], dtype=torch.bool)
    got, _ = propagate(labels, confident, shapes, 0.6)
    assert got.tolist() == [[[0, 0, 0, 0, 0, 1]]]
