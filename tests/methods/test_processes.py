"""Two processes with half the batch each give the losses, weights and threshold of one process with all of it."""

import dataclasses
import os
import socket
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from corrmatch_hf.methods import CorrMatch, CorrMatchOptions

from .test_corrmatch import random_batch, tiny_model

STEPS = 3


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
        loss = loss.detach().clone()
        if dist.is_initialized():
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        losses.append(loss)
    return torch.stack(losses)


def make_method():
    torch.manual_seed(0)
    options = CorrMatchOptions(
        threshold_initial=0.3,
        threshold_momentum=0.5,
        labeled_loss="ohem",
        ohem_threshold=0.05,
        ohem_min_kept=900,
    )
    return CorrMatch(tiny_model(), options, seed=5).train()


def batch_of_total(step):
    batch = random_batch(step=step, labeled=4, unlabeled=4, rows=(0, 1, 3), seed=step)
    batch.valid[0] = False  # the processes have different numbers of valid pixels
    batch.label[3, 10:] = 255
    return batch


def part(batch, rank):
    rows = slice(2 * rank, 2 * rank + 2)
    own = [i for i, row in enumerate(batch.partner_rows) if row // 2 == rank]
    return dataclasses.replace(
        batch,
        image=batch.image[rows],
        label=batch.label[rows],
        weak=batch.weak[rows],
        strong=batch.strong[rows],
        valid=batch.valid[rows],
        box=batch.box[rows],
        partner_rows=[batch.partner_rows[i] - 2 * rank for i in own],
        partner_weak=batch.partner_weak[own],
        partner_valid=batch.partner_valid[own],
    )


def process(rank, port, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=120))
    method = make_method()
    wrapped = DistributedDataParallel(method)
    frozen_batch_norm(wrapped)
    losses = run(wrapped, [part(batch_of_total(step), rank) for step in range(STEPS)])
    torch.save({"losses": losses, "state": method.state_dict()}, f"{results}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(process, args=(port, str(tmp_path)), nprocs=2)
    two = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    method = make_method()
    one = run(method, [batch_of_total(step) for step in range(STEPS)])

    assert torch.equal(two[0]["losses"], two[1]["losses"])
    torch.testing.assert_close(two[0]["losses"], one, rtol=1e-5, atol=0)
    for key, value in method.state_dict().items():
        torch.testing.assert_close(two[0]["state"][key], value, rtol=1e-4, atol=1e-6)
    assert method.threshold.value != 0.3
