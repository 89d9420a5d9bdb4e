"""A saved or published model, back again."""

from __future__ import annotations

from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    BaseImageProcessor,
    PreTrainedModel,
)

import corrmatch_hf.model  # noqa: F401  registers CorrMatch with the Auto classes
from corrmatch_hf.errors import InputError


def load_saved(name: str) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """The model, in eval mode, and the image processor of a folder or a Hub repository.

    CorrMatch runs this package's code, never code of the repository, whatever its config.json asks for. Other semantic
    segmentation models of transformers load too.

    Raises:
        InputError: nothing there, or what is there is no such model.
    """
    try:
        model = AutoModelForSemanticSegmentation.from_pretrained(name, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # of a broken or hostile file transformers raises anything
        reason = " ".join(str(error).split()).rstrip(".")
        reason = reason if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {reason}"
        raise InputError(
            f"No segmentation model could be loaded from {name!r}: give a folder that training wrote, with "
            f"config.json and model.safetensors, or the id of a model on the Hub. ({reason}.)"
        ) from error
    return model.eval(), processor
