"""One method = one file; the trainer finds it by name."""

from __future__ import annotations

from ..errors import unknown_name
from .base import Method
from .corrmatch import CorrMatch, CorrMatchOptions
from .cps import CPS, CPSOptions
from .dgcl import DGCL, DGCLOptions
from .dynamic_threshold import DynamicThreshold
from .fixmatch import FixMatch, FixMatchOptions
from .gatematch import GateMatch, GateMatchOptions
from .ipixmatch import IPixMatch, IPixMatchOptions
from .mean_teacher import MeanTeacher, MeanTeacherOptions
from .supervised import Supervised, SupervisedOptions
from .unimatch import UniMatch, UniMatchOptions
from .unimatch_v2 import UniMatchV2, UniMatchV2Options

METHODS: dict[str, type[Method]] = {
    cls.name: cls
    for cls in (CorrMatch, UniMatch, UniMatchV2, FixMatch, IPixMatch, CPS, DGCL, MeanTeacher, Supervised, GateMatch)
}


def method_class(name: str) -> type[Method]:
    """The method called `name`; an `InputError` naming the nearest one where there is none."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]


__all__ = [
    "CPS",
    "DGCL",
    "METHODS",
    "CPSOptions",
    "CorrMatch",
    "CorrMatchOptions",
    "DGCLOptions",
    "DynamicThreshold",
    "FixMatch",
    "FixMatchOptions",
    "GateMatch",
    "GateMatchOptions",
    "IPixMatch",
    "IPixMatchOptions",
    "MeanTeacher",
    "MeanTeacherOptions",
    "Method",
    "Supervised",
    "SupervisedOptions",
    "UniMatch",
    "UniMatchOptions",
    "UniMatchV2",
    "UniMatchV2Options",
    "method_class",
]
