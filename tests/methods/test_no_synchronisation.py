"""Nothing of a step is read back to the host: on a GPU each such operation would stop the queue."""

import pytest
import torch

from corrmatch_hf.methods import (
    METHODS,
    CorrMatchOptions,
    CPSOptions,
    DGCLOptions,
    FixMatchOptions,
    corrmatch,
    method_class,
)
from corrmatch_hf.ops.region_propagation.propagate import _propagate_batched
from corrmatch_hf.ops.region_propagation.rows import row_shapes

from ..read_backs import CountReadBacks
from .test_corrmatch import random_batch, tiny_model


def test_the_counter_counts():
    with CountReadBacks() as mode:
        x = torch.arange(4.0)
        x[x > 1]
        x.sum().item()
    assert len(mode.seen) >= 2


@pytest.mark.parametrize(
    "name, options",
    [
        *((name, None) for name in METHODS),
        ("fixmatch", FixMatchOptions(teacher="ema")),
        ("corrmatch", CorrMatchOptions(teacher="ema", feature_perturbation="complementary")),
        ("cps", CPSOptions(cps_cutmix=True, inter_pixel_loss="pairwise")),
        ("dgcl", DGCLOptions(inter_pixel_loss="kl", dgcl_memory_size=40)),
    ],
)
def test_a_step_reads_nothing_back(name, options, monkeypatch):
    # The form of region propagation that GPUs take.
    monkeypatch.setattr(
        corrmatch,
        "propagate_rows",
        lambda rows, labels, confident, allowed, tau, num_labels: _propagate_batched(
            labels, confident, row_shapes(rows, labels.shape[-2:]) & allowed.unsqueeze(1), tau, num_labels
        ),
    )
    cls = method_class(name)
    method = cls(tiny_model(), options).train()
    batch = random_batch(views=max(cls.strong_views, 1))
    with CountReadBacks() as mode:
        loss, _ = method(batch)
        loss.backward()
        method.after_step()
    assert mode.seen == []
