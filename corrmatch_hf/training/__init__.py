"""The Accelerate loop."""

from .config import TrainingConfig
from .interruption import ProcessLostError, TrainingInterrupted
from .non_finite import NonFiniteLossError
from .output_folder import SaveError
from .trainer import SemiSupervisedTrainer

__all__ = [
    "NonFiniteLossError",
    "ProcessLostError",
    "SaveError",
    "SemiSupervisedTrainer",
    "TrainingConfig",
    "TrainingInterrupted",
]
