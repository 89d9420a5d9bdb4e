"""Parts of a method's networks that a run leaves as they are."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..model.encoder_corrmatch import CorrMatchEncoder
from .config import TrainingConfig


def freeze(method: nn.Module, config: TrainingConfig) -> None:
    """Take what `config` freezes out of training: with `freeze_encoder` the encoders of all networks.

    Images need no gradient, so nothing of an encoder without parameters to train is kept for the backward pass.
    """
    if config.freeze_encoder:
        for encoder in _encoders(method):
            encoder.requires_grad_(False)


def keep_frozen(method: nn.Module, config: TrainingConfig) -> None:
    """Put what `config` freezes into evaluation mode; to be called after `method.train()`."""
    if config.freeze_encoder:  # its norms, and its random drops of paths, too
        for encoder in _encoders(method):
            encoder.eval()
    if config.freeze_batch_norm:
        for module in method.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _encoders(method: nn.Module) -> Iterator[CorrMatchEncoder]:
    """Those of a second network and of a teacher as well."""
    return (module for module in method.modules() if isinstance(module, CorrMatchEncoder))
