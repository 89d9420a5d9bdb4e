"""Pixel propagation and shapes against the paper, written out pixel by pixel, and against the authors'
tensors."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from corrmatch_hf.model import CorrelationHead, correlation_shapes, pixel_propagation, resize
from corrmatch_hf.model import correlation_corrmatch as module


def correlation_map(query, key):
    """Equation 4 for one image: query, key (D,h,w) -> C[p][q], every row p a softmax over q."""
    query, key = query.flatten(1).T.double(), key.flatten(1).T.double()
    rows = []
    for q_p in query:
        scores = [math.exp(float(q_p @ k_q) / math.sqrt(len(q_p))) for k_q in key]
        rows.append([score / sum(scores) for score in scores])
    return torch.tensor(rows, dtype=torch.float64)


def slow_propagation(query, key, logits):
    """Equation 5: z[k][q] is the sum over p of O[k][p] C[p][q]."""
    out = torch.zeros(logits.shape, dtype=torch.float64)
    for n in range(len(query)):
        c = correlation_map(query[n], key[n])
        o = logits[n].flatten(1).double()
        for k in range(o.shape[0]):
            for q in range(o.shape[1]):
                out[n, k].view(-1)[q] = sum(o[k, p] * c[p, q] for p in range(o.shape[1]))
    return out


def slow_shapes(query, key, index, size):
    """Equation 7, row by row."""
    shapes = torch.zeros(len(query), len(index), *size, dtype=torch.bool)
    for n in range(len(query)):
        c = correlation_map(query[n], key[n])
        for s, p in enumerate(index.tolist()):
            row = c[p].view(1, 1, *query.shape[-2:])
            large = F.interpolate(row, size=size, mode="bilinear", align_corners=True)[0, 0]
            shapes[n, s] = (large - large.min()) / (large.max() - large.min()) > 0.5
    return shapes


def inputs(n=2, d=3, k=4, h=4, w=5):
    return torch.randn(n, d, h, w), torch.randn(n, d, h, w), torch.randn(n, k, h, w)


def test_propagation_is_the_papers():
    query, key, logits = inputs()
    torch.testing.assert_close(
        pixel_propagation(query, key, logits).double(), slow_propagation(query, key, logits)
    )


def test_shapes_are_the_papers():
    query, key, _ = inputs()
    index = torch.tensor([0, 7, 7, 18])
    assert torch.equal(
        correlation_shapes(query, key, index, (9, 11)), slow_shapes(query, key, index, (9, 11))
    )


def test_authors_tensors(shared_dir):
    ref = load_file(shared_dir / "reference" / "correlation.safetensors")
    query = F.conv2d(ref["feature"], ref["conv1_weight"], ref["conv1_bias"])
    key = F.conv2d(ref["feature"], ref["conv2_weight"], ref["conv2_bias"])
    propagated = pixel_propagation(query, key, resize(ref["logits"], (13, 13)))
    torch.testing.assert_close(propagated, ref["corr_out"], rtol=1e-5, atol=1e-5)
    shapes = correlation_shapes(query, key, ref["index"], (97, 97))
    assert shapes.dtype == torch.bool
    assert torch.equal(shapes, ref["shapes"].bool())


def test_sum_over_pixels_is_kept():
    """Rows of C sum to 1, so propagation moves logits about and creates none."""
    query, key, logits = inputs()
    propagated = pixel_propagation(query, key, logits)
    torch.testing.assert_close(propagated.sum(dim=(2, 3)), logits.sum(dim=(2, 3)))


def test_gradients_reach_query_and_key_only():
    query, key, logits = (t.double().requires_grad_() for t in inputs(n=1, h=2, w=3))
    assert torch.autograd.gradcheck(lambda q, k: pixel_propagation(q, k, logits), (query, key))
    pixel_propagation(query, key, logits).sum().backward()
    assert logits.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_computed_in_float32(dtype):
    query, key, logits = (t.to(dtype) for t in inputs())
    expected = pixel_propagation(query.float(), key.float(), logits.float())
    propagated = pixel_propagation(query, key, logits)
    assert propagated.dtype == torch.float32 and torch.equal(propagated, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pixel_propagation(query.float(), key.float(), logits.float()), expected)


def test_constant_rows_give_no_shape():
    shapes = correlation_shapes(torch.zeros(1, 3, 5, 7), torch.randn(1, 3, 5, 7), torch.arange(35), (23, 31))
    assert not shapes.any()


def test_large_scores_stay_finite():
    query, key, logits = inputs()
    assert pixel_propagation(1e4 * query, 1e4 * key, logits).isfinite().all()


def test_chunks_do_not_matter(monkeypatch):
    query, key, _ = inputs()
    index = torch.randint(20, (10,))
    whole = correlation_shapes(query, key, index, (9, 11))
    monkeypatch.setattr(module, "SHAPE_CHUNK", 600)  # three rows at a time
    assert torch.equal(correlation_shapes(query, key, index, (9, 11)), whole)


def test_inputs_are_not_changed():
    tensors = inputs()
    copies = [t.clone() for t in tensors]
    pixel_propagation(*tensors)
    correlation_shapes(*tensors[:2], torch.arange(4), (9, 11))
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))


def test_head():
    head = CorrelationHead(in_channels=6, channels=8, dim=3, dropout=0.5)
    features = torch.randn(2, 6, 5, 7)
    query, key = head(features)
    assert query.shape == key.shape == (2, 3, 5, 7)
    ones = torch.ones(2, 8)
    masked = head(features, ones)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(masked, head(features, ones), strict=True))  # no dropout
    nothing = head(features, 0 * ones)
    torch.testing.assert_close(nothing[0], head.query.bias[None, :, None, None].expand(2, -1, 5, 7))
