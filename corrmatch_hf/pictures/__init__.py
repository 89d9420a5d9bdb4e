"""Label maps in colour, grids of predictions, and training curves."""

from .overlay import mask_image, overlay
from .palette import class_palette
from .prediction_grid import prediction_grid

__all__ = ["class_palette", "mask_image", "overlay", "prediction_grid", "training_curves"]


def __getattr__(name: str):
    # Only on demand: matplotlib takes a second to import, and only the curves of a training need it.
    if name == "training_curves":
        from .curves import training_curves

        return training_curves
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
