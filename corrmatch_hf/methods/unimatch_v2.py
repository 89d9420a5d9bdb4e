"""UniMatch V2 (TPAMI 2025): two strong views with complementary features, taught by a moving average.

With f the network and g its moving average, in evaluation mode and without gradient, passes of one step:

    1. g on u_w, weak views: Y, c; and on u_m, those of the CutMix partners, where they are not among u_w: Y_m, c_m
    2. f on x, labelled images
    3. f on [u_s1; u_s2], two strong views with independent boxes of the partner pasted in; between encoder and decoder
       every channel is dropped in one view and doubled in the other, but for a random half of the pairs

    s_i = sum of CE(f(u_si), Y_i) [c_i >= tau] V_i / sum V_i            inside box i: Y, c, V of the partner
    L   = ( L_x + (s_1 + s_2) / 2 ) / 2

After every step g <- a g + (1 - a) f with a = min(1 - 1 / (t + 1), 0.996), BatchNorm's statistics, too. g is what is
evaluated and saved.

Made for a plain vision transformer and `--cutmix_partner reversed`, but any encoder and partner will do. With
--inter_pixel_loss, the mean of its weighted terms on both strong views joins the unlabelled loss (`inter_pixel.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..data.batch import SemiBatch
from .base import BelowOne, Logs, Method, choice
from .feature_perturbation import with_complementary_channels
from .inter_pixel import inter_pixel_term
from .pseudo_labels import ConfidenceOptions, PseudoLabels, confident_cross_entropy, kept_ratio, taught_logits
from .teacher import Teacher


@dataclass
class UniMatchV2Options(ConfidenceOptions):
    """The threshold, the teacher's inertia and the feature perturbation."""

    teacher_decay: BelowOne = field(
        default=0.996, metadata={"help": "Share of the moving average, the teacher, kept by a step."}
    )
    feature_perturbation: str = choice(
        "complementary",
        ("none", "complementary"),
        "Drop every channel of the features in one of the two strong views and double it in the other.",
    )


class UniMatchV2(Method):
    """UniMatch V2's training step. See the file's head for the equations."""

    name = "unimatch_v2"
    Options = UniMatchV2Options
    options: UniMatchV2Options
    strong_views = 2

    def __init__(self, model: nn.Module, options: UniMatchV2Options | None = None, seed: int = 0):
        super().__init__(model, options, seed)
        self.teacher = Teacher(model, self.options.teacher_decay)

    @property
    def segmentation_model(self) -> nn.Module:
        """The teacher."""
        return self.teacher.network

    def forward(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        weak, partner, partner_valid = taught_logits(self.teacher.network, batch)
        x = self.model(batch.image).logits

        features = self.model.encode(torch.cat([batch.strong[:, 0], batch.strong[:, 1]]))
        if self.options.feature_perturbation == "complementary":
            features = with_complementary_channels(features, seed=self.seed, step=batch.step, whole=True)
        logits = self.model.upsample(self.model.decode(features).logits, batch.weak.shape[-2:])
        return self.losses(
            x,
            weak,
            logits.chunk(2),
            partner,
            batch.label,
            batch.valid,
            partner_valid,
            batch.box,
            step=batch.step,
        )

    def after_step(self) -> None:
        self.teacher.update(self.model)

    def losses(
        self,
        x: Tensor,
        weak: Tensor,
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
        terms = {"x": self.labeled_loss(x, label)}
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
        unlabeled = (terms["s1"] + terms["s2"]) / 2
        if inter:
            terms["inter_pixel"] = sum(inter) / len(inter)
            unlabeled = unlabeled + terms["inter_pixel"]
        logs = {f"loss/{name}": term.detach() for name, term in terms.items()}
        return (terms["x"] + unlabeled) / 2, logs | {"kept_ratio": kept_ratio(target, valid, threshold)}
