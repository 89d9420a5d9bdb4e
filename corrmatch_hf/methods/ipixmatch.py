"""IPixMatch as we read it: FixMatch that also compares relations between pixels.

    L = (L_x + L_u + w L_ip) / 2        L_x, L_u as in `fixmatch.py`, L_ip in `ops/inter_pixel.py`

No code of IPixMatch (arXiv 2404.18891) is public, and its formula could not be verified: this is our reading of its
abstract, and no reproduction of its numbers is claimed. The same loss can be added to the other teacher-student methods
with --inter_pixel_loss (see `inter_pixel.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..options import option
from .citations import Citation
from .fixmatch import FixMatch, FixMatchOptions


@dataclass
class IPixMatchOptions(FixMatchOptions):
    """FixMatch's options, with the inter-pixel loss on."""

    inter_pixel_loss: Literal["kl", "correlation", "pairwise"] = option(
        "kl",
        "How relations between confident pixels are compared: each class's distribution over the pixels, its "
        "correlation, or similarities of pixel pairs.",
        group="Method",
    )

    def problems(self) -> list[str]:
        found = super().problems()
        if self.inter_pixel_weight == 0:
            found.append(
                "--inter_pixel_weight is 0, which turns ipixmatch into fixmatch; give a weight above 0 or use "
                "--method fixmatch"
            )
        return found


class IPixMatch(FixMatch):
    """FixMatch with the inter-pixel loss."""

    name = "ipixmatch"
    Options = IPixMatchOptions
    options: IPixMatchOptions
    citation = Citation(
        "The idea is that of [IPixMatch](https://arxiv.org/abs/2404.18891), read from its abstract; this is no "
        "reproduction of it",
        """\
@article{wu2024ipixmatch,
  title={IPixMatch: Boost Semi-supervised Semantic Segmentation with Inter-Pixel Relation},
  author={Wu, Kebin and Li, Wenbin and Xiao, Xiaofei},
  journal={arXiv:2404.18891},
  year={2024}
}""",
    )
