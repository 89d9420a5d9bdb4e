"""corrmatch-hf: semi-supervised semantic segmentation, as easy as any Hugging Face model.

Importing the package is fast: its parts are imported when they are first used. transformers' Auto classes and pipelines
know the model once anything that needs it is imported, as in

    from corrmatch_hf import CorrMatchForSegmentation
"""

from __future__ import annotations

import importlib
from typing import Any

from .methods import PUBLIC_NAMES as METHOD_NAMES
from .on_demand import import_name

__version__ = "0.2.0.dev0"

# Public name -> the module that defines it.
_WHERE = {
    "CorrMatchConfig": "model",
    "CorrMatchForSegmentation": "model",
    "CorrMatchImageProcessor": "model",
    "pixel_propagation": "model",
    "correlation_rows": "model",
    "correlation_shapes": "methods.corrmatch",
    "propagate_rows": "ops.region_propagation",
    "region_propagation": "ops.region_propagation",
    "ohem_cross_entropy": "ops.losses",
    "InputError": "errors",
    "MeanIoU": "evaluation",
    "optimize_for_inference": "evaluation",
    "SemiDataset": "data",
    "load_semi_dataset": "data",
    "SemiSupervisedTrainer": "training",
    "TrainingConfig": "training",
} | {name: f"methods.{file}" for name, file in METHOD_NAMES.items()}

_ROOMS = {
    "commands",
    "data",
    "errors",
    "evaluation",
    "hub",
    "methods",
    "model",
    "official",
    "ops",
    "options",
    "pictures",
    "training",
}

__all__ = ["__version__", *sorted(_WHERE)]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    return import_name(__name__, name, _WHERE)


def __dir__() -> list[str]:
    return __all__
