"""Data: every source becomes a `SemiDataset`; that and an `Augmentation` become endless `SemiBatch`es."""

from corrmatch_hf.data.augment import Augmentation
from corrmatch_hf.data.batch import SemiBatch
from corrmatch_hf.data.load import load_semi_dataset
from corrmatch_hf.data.semi_dataset import SemiDataset
from corrmatch_hf.data.synthetic import synthetic_semi_dataset
from corrmatch_hf.data.training_set import training_batches

__all__ = [
    "Augmentation",
    "SemiBatch",
    "SemiDataset",
    "load_semi_dataset",
    "synthetic_semi_dataset",
    "training_batches",
]
