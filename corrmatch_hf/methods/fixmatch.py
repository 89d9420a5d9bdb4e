"""FixMatch for segmentation: confident predictions of the weak view are the labels of the strong one.

With f the network (or, with `teacher ema`, its moving average g), three passes make one step:

    1. u_m, the CutMix partner's weak view, in evaluation mode without gradient: Y_m, c_m
    2. [x; u_w], labelled images and weak views: Y, c
    3. u_s, the strong views, partner's box pasted in; inside the box Y, c and validity V are the partner's

    L_u = sum over pixels of CE(f(u_s), Y) [c >= tau] V / sum V         the denominator counts ALL valid pixels
    L   = (L_x + L_u) / 2

With a teacher, g gives Y, c from u_w and u_m in evaluation mode, and f sees x and u_s in passes of their own. The
published code has [x; u_s] in one pass, but its network has no BatchNorm: ours would take its statistics over plain and
strongly augmented images together, which costs ten points of mean IoU on the built-in synthetic set.

With --inter_pixel_loss, its weighted term is added to L_u (see `inter_pixel.py`).

The student as its own teacher is the baseline of UniMatch's first paper, the moving average that of its second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..data.batch import SemiBatch
from ..options import option
from .base import Logs, Method, MethodOptions, loss_logs
from .citations import Citation
from .inter_pixel import inter_pixel_terms
from .pseudo_labels import (
    LOWER_THRESHOLD,
    ConfidenceOptions,
    PseudoLabels,
    partner_pseudo_labels,
    teacher_pseudo_labels,
)
from .teacher import Teacher


@dataclass
class FixMatchOptions(ConfidenceOptions):
    """The threshold, and the network that gives the pseudo-labels."""

    teacher: Literal["none", "ema"] = option(
        "none", "Source of the pseudo-labels: the student itself, or its moving average (EMA)."
    )
    teacher_decay: float = option(
        0.996,
        "teacher ema: share of the average kept by a step.",
        at_least=0,
        below=1,
        only_with="teacher=ema",
    )


class FixMatch(Method):
    """FixMatch's training step; the head of this file has the equations."""

    name = "fixmatch"
    advice_for_starving = LOWER_THRESHOLD
    Options: ClassVar[type[MethodOptions]] = FixMatchOptions
    options: FixMatchOptions
    citation = Citation(
        "[FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence]"
        "(https://arxiv.org/abs/2001.07685) (NeurIPS 2020), as UniMatch's papers apply it to segmentation",
        """\
@inproceedings{sohn2020fixmatch,
  title={FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence},
  author={Sohn, Kihyuk and Berthelot, David and Li, Chun-Liang and others},
  booktitle={NeurIPS},
  year={2020}
}""",
    )

    def __init__(self, model: nn.Module, options: FixMatchOptions | None = None, seed: int = 0):
        super().__init__(model, options, seed)
        if self.options.teacher == "ema":
            self.teacher = Teacher(model, self.options.teacher_decay)

    def forward(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        if self.teacher is None:
            partner = partner_pseudo_labels(self.model, batch)
            logits = self.model(torch.cat([batch.image, batch.weak])).logits  # (B_l + B_u, K, H, W)
            x = logits[: len(batch.image)]
            weak = PseudoLabels.of(logits[len(batch.image) :], batch.valid)
        else:
            weak, partner = teacher_pseudo_labels(self.teacher.network, batch)
            x = self.model(batch.image).logits
        strong = self.model(batch.strong[:, 0]).logits
        return self.losses(x, strong, weak, partner, batch)

    def losses(
        self, x: Tensor, strong: Tensor, weak: PseudoLabels, partner: PseudoLabels, batch: SemiBatch
    ) -> tuple[Tensor, Logs]:
        """The total and all terms, from logits (B_l, K, H, W) of x and (B_u, K, H, W) of the strong views."""
        target = weak.mixed(partner, batch.box[:, 0])
        kept = target.confident(self.options.confidence_threshold)
        weak.observe(self, self.options.confidence_threshold, batch)
        terms = {"x": self.labeled_loss(x, batch.label), "s": target.cross_entropy(strong, kept)}
        terms |= inter_pixel_terms(self, [(strong, target, kept)], batch.step)
        total = (terms["x"] + (terms["s"] + terms.get("inter_pixel", 0))) / 2
        return total, loss_logs(terms) | {"kept_ratio": target.ratio(kept)}
