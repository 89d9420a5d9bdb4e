"""Files of `torch.save` that hold weights and more, read without running anything of them."""

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
    """The weights in a checkpoint file, without "module."; they stay in it until they are used.

    Args:
        path: the file.
        key: the name of the weights in it, where it holds several.

    Raises:
        InputError: no such file; one that is damaged or holds code, none of which is run; no weights, or several.
    """
    checkpoint = _load(path)
    sets = {}
    if isinstance(checkpoint, Mapping):
        sets = {name: value for name, value in checkpoint.items() if _is_state(value)}
        if not sets and key is None and _is_state(checkpoint):
            sets = {None: checkpoint}
    if not sets:
        raise InputError(
            f"{path} holds no weights, neither as a whole nor under a name such as 'model': name a checkpoint of "
            "CorrMatch or UniMatch."
        )
    if key not in sets and (key is not None or len(sets) > 1):
        given = "holds several sets of weights" if key is None else f"holds no weights named {key!r}"
        hint = " (UniMatch V2's published figures are of model_ema)" if "model_ema" in sets else ""
        raise InputError(f"{path} {given}: choose one of {some(map(str, sets))} by --key{hint}.")
    state = sets[key] if key in sets else next(iter(sets.values()))
    if oversize := find_oversize(path, state.values()):
        raise InputError(f"{path} is rejected: {oversize}.")
    while all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def _is_state(value) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
    )


class _Ignored:
    """Takes the place of a NumPy number in a checkpoint, such as the best score so far, and forgets it."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


# Of these a pickled NumPy number is made, in either generation of NumPy; torch looks classes up by such names.
NUMPY = [
    type(name, (_Ignored,), {"__module__": module})
    for module, name in (
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy", "dtype"),
    )
]


def _load(path: Path):
    """What a checkpoint file holds: tensors, mapped rather than read where the format allows, and plain values."""
    if not path.is_file():
        raise InputError(f"There is no checkpoint file {path}: check its name.")
    if oversize := find_oversize(path):
        raise InputError(f"{path} is rejected: {oversize}.")
    try:
        with torch.serialization.safe_globals(NUMPY):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a broken or hostile file can raise anything
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path} holds more than weights: it would run {found[1]} when loaded, so it is refused, and nothing "
                "of it was run. Where you trust the file, save its weights alone: "
                "torch.save(torch.load(FILE, weights_only=False)['model'], NEW_FILE)."
            ) from error
        raise InputError(
            f"{path} cannot be read as a PyTorch checkpoint ({type(error).__name__}): it is damaged, incomplete or "
            "something else."
        ) from error


def sha256(path: Path) -> str:
    """Of a file's contents, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def some(names: Iterable[str]) -> str:
    """The first names of a list that may be long."""
    names = list(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
