"""The Triton kernels in Triton's interpreter, which needs no GPU, against algorithm 1 as nested loops."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def compare() -> None:
    """Runs in a process of its own: Triton looks at TRITON_INTERPRET when it is imported."""
    from corrmatch_hf.ops.region_propagation.triton import propagate_triton

    from .test_region_propagation import random_case, slow

    def check(labels, confident, shapes, threshold, num_labels):
        before = labels.clone(), confident.clone(), shapes.clone()
        tau = torch.tensor(threshold, dtype=torch.float32)
        got_labels, got_confident = propagate_triton(labels, confident, shapes, tau, num_labels)
        want_labels, want_confident = slow(labels, confident, shapes, threshold)
        assert got_labels.dtype == torch.int64 and torch.equal(got_labels, want_labels)
        assert got_confident.dtype == torch.bool and torch.equal(got_confident, want_confident)
        for tensor, copy in zip((labels, confident, shapes), before, strict=True):
            assert torch.equal(tensor, copy), "inputs must not change"
        return bool((want_labels != labels).any())

    painted = 0
    # One block of words and less, not a multiple of anything, and several blocks.
    for seed, (size, classes, num_labels) in enumerate(
        [((5, 5), 2, 2), ((13, 17), 4, 4), ((33, 31), 3, 150), ((70, 61), 21, 21), ((64, 64), 5, 7)]
    ):
        for threshold in (0.0, 0.6, 0.85):
            case = random_case(seed, n=2, s=8, size=size, classes=classes)
            painted += check(*case, threshold, num_labels)
    assert painted >= 5, "the cases must exercise painting"

    # A tie of labels 1 and 2 after an empty shape; and labels that an earlier shape painted.
    shapes = torch.zeros(1, 2, 1, 5, dtype=torch.bool)
    shapes[0, 1] = True
    labels, confident = torch.tensor([[[2, 1, 1, 2, 0]]]), torch.tensor([[[True, True, True, True, False]]])
    assert check(labels, confident, shapes, 0.4, 3)
    shapes = torch.tensor([[[[1, 1, 1, 1, 0, 0]], [[0, 0, 1, 1, 1, 0]]]], dtype=torch.bool)
    assert check(torch.tensor([[[0, 0, 0, 1, 1, 1]]]), torch.ones(1, 1, 6, dtype=torch.bool), shapes, 0.6, 2)
    print("identical")


def test_in_the_interpreter():
    pytest.importorskip("triton")
    code = "from tests.ops.test_region_propagation_triton import compare; compare()"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0 and run.stdout.strip().endswith("identical"), run.stderr[-3000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    pytest.importorskip("triton")
    from corrmatch_hf.ops.region_propagation.propagate import region_propagation

    from .test_region_propagation import random_case, slow

    for seed in range(10):
        case = random_case(seed, n=2, s=24, size=(97, 101), classes=5)
        want = slow(*case, 0.6)
        got = region_propagation(*(t.cuda() for t in case), torch.tensor(0.6).cuda(), num_labels=5)
        assert all(torch.equal(g.cpu(), w) for g, w in zip(got, want, strict=True))
