"""Shares as people read them."""

from __future__ import annotations


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage; "-" where there is none (a class that does not occur)."""
    return "-" if value is None else f"{100 * value:.{digits}f}"
