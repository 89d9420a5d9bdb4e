"""The Accelerate loop."""

from .config import TrainingConfig
from .trainer import SemiSupervisedTrainer

__all__ = ["SemiSupervisedTrainer", "TrainingConfig"]
