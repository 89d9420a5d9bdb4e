"""Inference on images of any size, and evaluation of its results."""

from .confusion_matrix import ConfusionMatrix
from .evaluate import evaluate_segmentation
from .inference import predict_probabilities
from .optimize import optimize_for_inference

__all__ = [
    "ConfusionMatrix",
    "MeanIoU",
    "evaluate_segmentation",
    "optimize_for_inference",
    "predict_probabilities",
]


def __getattr__(name: str):
    # Only on demand: its library is called `evaluate`, as is examples/evaluate.py, which Python finds first
    # when a script in that folder runs.
    if name == "MeanIoU":
        from .metric import MeanIoU

        return MeanIoU
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
