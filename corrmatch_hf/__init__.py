"""corrmatch-hf: semi-supervised semantic segmentation, as easy as any Hugging Face model.

Importing the package is fast: its parts are imported when they are first used. transformers' Auto classes and pipelines
know the model once `corrmatch_hf.model` is imported, which using anything that needs a model does, as in

    from corrmatch_hf import CorrMatchForSegmentation
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "CorrMatchConfig": "model",
    "CorrMatchForSegmentation": "model",
    "CorrMatchImageProcessor": "model",
    "pixel_propagation": "model.correlation_corrmatch",
    "correlation_shapes": "methods.corrmatch",
    "correlation_rows": "model.correlation_corrmatch",
    "propagate_rows": "ops.region_propagation.rows",
    "region_propagation": "ops.region_propagation.propagate",
    "ohem_cross_entropy": "ops.losses",
    "DynamicThreshold": "methods.dynamic_threshold",
    "CorrMatch": "methods",
    "CorrMatchOptions": "methods",
    "CPS": "methods",
    "CPSOptions": "methods",
    "DGCL": "methods",
    "DGCLOptions": "methods",
    "FixMatch": "methods",
    "FixMatchOptions": "methods",
    "IPixMatch": "methods",
    "IPixMatchOptions": "methods",
    "MeanTeacher": "methods",
    "MeanTeacherOptions": "methods",
    "UniMatch": "methods",
    "UniMatchV2": "methods",
    "UniMatchV2Options": "methods",
    "UniMatchOptions": "methods",
    "Supervised": "methods",
    "InputError": "errors",
    "MeanIoU": "evaluation",
    "optimize_for_inference": "evaluation",
    "SemiDataset": "data",
    "load_semi_dataset": "data",
    "SemiSupervisedTrainer": "training",
    "TrainingConfig": "training",
}

_ROOMS = {
    "data",
    "errors",
    "evaluation",
    "methods",
    "model",
    "ops",
    "hub",
    "pictures",
    "official",
    "training",
}

__all__ = ["__version__", *sorted(_WHERE)]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
