"""Data: every source becomes a `SemiDataset`; that and an `Augmentation` become endless `SemiBatch`es."""

from .augment import Augmentation
from .batch import SemiBatch
from .load import load_semi_dataset
from .semi_dataset import SemiDataset
from .sources.synthetic import synthetic_semi_dataset
from .training_set import training_batches

__all__ = [
    "Augmentation",
    "SemiBatch",
    "SemiDataset",
    "load_semi_dataset",
    "synthetic_semi_dataset",
    "training_batches",
]
