"""IPixMatch as we read it: FixMatch that compares relations between pixels, too.

No code of IPixMatch (arXiv 2404.18891) is public, and its formula could not be verified: this is our reading of its
abstract, and no reproduction of its numbers is claimed. The same loss can be added to the other teacher-student methods
with --inter_pixel_loss (see `inter_pixel.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from .base import choice
from .fixmatch import FixMatch, FixMatchOptions


@dataclass
class IPixMatchOptions(FixMatchOptions):
    """Those of FixMatch, with the inter-pixel loss on."""

    inter_pixel_loss: str = choice(
        "kl",
        ("kl", "correlation", "pairwise"),
        "How relations between confident pixels are compared: each class's distribution over the pixels, its "
        "correlation, or similarities of pixel pairs.",
    )

    def problems(self) -> list[str]:
        found = super().problems()
        if self.inter_pixel_weight == 0:
            found.append(
                "--inter_pixel_weight is 0, which makes ipixmatch fixmatch: give a weight, or the latter"
            )
        return found


class IPixMatch(FixMatch):
    """FixMatch with the inter-pixel loss."""

    name = "ipixmatch"
    Options = IPixMatchOptions
    options: IPixMatchOptions
