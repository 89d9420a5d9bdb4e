"""torch.compile for the networks of any method."""

from __future__ import annotations

from torch import nn

from ..model import CorrMatchForSegmentation


def compile_networks(method: nn.Module, **options) -> None:
    """Compile encoder, decoder and correlation head of every network of a method, in place.

    Those are what a method calls, one after the other, with its own business between them; `forward` of the model is
    called in evaluation and for the partners' labels, and is made of the same parts. Names of weights stay as they are.
    Numbers of images and their sizes differ from call to call, so shapes are made dynamic once a second one is seen.

    Args:
        method: a `Method`; a second network and a teacher are compiled as well.
        options: of `torch.compile`.
    """
    for network in method.modules():
        if isinstance(network, CorrMatchForSegmentation):
            for part in (network.encoder, network.decoder, network.correlation):
                if part is not None:
                    part.compile(**options)
