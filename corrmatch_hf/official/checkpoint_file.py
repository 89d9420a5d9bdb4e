"""Reads files of `torch.save` that contain weights among other things, without running code in them."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ..errors import InputError
from ..model.encoder_corrmatch import find_oversize


def read_checkpoint(path: Path, key: str | None) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint file, without the prefix "module."; memory-mapped if the format allows it.

    Args:
        path: the file.
        key: the name of the weights in the file, if it contains several sets.

    Raises:
        InputError: no such file; a file that is corrupt or contains code, which is not run; no weights, or several sets
            without a `key`.
    """
    checkpoint = _load(path)
    sets: dict[str | None, Mapping[str, torch.Tensor]] = {}
    if isinstance(checkpoint, Mapping):
        sets = {name: value for name, value in checkpoint.items() if _is_state_dict(value)}
        if not sets and key is None and _is_state_dict(checkpoint):
            sets = {None: checkpoint}
    if not sets:
        raise InputError(
            f"{path} contains no weights, neither at its top level nor under a name such as 'model': give a checkpoint "
            "of CorrMatch or UniMatch."
        )
    if key not in sets and (key is not None or len(sets) > 1):
        found = "several sets of weights" if key is None else f"no weights named {key!r}"
        hint = " (UniMatch V2's published results use model_ema)" if "model_ema" in sets else ""
        raise InputError(f"{path} contains {found}: choose one of {first(map(str, sets))} with --key{hint}.")
    state = sets[key] if key in sets else next(iter(sets.values()))
    if oversize := find_oversize(path, state.values()):
        raise InputError(f"{path} is rejected: {oversize}.")
    while all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def _is_state_dict(value) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
    )


class _Ignored:
    """Replaces NumPy numbers in a checkpoint, such as the best score so far; their values are not needed."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


# The names in a pickled NumPy number, of NumPy 1 and 2; torch finds the classes to use by these names.
NUMPY = [
    type(name, (_Ignored,), {"__module__": module})
    for module, name in (
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy", "dtype"),
    )
]


def _load(path: Path):
    """The tensors and plain values of a checkpoint file, memory-mapped if the format allows it."""
    if not path.is_file():
        raise InputError(f"There is no checkpoint file {path}: check the path.")
    if oversize := find_oversize(path):
        raise InputError(f"{path} is rejected: {oversize}.")
    try:
        with torch.serialization.safe_globals(NUMPY):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a corrupt or malicious file can raise anything
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path} contains more than weights: it would run {found[1]} when loaded, so it is rejected, and no "
                "code in it was run. If you trust the file, save its weights alone: "
                "torch.save(torch.load(FILE, weights_only=False)['model'], NEW_FILE)."
            ) from error
        raise InputError(
            f"{path} cannot be read as a PyTorch checkpoint ({type(error).__name__}): it is corrupt, incomplete or in "
            "another format."
        ) from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def first(names: Iterable[str]) -> str:
    """The first names of a list that may be long, for a message."""
    names = list(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
