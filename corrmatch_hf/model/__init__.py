"""The network. The files *_corrmatch.py are saved with the weights and load without the package.

Its parts are imported when they are first used: a method needs tensor functions, but neither transformers nor timm. The
first use of a configuration, model or image processor registers them with transformers' Auto classes.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from ..on_demand import import_name

if TYPE_CHECKING:
    from .configuration_corrmatch import CorrMatchConfig as CorrMatchConfig
    from .correlation_corrmatch import CorrelationHead as CorrelationHead
    from .correlation_corrmatch import correlation_rows as correlation_rows
    from .correlation_corrmatch import pixel_propagation as pixel_propagation
    from .decoders_corrmatch import CorrMatchFeatures as CorrMatchFeatures
    from .decoders_corrmatch import DecoderOutput as DecoderOutput
    from .decoders_corrmatch import DeepLabV3PlusDecoder as DeepLabV3PlusDecoder
    from .decoders_corrmatch import resize as resize
    from .encoder_corrmatch import CorrMatchEncoder as CorrMatchEncoder
    from .image_processing_corrmatch import CorrMatchImageProcessor as CorrMatchImageProcessor
    from .modeling_corrmatch import CorrMatchForSegmentation as CorrMatchForSegmentation
    from .modeling_corrmatch import CorrMatchOutput as CorrMatchOutput
    from .modeling_corrmatch import CorrMatchPreTrainedModel as CorrMatchPreTrainedModel

_REGISTERED = {
    "CorrMatchConfig": "configuration_corrmatch",
    "CorrMatchForSegmentation": "modeling_corrmatch",
    "CorrMatchImageProcessor": "image_processing_corrmatch",
    "CorrMatchOutput": "modeling_corrmatch",
    "CorrMatchPreTrainedModel": "modeling_corrmatch",
}
_WHERE = _REGISTERED | {
    "CorrMatchEncoder": "encoder_corrmatch",
    "CorrMatchFeatures": "decoders_corrmatch",
    "CorrelationHead": "correlation_corrmatch",
    "DecoderOutput": "decoders_corrmatch",
    "DeepLabV3PlusDecoder": "decoders_corrmatch",
    "correlation_rows": "correlation_corrmatch",
    "pixel_propagation": "correlation_corrmatch",
    "resize": "decoders_corrmatch",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _REGISTERED:
        register()
    return import_name(__name__, name, _WHERE)


@functools.cache
def register() -> None:
    """Make the model known to transformers' Auto classes, and its code part of what `save_pretrained` writes."""
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForSemanticSegmentation,
        AutoVideoProcessor,
    )

    from .configuration_corrmatch import CorrMatchConfig
    from .image_processing_corrmatch import CorrMatchImageProcessor
    from .modeling_corrmatch import CorrMatchForSegmentation
    from .pipeline import register_pipeline

    AutoConfig.register("corrmatch", CorrMatchConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(CorrMatchConfig, CorrMatchForSegmentation, exist_ok=True)
    AutoImageProcessor.register(
        CorrMatchConfig, image_processor_classes={"torchvision": CorrMatchImageProcessor}, exist_ok=True
    )
    # There is no video processor. Unless this is registered, `pipeline` mistakes the image processor's code in a
    # repository for one, and asks at the keyboard whether to run it.
    AutoVideoProcessor.register(CorrMatchConfig, None, exist_ok=True)
    register_pipeline()
    # save_pretrained and push_to_hub then copy this folder's files next to the weights.
    CorrMatchConfig.register_for_auto_class()
    CorrMatchForSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
    CorrMatchImageProcessor.register_for_auto_class("AutoImageProcessor")
