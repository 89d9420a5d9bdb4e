"""The Accelerate loop. Its parts are imported when they are first used."""

from __future__ import annotations

from typing import Any

from ..on_demand import import_name

_WHERE = {
    "EvaluationError": "output_folder",
    "NonFiniteLossError": "non_finite",
    "ProcessLostError": "interruption",
    "SaveError": "output_folder",
    "SemiSupervisedTrainer": "trainer",
    "TrainingConfig": "config",
    "TrainingInterrupted": "interruption",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    return import_name(__name__, name, _WHERE)
