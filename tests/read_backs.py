"""Counts what reads a tensor back to the host: on a GPU each such operation would stop the queue."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS_BACK = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "is_nonzero",
    "equal",
    "bincount",
    "unique_consecutive",
    "repeat_interleave",
}


class CountReadBacks(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        boolean_index = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if name in READS_BACK or boolean_index:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))
