"""The Accelerate loop."""

from .config import TrainingConfig
from .failures import ProcessLostError
from .non_finite import NonFiniteLossError
from .stopping import TrainingInterrupted
from .trainer import SaveError, SemiSupervisedTrainer

__all__ = [
    "NonFiniteLossError",
    "ProcessLostError",
    "SaveError",
    "SemiSupervisedTrainer",
    "TrainingConfig",
    "TrainingInterrupted",
]
