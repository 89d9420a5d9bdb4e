"""Runs a function in two processes that form one process group."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from . import fork_server
from .ports import free_port


def in_two_processes(function, folder, *args) -> list:
    """`function(rank, *args)` of both ranks; the function is one of a test module's own, which each imports."""
    method = fork_server.CONTEXT.get_start_method()
    mp.start_processes(_one, (function, free_port(), str(folder), args), nprocs=2, start_method=method)
    return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(2)]


def _one(rank, function, port, folder, args):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=120))
    torch.save(function(rank, *args), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
