"""Data: every source becomes a `SemiDataset`; that and an `Augmentation` become endless `SemiBatch`es.

The parts are imported when they are first used.
"""

from __future__ import annotations

from typing import Any

from ..on_demand import import_name

_WHERE = {
    "Augmentation": "augment",
    "SemiBatch": "batch",
    "SemiDataset": "semi_dataset",
    "load_semi_dataset": "load",
    "synthetic_semi_dataset": "sources.synthetic",
    "training_batches": "training_set",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    return import_name(__name__, name, _WHERE)
