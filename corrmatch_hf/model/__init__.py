"""The network. All files of this folder are saved with the weights and load without the package.

Importing it registers the model with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, AutoVideoProcessor

from .configuration_corrmatch import CorrMatchConfig
from .correlation_corrmatch import CorrelationHead, correlation_rows, pixel_propagation
from .decoders_corrmatch import DeepLabV3PlusDecoder, resize
from .encoder_corrmatch import CorrMatchEncoder
from .image_processing_corrmatch import CorrMatchImageProcessor
from .modeling_corrmatch import (
    CorrMatchFeatures,
    CorrMatchForSegmentation,
    CorrMatchOutput,
    CorrMatchPreTrainedModel,
    DecoderOutput,
)

__all__ = [
    "CorrMatchConfig",
    "CorrMatchEncoder",
    "CorrMatchFeatures",
    "CorrMatchForSegmentation",
    "CorrMatchImageProcessor",
    "CorrMatchOutput",
    "CorrMatchPreTrainedModel",
    "CorrelationHead",
    "DecoderOutput",
    "DeepLabV3PlusDecoder",
    "correlation_rows",
    "pixel_propagation",
    "resize",
]

AutoConfig.register("corrmatch", CorrMatchConfig, exist_ok=True)
AutoModelForSemanticSegmentation.register(CorrMatchConfig, CorrMatchForSegmentation, exist_ok=True)
AutoImageProcessor.register(
    CorrMatchConfig, image_processor_classes={"torchvision": CorrMatchImageProcessor}, exist_ok=True
)
# There is no video processor. Unless this is registered, `pipeline` mistakes the image processor's code in a repository
# for one, and asks at the keyboard whether to run it.
AutoVideoProcessor.register(CorrMatchConfig, None, exist_ok=True)
# save_pretrained and push_to_hub then copy this folder's files next to the weights.
CorrMatchConfig.register_for_auto_class()
CorrMatchForSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
CorrMatchImageProcessor.register_for_auto_class("AutoImageProcessor")
