"""Names of a package that are imported when they are first used, so that importing the package is fast."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def import_name(package: str, name: str, where: Mapping[str, str]) -> Any:
    """What a package's `__getattr__` returns for `name`; `where` maps public names to the modules that define them."""
    if name not in where:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{package}.{where[name]}"), name)
