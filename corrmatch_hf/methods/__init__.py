"""One method = one file; the trainer finds it by name."""

from __future__ import annotations

from ..errors import unknown_name
from .base import Method
from .corrmatch import CorrMatch, CorrMatchOptions
from .dynamic_threshold import DynamicThreshold
from .supervised import Supervised, SupervisedOptions

METHODS: dict[str, type[Method]] = {cls.name: cls for cls in (CorrMatch, Supervised)}


def method_class(name: str) -> type[Method]:
    """The method called `name`; an `InputError` naming the nearest one where there is none."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]


__all__ = [
    "METHODS",
    "CorrMatch",
    "CorrMatchOptions",
    "DynamicThreshold",
    "Method",
    "Supervised",
    "SupervisedOptions",
    "method_class",
]
