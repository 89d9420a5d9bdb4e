"""The network: everything that travels with the weights, and its registration with the Auto classes."""

from transformers import AutoConfig, AutoModelForSemanticSegmentation

from .configuration_corrmatch import CorrMatchConfig
from .correlation_corrmatch import CorrelationHead, correlation_shapes, pixel_propagation
from .decoders_corrmatch import DeepLabV3PlusDecoder, resize
from .encoder_corrmatch import CorrMatchEncoder
from .modeling_corrmatch import (
    CorrMatchFeatures,
    CorrMatchForSegmentation,
    CorrMatchOutput,
    CorrMatchPreTrainedModel,
    DecoderOutput,
)

AutoConfig.register("corrmatch", CorrMatchConfig, exist_ok=True)
AutoModelForSemanticSegmentation.register(CorrMatchConfig, CorrMatchForSegmentation, exist_ok=True)
CorrMatchConfig.register_for_auto_class()
CorrMatchForSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
