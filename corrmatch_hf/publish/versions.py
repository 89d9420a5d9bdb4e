"""The versions of what a run depends on, for the record."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = (
    "corrmatch_hf", "torch", "timm", "transformers", "datasets", "accelerate", "huggingface_hub",
)  # fmt: skip


def library_versions() -> dict[str, str]:
    """{"python": "3.11.7", "corrmatch_hf": "0.1.0", "torch": ...}; what is not installed is left out."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # a copied source tree has no version of its own
            continue
    return versions
