"""Two processes with half the batch each give the losses, weights and threshold of one process with all of it."""

import dataclasses

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from corrmatch_hf.methods import (
    CorrMatchOptions,
    CPSOptions,
    DGCLOptions,
    FixMatchOptions,
    GateMatchOptions,
    IPixMatchOptions,
    MeanTeacherOptions,
    UniMatchOptions,
    UniMatchV2Options,
    method_class,
)
from corrmatch_hf.training.config import TrainingConfig
from corrmatch_hf.training.optimizer import freeze

from ..two_processes import in_two_processes
from .tiny import random_batch, tiny_model

STEPS = 2


def frozen_batch_norm(module):
    for m in module.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.eval()


def run(method, batches):
    """Total loss of each step, averaged over processes, and the state at the end."""
    frozen_batch_norm(method)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss, _ = method(batch)
        loss.backward()
        optimizer.step()
        (method.module if dist.is_initialized() else method).after_step()
        loss = loss.detach().clone()
        if dist.is_initialized():
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        losses.append(loss)
    return torch.stack(losses)


OHEM = {"labeled_loss": "ohem", "ohem_threshold": 0.05, "ohem_min_kept": 900}
OPTIONS = {  # name and options of a method
    "corrmatch": ("corrmatch", CorrMatchOptions(threshold_initial=0.3, threshold_momentum=0.5, **OHEM)),
    "unimatch": ("unimatch", UniMatchOptions(confidence_threshold=0.22, **OHEM)),
    "corrmatch ema complementary": (
        "corrmatch",
        CorrMatchOptions(
            threshold_initial=0.3, teacher="ema", teacher_decay=0.7, feature_perturbation="complementary"
        ),
    ),
    "gatematch": (
        "gatematch",
        GateMatchOptions(
            threshold="class_mean", confidence_threshold=0.22, class_weight_power=0.5, teacher_decay=0.7
        ),
    ),
    "gatematch soft": (
        "gatematch",
        GateMatchOptions(soft_labels=True, teacher_flip=True, confidence_threshold=0.22, teacher_decay=0.7),
    ),
    "gatematch soft recall": (
        "gatematch",
        GateMatchOptions(soft_labels=True, confidence_threshold=0.0, teacher_decay=0.7, teacher_recall=1e-9),
    ),
    "gatematch paste": (
        "gatematch",
        GateMatchOptions(soft_labels=True, teacher_decay=0.7, paste_probability=0.7),
    ),
    "unimatch_v2": ("unimatch_v2", UniMatchV2Options(confidence_threshold=0.22, teacher_decay=0.7)),
    "unimatch_v2, encoder frozen": ("unimatch_v2", UniMatchV2Options(confidence_threshold=0.22)),
    "fixmatch": ("fixmatch", FixMatchOptions(confidence_threshold=0.22)),
    "fixmatch ema": (
        "fixmatch",
        FixMatchOptions(confidence_threshold=0.22, teacher="ema", teacher_decay=0.7),
    ),
    "ipixmatch": ("ipixmatch", IPixMatchOptions(confidence_threshold=0.22, inter_pixel_loss="pairwise")),
    "mean_teacher": ("mean_teacher", MeanTeacherOptions(inter_pixel_loss="correlation")),
    "cps": ("cps", CPSOptions()),
    "cps, encoders frozen": ("cps", CPSOptions()),
    "cps cutmix soft": ("cps", CPSOptions(cps_cutmix=True, cps_supervision="soft")),
    "cps cutmix inter-pixel": ("cps", CPSOptions(cps_cutmix=True, inter_pixel_loss="kl")),
    "dgcl inter-pixel": (  # with its contrast: test_dgcl.py
        "dgcl",
        DGCLOptions(inter_pixel_loss="correlation", dgcl_memory_size=40, dgcl_projection_channels=8),
    ),
}


def make_method(case):
    torch.manual_seed(0)
    name, options = OPTIONS[case]
    method = method_class(name)(tiny_model(), options, seed=5)
    if "frozen" in case:
        freeze(method, TrainingConfig(freeze_encoder=True))
    return method.train()


def batch_of_total(step, views, case):
    labeled = 8 if "paste" in case else 4
    batch = random_batch(step=step, labeled=labeled, unlabeled=4, rows=(0, 1, 3), seed=step, views=views)
    batch.valid[0] = False  # the processes have different numbers of valid pixels
    batch.label[3, 10:] = 255
    return batch


def part(batch, rank):
    rows = slice(2 * rank, 2 * rank + 2)
    half = len(batch.image) // 2
    labeled = slice(half * rank, half * rank + half)
    own = [i for i, row in enumerate(batch.partner_rows) if row // 2 == rank]
    return dataclasses.replace(
        batch,
        image=batch.image[labeled],
        label=batch.label[labeled],
        weak=batch.weak[rows],
        strong=batch.strong[rows],
        valid=batch.valid[rows],
        box=batch.box[rows],
        partner_rows=[batch.partner_rows[i] - 2 * rank for i in own],
        partner_weak=batch.partner_weak[own],
        partner_valid=batch.partner_valid[own],
    )


def of_all_cases(rank):
    found = {}
    for case in OPTIONS:
        method = make_method(case)
        wrapped = DistributedDataParallel(method)
        frozen_batch_norm(wrapped)
        views = max(method.strong_views, 1)
        batches = [part(batch_of_total(step, views, case), rank) for step in range(STEPS)]
        found[case] = {"losses": run(wrapped, batches), "state": method.state_dict()}
    return found


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two processes found, for every method."""
    return in_two_processes(of_all_cases, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("case", OPTIONS)
def test_two_processes_equal_one(case, two_processes):
    two = [found[case] for found in two_processes]
    method = make_method(case)
    one = run(method, [batch_of_total(step, max(method.strong_views, 1), case) for step in range(STEPS)])

    assert torch.equal(two[0]["losses"], two[1]["losses"])
    torch.testing.assert_close(two[0]["losses"], one, rtol=1e-5, atol=0)
    for key, value in method.state_dict().items():
        torch.testing.assert_close(two[0]["state"][key], value, rtol=1e-4, atol=1e-6)
