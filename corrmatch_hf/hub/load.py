"""Loading a saved or published model for prediction."""

from __future__ import annotations

from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    BaseImageProcessor,
    PreTrainedModel,
)

from ..errors import InputError
from ..model import register

register()  # CorrMatch with the Auto classes


def load_saved(name: str) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """The model, in eval mode, and the image processor of a folder or a Hub repository.

    CorrMatch models run this package's code, never code of the repository. Other semantic segmentation models of
    transformers can be loaded, too.

    Raises:
        InputError: the folder or repository does not exist or contains no such model.
    """
    try:
        model = AutoModelForSemanticSegmentation.from_pretrained(name, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # corrupt or malicious files make transformers raise any kind of error
        reason = " ".join(str(error).split()).rstrip(".")
        reason = reason if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {reason}"
        raise InputError(
            f"No segmentation model could be loaded from {name!r}: give the output folder of a training, with "
            f"config.json and model.safetensors, or the id of a model on the Hub. ({reason}.)"
        ) from error
    return model.eval(), processor
