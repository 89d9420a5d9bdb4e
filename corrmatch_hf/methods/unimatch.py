"""UniMatch (CVPR 2023): two strong views and a perturbation of features, all taught by the weak view.

Passes of one step:

    1. u_m, the CutMix partner's weak view, in evaluation mode without gradient: Y_m, c_m
    2. [x; u_w], and the same features once more with dropped channels, decoded together: Y, c and the perturbed view
    3. [u_s1; u_s2], two strong views with independent boxes of the partner pasted in

    s_i = sum of CE(f(u_si), Y_i) [c_i >= tau] V_i / sum V_i            inside box i: Y, c, V of the partner
    fp  = sum of CE(f_fp(u_w), Y) [c >= tau] V / sum V                  no CutMix here
    L   = ( L_x + s_1 / 4 + s_2 / 4 + fp / 2 ) / 2

With --inter_pixel_loss, half the mean of its weighted terms on both strong views is added (see `inter_pixel.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.batch import SemiBatch
from ..options import option
from .base import Logs, Method, loss_logs
from .citations import Citation
from .feature_perturbation import with_dropped_channels
from .pseudo_labels import (
    LOWER_THRESHOLD,
    ConfidenceOptions,
    PseudoLabels,
    partner_pseudo_labels,
    strong_view_terms,
)


@dataclass
class UniMatchOptions(ConfidenceOptions):
    """The threshold and the feature perturbation."""

    feature_dropout: float = option(
        0.5, "Share of channels dropped by the feature perturbation.", at_least=0, below=1
    )


@dataclass
class Predictions:
    """Logits (N, K, H, W) of the step's views, with gradient."""

    x: Tensor
    perturbed: Tensor
    strong: tuple[Tensor, Tensor]


class UniMatch(Method):
    """UniMatch's training step; the head of this file has the equations."""

    name = "unimatch"
    advice_for_starving = LOWER_THRESHOLD
    Options = UniMatchOptions
    options: UniMatchOptions
    citation = Citation(
        "[Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation]"
        "(https://arxiv.org/abs/2208.09910) (UniMatch, CVPR 2023)",
        """\
@inproceedings{yang2023unimatch,
  title={Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation},
  author={Yang, Lihe and Qi, Lei and Feng, Litong and Zhang, Wayne and Shi, Yinghuan},
  booktitle={CVPR},
  year={2023}
}""",
    )
    strong_views = 2

    def forward(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        labeled, unlabeled = len(batch.image), len(batch.weak)
        partner = partner_pseudo_labels(self.model, batch)

        features = self.model.encode(torch.cat([batch.image, batch.weak]))
        both = with_dropped_channels(
            features, self.options.feature_dropout, (labeled, unlabeled), seed=self.seed, step=batch.step
        )
        # (2 (B_l + B_u), K, H, W): [x; u_w], then both perturbed. The perturbed x is decoded for BatchNorm alone.
        logits = self.model.upsample(self.model.decode(both).logits, batch.weak.shape[-2:])
        x, weak, _, perturbed = logits.split([labeled, unlabeled, labeled, unlabeled])

        strong = self.model(torch.cat([batch.strong[:, 0], batch.strong[:, 1]])).logits.chunk(2)
        return self.losses(
            Predictions(x, perturbed, strong), PseudoLabels.of(weak, batch.valid), partner, batch
        )

    def losses(
        self, p: Predictions, weak: PseudoLabels, partner: PseudoLabels, batch: SemiBatch
    ) -> tuple[Tensor, Logs]:
        """The total and all terms."""
        kept = weak.confident(self.options.confidence_threshold)
        weak.observe(self, self.options.confidence_threshold, batch)
        terms = {
            "x": self.labeled_loss(p.x, batch.label),
            "fp": weak.cross_entropy(p.perturbed, kept),
            **strong_view_terms(self, p.strong, weak, partner, batch),
        }
        total = (terms["x"] + terms["s1"] / 4 + terms["s2"] / 4 + terms["fp"] / 2) / 2
        total = total + terms.get("inter_pixel", 0) / 2
        return total, loss_logs(terms) | {"kept_ratio": weak.ratio(kept)}
