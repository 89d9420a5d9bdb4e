"""Shapes against equation 7, written out pixel by pixel, and against the authors' tensors."""

import math

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from corrmatch_hf import correlation_shapes
from corrmatch_hf.model import correlation_rows
from corrmatch_hf.ops.region_propagation import rows as module
from corrmatch_hf.ops.region_propagation.rows import propagate_rows


def slow_shapes(query, key, index, size):
    """Equations 4 and 7, row by row, in float64."""
    shapes = torch.zeros(len(query), len(index), *size, dtype=torch.bool)
    for n in range(len(query)):
        queries, keys = query[n].flatten(1).T.double(), key[n].flatten(1).T.double()
        for s, p in enumerate(index.tolist()):
            scores = [math.exp(float(queries[p] @ k) / math.sqrt(query.shape[1])) for k in keys]
            row = torch.tensor(scores, dtype=torch.float64).view(1, 1, *query.shape[-2:]) / sum(scores)
            large = F.interpolate(row, size=size, mode="bilinear", align_corners=True)[0, 0]
            shapes[n, s] = (large - large.min()) / (large.max() - large.min()) > 0.5
    return shapes


def test_shapes_are_the_papers():
    query, key = torch.randn(2, 2, 3, 4, 5)
    index = torch.tensor([0, 7, 7, 18])
    assert torch.equal(
        correlation_shapes(query, key, index, (9, 11)), slow_shapes(query, key, index, (9, 11))
    )


def test_authors_tensors(shared_dir):
    ref = load_file(shared_dir / "reference" / "correlation.safetensors")
    query = F.conv2d(ref["feature"], ref["conv1_weight"], ref["conv1_bias"])
    key = F.conv2d(ref["feature"], ref["conv2_weight"], ref["conv2_bias"])
    shapes = correlation_shapes(query, key, ref["index"], (97, 97))
    assert shapes.dtype == torch.bool
    assert torch.equal(shapes, ref["shapes"].bool())


def test_region_propagation_paints_along_these_very_shapes():
    """Of few maps of few pixels, too, where `F.interpolate` rounds by how many it is given at once."""
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)

        def whole(high, generator=generator):
            return int(torch.randint(1, high, (), generator=generator))

        n, s, h, w = whole(3), whole(5), whole(9), whole(9)
        size = (whole(24), whole(24))
        # Two values in each row: many pixels lie exactly in the middle, where the last bit decides.
        query = torch.randn(n, 1, h, w, generator=generator)
        key = torch.randint(2, (n, 1, h, w), generator=generator).float()
        index = torch.randint(h * w, (s,), generator=generator)
        shapes = correlation_shapes(query, key, index, size)
        everywhere = torch.ones(1, *size, dtype=torch.bool)
        for image, shape in ((i, j) for i in range(n) for j in range(s)):
            # One confident pixel inside a shape, and a threshold of 0: all of it is painted, and nothing else.
            inside = shapes[image, shape]
            confident = torch.zeros(1, *size, dtype=torch.bool)
            confident.view(-1)[inside.flatten().int().argmax()] = True
            rows = correlation_rows(query, key, index)[image : image + 1, shape : shape + 1]
            labels = torch.zeros(1, *size, dtype=torch.int64)
            painted = propagate_rows(rows, labels, confident, everywhere, 0.0)[1][0]
            assert torch.equal(painted, inside | confident[0]), seed


def test_constant_rows_give_no_shape():
    shapes = correlation_shapes(torch.zeros(1, 3, 5, 7), torch.randn(1, 3, 5, 7), torch.arange(35), (23, 31))
    assert not shapes.any()


def test_chunks_do_not_matter(monkeypatch):
    query, key = torch.randn(2, 2, 3, 4, 5)
    index = torch.randint(20, (10,))
    whole = correlation_shapes(query, key, index, (9, 11))
    monkeypatch.setattr(module, "PIXELS", 300)  # three rows at a time
    assert torch.equal(correlation_shapes(query, key, index, (9, 11)), whole)


def test_computed_in_float32_without_gradient():
    query, key = torch.randn(2, 2, 3, 4, 5).bfloat16()
    index = torch.arange(20)
    want = correlation_shapes(query.float(), key.float(), index, (9, 11))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(correlation_shapes(query.requires_grad_(), key, index, (9, 11)), want)


def test_inputs_are_not_changed():
    query, key, index = torch.randn(1, 3, 4, 5), torch.randn(1, 3, 4, 5), torch.arange(4)
    copies = query.clone(), key.clone(), index.clone()
    correlation_shapes(query, key, index, (9, 11))
    assert all(torch.equal(a, b) for a, b in zip((query, key, index), copies, strict=True))
