"""UniMatch (CVPR 2023): two strong views and a perturbation of features, all taught by the weak view.

Passes of one step:

    1. u_m, the CutMix partner's weak view, in evaluation mode without gradient: Y_m, c_m
    2. [x; u_w], and the same features once more with dropped channels, decoded together: Y, c and the perturbed view
    3. [u_s1; u_s2], two strong views with independent boxes of the partner pasted in

    s_i = sum of CE(f(u_si), Y_i) [c_i >= tau] V_i / sum V_i            inside box i: Y, c, V of the partner
    fp  = sum of CE(f_fp(u_w), Y) [c >= tau] V / sum V                  no CutMix here
    L   = ( L_x + s_1 / 4 + s_2 / 4 + fp / 2 ) / 2

With --inter_pixel_loss, the mean of its weighted terms on both strong views joins the sum (see `inter_pixel.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..data.batch import SemiBatch
from .base import BelowOne, Logs, Method
from .feature_perturbation import with_dropped_channels
from .inter_pixel import inter_pixel_term
from .pseudo_labels import (
    ConfidenceOptions,
    PseudoLabels,
    confident_cross_entropy,
    kept_ratio,
    partner_logits,
)


@dataclass
class UniMatchOptions(ConfidenceOptions):
    """The threshold and the feature perturbation."""

    feature_dropout: BelowOne = field(
        default=0.5, metadata={"help": "Share of channels dropped by the feature perturbation."}
    )


class UniMatch(Method):
    """UniMatch's training step. See the file's head for the equations."""

    name = "unimatch"
    Options = UniMatchOptions
    options: UniMatchOptions
    strong_views = 2

    def forward(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        size = batch.weak.shape[-2:]
        labeled, unlabeled = len(batch.image), len(batch.weak)
        partner, partner_valid = partner_logits(self.model, batch)

        features = self.model.encode(torch.cat([batch.image, batch.weak]))
        both = with_dropped_channels(
            features, self.options.feature_dropout, (labeled, unlabeled), seed=self.seed, step=batch.step
        )
        logits = self.model.upsample(self.model.decode(both).logits, size)
        x, weak = logits[:labeled], logits[labeled : labeled + unlabeled]
        perturbed = logits[2 * labeled + unlabeled :]

        strong = self.model(torch.cat([batch.strong[:, 0], batch.strong[:, 1]])).logits.chunk(2)
        return self.losses(
            x,
            weak,
            perturbed,
            strong,
            partner,
            batch.label,
            batch.valid,
            partner_valid,
            batch.box,
            step=batch.step,
        )

    def losses(
        self,
        x: Tensor,
        weak: Tensor,
        perturbed: Tensor,
        strong: tuple[Tensor, Tensor],
        partner: Tensor,
        label: Tensor,
        valid: Tensor,
        partner_valid: Tensor,
        boxes: Tensor,
        step: int = 0,
    ) -> tuple[Tensor, Logs]:
        """All terms and their total: logits (N, K, H, W), labels and masks (N, H, W), boxes (N, 2, H, W)."""
        threshold = self.options.confidence_threshold
        target, other = PseudoLabels.of(weak), PseudoLabels.of(partner)
        terms = {
            "x": self.labeled_loss(x, label),
            "fp": confident_cross_entropy(perturbed, target, valid, threshold),
        }
        inter = []
        for i, view in enumerate(strong):
            box = boxes[:, i]
            mixed, mixed_valid = target.pasted(other, box), torch.where(box, partner_valid, valid)
            terms[f"s{i + 1}"] = confident_cross_entropy(view, mixed, mixed_valid, threshold)
            if self.options.inter_pixel_loss != "none":  # off by default: then nothing is pasted for it
                kept = (mixed.confidence >= threshold) & mixed_valid
                teacher = torch.where(box.unsqueeze(1), partner, weak.detach().float())
                seed = self.seed + i  # another draw of pixels for each view
                inter.append(inter_pixel_term(self.options, view, teacher, kept, seed=seed, step=step))
        total = (terms["x"] + terms["s1"] / 4 + terms["s2"] / 4 + terms["fp"] / 2) / 2
        if inter:
            terms["inter_pixel"] = sum(inter) / len(inter)
            total = total + terms["inter_pixel"] / 2
        logs = {f"loss/{name}": term.detach() for name, term in terms.items()}
        return total, logs | {"kept_ratio": kept_ratio(target, valid, threshold)}
