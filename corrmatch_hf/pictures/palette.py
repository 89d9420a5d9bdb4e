"""The colours of the classes, which the model's files bring with them, for pictures of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import InputError
from ..model import palette_corrmatch

IGNORED = palette_corrmatch.IGNORED


def class_palette(
    id2label: Mapping[int, str], colors: Sequence[Sequence[int]] | np.ndarray | None = None
) -> np.ndarray:
    """uint8 (K, 3) RGB colours: `colors` of the dataset if given, else fixed ones that are easy to distinguish.

    A model has the colours of its dataset in `config.label_colors`.

    A class named "background" is black. The fixed colours of K classes are the first K of those of K + 1.

    Raises:
        InputError: `colors` is not (K, 3) with values 0..255.
    """
    try:
        return palette_corrmatch.class_palette(id2label, colors)
    except ValueError as error:
        raise InputError(str(error)) from error
