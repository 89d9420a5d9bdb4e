"""The papers that users of a method should cite. Each method's file holds its own."""

from __future__ import annotations

from typing import NamedTuple

from . import REGISTRY, method_class


class Citation(NamedTuple):
    """text: a sentence or link in Markdown; bibtex: the entry."""

    text: str
    bibtex: str


def citation_of(method: str | None) -> Citation | None:
    """The citation of the method called `method`; None if it has no paper or is not in the registry."""
    return method_class(method).citation if method in REGISTRY else None
