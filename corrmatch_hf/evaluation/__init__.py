"""How good a model is: confusion matrix, inference on images of any size, evaluation over many processes."""

from corrmatch_hf.evaluation.confusion import ConfusionMatrix
from corrmatch_hf.evaluation.evaluate import evaluate_segmentation
from corrmatch_hf.evaluation.inference import predict_probabilities
from corrmatch_hf.evaluation.optimize import optimize_for_inference

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
        from corrmatch_hf.evaluation.metric import MeanIoU

        return MeanIoU
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
