"""The training methods: one method is one file in this folder and one line in `REGISTRY`.

The line gives everything else: `corrmatch_hf.UniMatchV2` and `corrmatch_hf.UniMatchV2Options`, `--method unimatch_v2`
with its options, the citation on model cards and the page in the documentation.

Importing this package loads no method, and not even torch: classes are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..errors import unknown_name
from ..on_demand import import_name

if TYPE_CHECKING:
    from .base import Method

    METHODS: dict[str, type[Method]]

# `--method NAME` is the class in NAME.py; its options are the class with "Options" appended.
REGISTRY = {
    "corrmatch": "CorrMatch",
    "unimatch": "UniMatch",
    "unimatch_v2": "UniMatchV2",
    "fixmatch": "FixMatch",
    "ipixmatch": "IPixMatch",
    "cps": "CPS",
    "dgcl": "DGCL",
    "mean_teacher": "MeanTeacher",
    "gatematch": "GateMatch",
    "supervised": "Supervised",
}

# Public name -> the file that defines it.
PUBLIC_NAMES = {"Method": "base", "DynamicThreshold": "dynamic_threshold"} | {
    public: name for name, cls in REGISTRY.items() for public in (cls, f"{cls}Options")
}


def method_class(name: str) -> type[Method]:
    """The method called `name`; an `InputError` with the nearest name if there is none."""
    if name not in REGISTRY:
        raise unknown_name("method", name, REGISTRY)
    return getattr(importlib.import_module(f".{name}", __name__), REGISTRY[name])


def __getattr__(name: str) -> Any:
    if name == "METHODS":  # {"corrmatch": CorrMatch, ...}; reading it imports all methods
        return {method: method_class(method) for method in REGISTRY}
    return import_name(__name__, name, PUBLIC_NAMES)


__all__ = ["METHODS", "REGISTRY", "method_class", *PUBLIC_NAMES]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
