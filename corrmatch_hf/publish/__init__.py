"""What people look at: label maps in colour, sheets of predictions, training curves, the model card."""

from corrmatch_hf.publish.card import write_run_card
from corrmatch_hf.publish.curves import training_curves
from corrmatch_hf.publish.overlay import mask_image, overlay
from corrmatch_hf.publish.palette import class_palette
from corrmatch_hf.publish.predictions import prediction_grid

__all__ = ["class_palette", "mask_image", "overlay", "prediction_grid", "training_curves", "write_run_card"]
