"""Makes transformers' Auto classes and pipelines know CorrMatch without importing anything.

Registering classes means importing them, and with them torch, timm and transformers: seconds, for a package that may
only be asked for its version. So transformers is told names instead, as for its own models: that "corrmatch" is
`CorrMatchConfig` of the module `transformers.models.corrmatch`. That module is a stand-in, and the first question to it
imports `corrmatch_hf.model`, which registers the classes themselves.

The names are written into transformers' lists when transformers loads them, however late that is.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

MODEL = "corrmatch_hf.model"
STAND_IN = "transformers.models.corrmatch"
# Module of transformers -> its list of names, and what is added to it.
NAMES: dict[str, tuple[str, Any]] = {
    "transformers.models.auto.configuration_auto": ("CONFIG_MAPPING_NAMES", "CorrMatchConfig"),
    "transformers.models.auto.image_processing_auto": (
        "IMAGE_PROCESSOR_MAPPING_NAMES",
        {"torchvision": "CorrMatchImageProcessor"},
    ),
}


def register() -> None:
    """Called by `import corrmatch_hf`."""
    stand_in = _StandIn(STAND_IN)
    stand_in.__spec__ = importlib.machinery.ModuleSpec(STAND_IN, None)
    sys.modules.setdefault(STAND_IN, stand_in)
    if not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())
    for name in NAMES:
        if name in sys.modules:
            _add_name(sys.modules[name])


def _add_name(module: ModuleType) -> None:
    names, value = NAMES[module.__name__]
    try:
        getattr(module, names)["corrmatch"] = value
    except (AttributeError, TypeError):  # another transformers keeps its lists otherwise
        importlib.import_module(MODEL)


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # whoever looks through all modules (inspect, say) does not want this one
            raise AttributeError(name)
        return getattr(importlib.import_module(MODEL), name)


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds what the other finders find, and adds the names once a module of `NAMES` has been run."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in NAMES:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _AndThen(spec.loader)
                return spec
        return None


class _AndThen(importlib.abc.Loader):
    def __init__(self, loader: Any):
        self.loader = loader

    def create_module(self, spec: Any) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _add_name(module)

    def __getattr__(self, name: str) -> Any:  # get_source and the like
        if name == "loader":  # of a copy in the making
            raise AttributeError(name)
        return getattr(self.loader, name)
