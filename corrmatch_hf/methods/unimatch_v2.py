"""UniMatch V2 (TPAMI 2025): two strong views with complementary features, taught by a moving average.

With f the network and g its moving average, in evaluation mode and without gradient, passes of one step:

    1. g on u_w, weak views: Y, c; and on u_m, those of the CutMix partners, where they are not among u_w: Y_m, c_m
    2. f on x, labelled images
    3. f on [u_s1; u_s2], two strong views with independent boxes of the partner pasted in; between encoder and decoder
       every channel is dropped in one view and doubled in the other, except in a random half of the pairs

    s_i = sum of CE(f(u_si), Y_i) [c_i >= tau] V_i / sum V_i            inside box i: Y, c, V of the partner
    L   = ( L_x + (s_1 + s_2) / 2 ) / 2

After every step g <- a g + (1 - a) f with a = min(1 - 1 / (t + 1), 0.996), BatchNorm's statistics included. g is what
is evaluated and saved.

Designed for a plain vision transformer and `--cutmix_partner reversed`, but any encoder and partner works. With
--inter_pixel_loss, the mean of its weighted terms on both strong views is added to the unlabelled loss
(`inter_pixel.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..data.batch import SemiBatch
from ..options import option
from .base import Logs, Method, loss_logs
from .citations import Citation
from .feature_perturbation import with_complementary_channels
from .pseudo_labels import (
    LOWER_THRESHOLD,
    ConfidenceOptions,
    PseudoLabels,
    strong_view_terms,
    teacher_pseudo_labels,
)
from .teacher import Teacher


@dataclass
class UniMatchV2Options(ConfidenceOptions):
    """The threshold, the teacher's decay and the feature perturbation."""

    teacher_decay: float = option(
        0.996, "Share of the moving average, the teacher, kept by a step.", at_least=0, below=1
    )
    feature_perturbation: Literal["none", "complementary"] = option(
        "complementary",
        "Drop every channel of the features in one of the two strong views and double it in the other.",
    )


class UniMatchV2(Method):
    """UniMatch V2's training step; the head of this file has the equations."""

    name = "unimatch_v2"
    advice_for_starving = LOWER_THRESHOLD
    Options = UniMatchV2Options
    options: UniMatchV2Options
    citation = Citation(
        "[UniMatch V2: Pushing the Limit of Semi-Supervised Semantic Segmentation]"
        "(https://arxiv.org/abs/2410.10777) (TPAMI 2025)",
        """\
@article{yang2025unimatchv2,
  title={UniMatch V2: Pushing the Limit of Semi-Supervised Semantic Segmentation},
  author={Yang, Lihe and Zhao, Zhen and Zhao, Hengshuang},
  journal={TPAMI},
  year={2025}
}""",
    )
    strong_views = 2
    teacher: Teacher

    def __init__(self, model: nn.Module, options: UniMatchV2Options | None = None, seed: int = 0):
        super().__init__(model, options, seed)
        self.teacher = Teacher(model, self.options.teacher_decay)

    def forward(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        weak, partner = teacher_pseudo_labels(self.teacher.network, batch)
        x = self.model(batch.image).logits

        features = self.model.encode(torch.cat([batch.strong[:, 0], batch.strong[:, 1]]))
        if self.options.feature_perturbation == "complementary":
            features = with_complementary_channels(features, seed=self.seed, step=batch.step, whole=True)
        logits = self.model.upsample(self.model.decode(features).logits, batch.weak.shape[-2:])
        return self.losses(x, logits.chunk(2), weak, partner, batch)

    def losses(
        self, x: Tensor, strong: Sequence[Tensor], weak: PseudoLabels, partner: PseudoLabels, batch: SemiBatch
    ) -> tuple[Tensor, Logs]:
        """The total and all terms, from logits (B_l, K, H, W) of x and (B_u, K, H, W) of each strong view."""
        terms = {
            "x": self.labeled_loss(x, batch.label),
            **strong_view_terms(self, strong, weak, partner, batch),
        }
        unlabeled = (terms["s1"] + terms["s2"]) / 2 + terms.get("inter_pixel", 0)
        kept = weak.confident(self.options.confidence_threshold)
        weak.observe(self, self.options.confidence_threshold, batch)
        return (terms["x"] + unlabeled) / 2, loss_logs(terms) | {"kept_ratio": weak.ratio(kept)}
