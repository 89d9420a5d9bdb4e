"""Region propagation against the reference tensors, and against algorithm 1 written as nested loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from corrmatch_hf.ops.region_propagation.propagate import _propagate_batched, region_propagation
from corrmatch_hf.ops.region_propagation.rows import _Cells, propagate_rows, row_shapes


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


@pytest.mark.parametrize("classes", [1, 2, 5, 300])
def test_labels_of_few_and_many_digits(classes):
    """With a low threshold the most frequent label need not be that of half of the pixels."""
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(classes, (2, 9, 11), generator=generator)
    confident = torch.rand(2, 9, 11, generator=generator) < 0.8
    shapes = torch.rand(2, 16, 9, 11, generator=generator) < 0.15
    for threshold in (0.0, 0.1, 0.3, 0.5):
        want, got = (f(labels, confident, shapes, threshold) for f in (slow, region_propagation))
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


def full_size(rows, size):
    """Equation 7 as it is written: everything at full resolution, one map at a time."""
    shapes = torch.zeros(*rows.shape[:2], *size, dtype=torch.bool)
    for n, s in np.ndindex(*rows.shape[:2]):
        if rows[n, s].min() < rows[n, s].max():
            m = F.interpolate(rows[n, s][None, None], size=size, mode="bilinear", align_corners=True)[0, 0]
            shapes[n, s] = (m - m.min()) / (m.max() - m.min()).clamp(min=torch.finfo(m.dtype).tiny) > 0.5
    return shapes


def near_the_middle(rows):
    """From 0 to 1 at two points, elsewhere 1/2 and a few roundings."""
    rows = 0.5 + 6e-8 * (64 * rows - 32).round()
    rows.flatten(2)[..., 0], rows.flatten(2)[..., -1] = 0, 1
    return rows


def random_rows(kind, generator, count, grid):
    rows = torch.rand(2, count, *grid, generator=generator)
    return {
        "smooth": lambda: torch.softmax(8 * F.avg_pool2d(rows, 3, 1, 1).flatten(2), dim=2).view_as(rows),
        "rough": lambda: rows,
        "few values": lambda: (2 * rows).round(),  # many pixels exactly in the middle
        "near the middle": lambda: near_the_middle(rows),
        "some constant": lambda: torch.where(rows[:, :, :1, :1] < 0.5, rows, rows[:, :, :1, :1]),
        "range within rounding": lambda: 1 + 1.2e-7 * rows.round(),
        "negative": lambda: rows - 0.5,
        "offset": lambda: 100 + rows,
        "denormal": lambda: 1e-40 * rows,
        "float64": lambda: rows.double(),
    }[kind]()


ROWS = (
    "smooth",
    "rough",
    "few values",
    "near the middle",
    "some constant",
    "range within rounding",
    "negative",
    "offset",
    "denormal",
)


@pytest.mark.parametrize("kind", [*ROWS, "float64"])
@pytest.mark.parametrize(
    "grid, size",
    [
        ((6, 5), (41, 33)),  # every point on a pixel: crops of 8k + 1
        ((11, 17), (81, 129)),
        ((7, 5), (50, 39)),
        ((3, 4), (66, 97)),  # output stride 32
        ((9, 8), (5, 6)),  # down
        ((1, 6), (7, 41)),
        ((13, 12), (13, 12)),
    ],
)
def test_rows_give_the_shapes_of_full_size_maps(kind, grid, size):
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        rows = random_rows(kind, generator, 6, grid)
        labels = torch.randint(3, (2, *size), generator=generator)
        confident = torch.rand(2, *size, generator=generator) < 0.9
        allowed = torch.rand(2, *size, generator=generator) < 0.9
        shapes = full_size(rows, size)
        assert torch.equal(row_shapes(rows, size), shapes)
        inputs = rows, labels, confident, allowed
        before = [t.clone() for t in inputs]
        for threshold in (0.0, 0.4):
            want = slow(labels, confident, shapes & allowed.unsqueeze(1), threshold)
            got = propagate_rows(*inputs, threshold)
            assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True)), (seed, threshold)
        assert all(torch.equal(t, copy) for t, copy in zip(inputs, before, strict=True)), (
            "inputs must not change"
        )


@pytest.mark.parametrize("kind", ["smooth", "near the middle"])
def test_rows_at_a_training_crop(kind):
    """Many rows at once, and pixels that rounding could put on either side."""
    generator = torch.Generator().manual_seed(0)
    rows = random_rows(kind, generator, 40, (41, 41))
    shapes = full_size(rows, (321, 321))
    cells = _Cells.of((41, 41), (321, 321))
    for n in range(2):
        bits = np.unpackbits(cells.shapes(rows[n]).view(np.uint8), axis=1)[:, cells.bit_of_pixel]
        assert np.array_equal(bits.astype(bool), shapes[n].flatten(1).numpy())
    everywhere = torch.ones(2, 321, 321, dtype=torch.bool)
    labels = (torch.rand(2, 321, 321, generator=generator) < 0.3).long()
    want = region_propagation(labels, everywhere, shapes, 0.6)
    got = propagate_rows(rows, labels, everywhere, everywhere, 0.6)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    assert (want[0] != labels).any()


def test_a_shape_is_a_row_of_full_size():
    labels, confident, shapes = random_case(3)
    allowed = torch.rand(2, 13, 17) < 0.8
    want = slow(labels, confident, shapes & allowed.unsqueeze(1), 0.6)
    got = propagate_rows(shapes.float(), labels, confident, allowed, 0.6)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
