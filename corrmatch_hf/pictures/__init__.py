"""Label maps in colour, grids of predictions, and training curves."""

from .curves import training_curves
from .overlay import mask_image, overlay
from .palette import class_palette
from .prediction_grid import prediction_grid

__all__ = ["class_palette", "mask_image", "overlay", "prediction_grid", "training_curves"]
