"""What a finished run leaves for people: pictures, a card, a table."""

from __future__ import annotations


def write_report(trainer, result, rows) -> None:
    print(result)
