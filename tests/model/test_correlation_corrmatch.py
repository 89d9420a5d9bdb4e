"""Pixel propagation and rows of the correlation map against the paper, written out pixel by pixel, and
against the authors' tensors."""

import importlib.util
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from corrmatch_hf.model import CorrelationHead, pixel_propagation, resize
from corrmatch_hf.model import correlation_corrmatch as module
from corrmatch_hf.model.correlation_corrmatch import correlation_rows


def correlation_map(query, key):
    """Equation 4 for one image: query, key (D,h,w) -> C[p][q], every row p a softmax over q."""
    query, key = query.detach().flatten(1).T.double(), key.detach().flatten(1).T.double()
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


def inputs(n=2, d=3, k=4, h=4, w=5):
    return torch.randn(n, d, h, w), torch.randn(n, d, h, w), torch.randn(n, k, h, w)


def explicit_propagation(query, key, logits, scale="scores"):
    """Equation 5 with the whole matrix, as autograd sees it."""
    scores = query.flatten(2).mT @ key.flatten(2)
    root = math.sqrt(query.shape[1])
    c = (scores / root).softmax(-1) if scale == "scores" else scores.softmax(-1) / root
    return (logits.flatten(2) @ c).view_as(logits)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several images and several blocks of rows, the last one shorter."""
    monkeypatch.setattr(module, "BLOCK", 1)  # blocks have 16 rows at least


def test_propagation_is_the_papers():
    query, key, logits = (t.double() for t in inputs())
    torch.testing.assert_close(pixel_propagation(query, key, logits), slow_propagation(query, key, logits))


@pytest.mark.parametrize("scale", ["scores", "rows"])
def test_correlation_rows_are_rows_of_the_map(scale):
    query, key, _ = (t.double() for t in inputs())
    index = torch.tensor([3, 19, 3])
    rows = correlation_rows(query.requires_grad_(), key, index, scale)
    assert rows.shape == (2, 3, 4, 5) and not rows.requires_grad
    for n in range(2):
        expected = correlation_map(query[n], key[n])[index]
        if scale == "rows":  # the softmax of the plain scores, divided
            expected = correlation_map(query[n] * math.sqrt(3), key[n])[index] / math.sqrt(3)
        torch.testing.assert_close(rows[n].flatten(1), expected)


def test_authors_tensors(shared_dir):
    ref = load_file(shared_dir / "reference" / "correlation.safetensors")
    query = F.conv2d(ref["feature"], ref["conv1_weight"], ref["conv1_bias"])
    key = F.conv2d(ref["feature"], ref["conv2_weight"], ref["conv2_bias"])
    propagated = pixel_propagation(query, key, resize(ref["logits"], (13, 13)))
    torch.testing.assert_close(propagated, ref["corr_out"], rtol=1e-5, atol=1e-5)


def test_sum_over_pixels_is_kept():
    """Rows of C sum to 1, so propagation moves logits about and creates none."""
    query, key, logits = inputs()
    propagated = pixel_propagation(query, key, logits)
    torch.testing.assert_close(propagated.sum(dim=(2, 3)), logits.sum(dim=(2, 3)))


@pytest.mark.parametrize("scale", ["scores", "rows"])
def test_gradients_reach_query_and_key_only(scale, small_blocks):
    query, key, logits = (t.double().requires_grad_() for t in inputs(h=5, w=7))
    assert torch.autograd.gradcheck(
        lambda q, k: pixel_propagation(q, k, logits, scale), (query, key), fast_mode=True
    )
    weight = torch.randn_like(logits)
    got = torch.autograd.grad((pixel_propagation(query, key, logits, scale) * weight).sum(), (query, key))
    want = torch.autograd.grad(
        (explicit_propagation(query, key, logits.detach(), scale) * weight).sum(), (query, key)
    )
    torch.testing.assert_close(got, want)
    pixel_propagation(query, key, logits, scale).sum().backward()
    assert logits.grad is None


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_blocks_of_rows_are_the_whole_matrix(memory_format):
    query, key, logits, weight = (
        t.contiguous(memory_format=memory_format) for t in (*inputs(h=30, w=31), torch.randn(2, 4, 30, 31))
    )
    query.requires_grad_(), key.requires_grad_()
    got, want = pixel_propagation(query, key, logits), explicit_propagation(query, key, logits)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad((got * weight).sum(), (query, key)),
        torch.autograd.grad((want * weight).sum(), (query, key)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_matrix_is_never_held(monkeypatch):
    monkeypatch.setattr(module, "LARGEST_BLOCK", 1640**2 // 10)
    held, softmax = [], torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda t, **kw: held.append(t.numel()) or softmax(t, **kw))
    query, key, logits = inputs(n=3, h=40, w=41)
    pixel_propagation(query.requires_grad_(), key, logits).sum().backward()
    assert sum(held) == 2 * 3 * 1640**2  # once forward, once backward
    assert max(held) <= module.LARGEST_BLOCK


def test_frozen_query_and_key_keep_nothing():
    query, key, logits = inputs()
    assert pixel_propagation(query, key, logits.requires_grad_()).grad_fn is None
    both = torch.autograd.grad(pixel_propagation(query, key.requires_grad_(), logits).square().sum(), key)
    query.requires_grad_()
    assert torch.equal(
        both[0], torch.autograd.grad(pixel_propagation(query, key, logits).square().sum(), key)[0]
    )


def test_one_pixel_keeps_its_logits():
    query, key, logits = inputs(h=1, w=1)
    propagated = pixel_propagation(query.requires_grad_(), key, logits)
    torch.testing.assert_close(propagated, logits)
    propagated.sum().backward()
    assert torch.equal(query.grad, torch.zeros_like(query))


def test_a_second_derivative_is_refused():
    query, key, logits = inputs()
    loss = pixel_propagation(query.requires_grad_(), key, logits).square().sum()
    (grad,) = torch.autograd.grad(loss, query, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        grad.sum().backward()


def test_backward_under_autocast_is_float32():
    query, key, logits = inputs()
    query.requires_grad_()
    (want,) = torch.autograd.grad(pixel_propagation(query, key, logits).square().sum(), query)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (got,) = torch.autograd.grad(pixel_propagation(query, key, logits).square().sum(), query)
    assert torch.equal(got, want)


def test_compiled_in_one_graph():
    query, key, logits = inputs()
    query.requires_grad_(), key.requires_grad_()
    compiled = torch.compile(pixel_propagation, backend="aot_eager", fullgraph=True)
    got, want = compiled(query, key, logits), pixel_propagation(query, key, logits)
    assert torch.equal(got, want)
    torch.testing.assert_close(
        torch.autograd.grad(got.square().sum(), (query, key)),
        torch.autograd.grad(want.square().sum(), (query, key)),
    )


def test_a_published_models_copy_of_the_file_works_beside_it():
    query, key, logits = inputs()
    query.requires_grad_()
    name = "corrmatch_hf.model.a_copy"
    spec = importlib.util.spec_from_file_location(name, module.__file__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    grads = [
        torch.autograd.grad(function(query, key, logits).square().sum(), query)[0]
        for function in (pixel_propagation, copy.pixel_propagation)
    ]
    assert torch.equal(*grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_computed_in_float32(dtype):
    query, key, logits = (t.to(dtype) for t in inputs())
    expected = pixel_propagation(query.float(), key.float(), logits.float())
    propagated = pixel_propagation(query, key, logits)
    assert propagated.dtype == torch.float32 and torch.equal(propagated, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pixel_propagation(query.float(), key.float(), logits.float()), expected)


def test_large_scores_stay_finite():
    query, key, logits = inputs()
    assert pixel_propagation(1e4 * query, 1e4 * key, logits).isfinite().all()


def test_inputs_are_not_changed():
    tensors = inputs()
    copies = [t.clone() for t in tensors]
    pixel_propagation(*tensors)
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


def test_wrong_arguments_are_named():
    query, key = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 4, 4)
    for function in (pixel_propagation, correlation_rows):
        last = torch.zeros(1, dtype=torch.long) if function is correlation_rows else query
        with pytest.raises(ValueError, match=r"query is \(1, 2, 3, 3\) and key \(1, 2, 4, 4\)"):
            function(query, key, last)
        with pytest.raises(ValueError, match="'typo': choose 'scores' or 'rows'"):
            function(query, query, last, "typo")
