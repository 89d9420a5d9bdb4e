"""The Accelerate loop."""

from .config import TrainingConfig
from .non_finite import NonFiniteLossError
from .trainer import SemiSupervisedTrainer

__all__ = ["NonFiniteLossError", "SemiSupervisedTrainer", "TrainingConfig"]
