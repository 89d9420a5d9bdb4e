"""FixMatch for segmentation: confident predictions of the weak view are the labels of the strong one.

With f the network (or, as `teacher ema`, the moving average g of it), three passes make one step:

    1. u_m, the CutMix partner's weak view, in evaluation mode without gradient: Y_m, c_m
    2. [x; u_w], labelled images and weak views: Y, c
    3. u_s, the strong views, partner's box pasted in; inside the box Y, c and validity V are the partner's

With a teacher, g gives Y, c from u_w and u_m in evaluation mode, and f sees x and u_s in passes of their own. The
published code has [x; u_s] in one, but its network has no BatchNorm: ours would take its statistics over plain and
strongly augmented images together, which costs ten points of mean IoU on the built-in synthetic set.

    L_u = sum over pixels of CE(f(u_s), Y) [c >= tau] V / sum V         the denominator counts ALL valid pixels
    L   = (L_x + L_u) / 2

With --inter_pixel_loss, its weighted term joins L_u (see `inter_pixel.py`).

The student as its own teacher is the baseline of UniMatch's first paper, the moving average that of its second.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..data.batch import SemiBatch
from .base import BelowOne, Logs, Method, choice
from .inter_pixel import inter_pixel_term
from .pseudo_labels import (
    ConfidenceOptions,
    PseudoLabels,
    confident_cross_entropy,
    kept_ratio,
    partner_logits,
    taught_logits,
)
from .teacher import Teacher


@dataclass
class FixMatchOptions(ConfidenceOptions):
    """The threshold, and who teaches."""

    teacher: str = choice(
        "none", ("none", "ema"), "Who gives the pseudo-labels: the student itself, or its moving average."
    )
    teacher_decay: BelowOne = field(
        default=0.996, metadata={"help": "teacher ema: share of the average kept by a step."}
    )


class FixMatch(Method):
    """FixMatch's training step. See the file's head for the equations."""

    name = "fixmatch"
    Options = FixMatchOptions
    options: FixMatchOptions

    def __init__(self, model: nn.Module, options: FixMatchOptions | None = None, seed: int = 0):
        super().__init__(model, options, seed)
        self.teacher = Teacher(model, self.options.teacher_decay) if self.options.teacher == "ema" else None

    @property
    def segmentation_model(self) -> nn.Module:
        """The teacher where there is one."""
        return self.model if self.teacher is None else self.teacher.network

    def forward(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        box = batch.box[:, 0]
        labeled = len(batch.image)
        if self.teacher is None:
            partner, partner_valid = partner_logits(self.model, batch)
            logits = self.model(torch.cat([batch.image, batch.weak])).logits
            x, weak = logits[:labeled], logits[labeled:]
        else:
            weak, partner, partner_valid = taught_logits(self.teacher.network, batch)
            x = self.model(batch.image).logits
        strong = self.model(batch.strong[:, 0]).logits
        return self.losses(
            x, weak, strong, partner, batch.label, batch.valid, partner_valid, box, step=batch.step
        )

    def after_step(self) -> None:
        if self.teacher is not None:
            self.teacher.update(self.model)

    def losses(
        self,
        x: Tensor,
        weak: Tensor,
        strong: Tensor,
        partner: Tensor,
        label: Tensor,
        valid: Tensor,
        partner_valid: Tensor,
        box: Tensor,
        step: int = 0,
    ) -> tuple[Tensor, Logs]:
        """All terms and their total, from logits (N, K, H, W), labels (N, H, W) and masks (N, H, W)."""
        target = PseudoLabels.of(weak).pasted(PseudoLabels.of(partner), box)
        mixed_valid = torch.where(box, partner_valid, valid)
        labeled = self.labeled_loss(x, label)
        unlabeled = confident_cross_entropy(strong, target, mixed_valid, self.options.confidence_threshold)
        logs = {
            "loss/x": labeled.detach(),
            "loss/s": unlabeled.detach(),
            "kept_ratio": kept_ratio(target, mixed_valid, self.options.confidence_threshold),
        }
        if self.options.inter_pixel_loss != "none":  # off by default: then nothing is pasted for it
            kept = (target.confidence >= self.options.confidence_threshold) & mixed_valid
            teacher = torch.where(box.unsqueeze(1), partner, weak.detach().float())
            inter = inter_pixel_term(self.options, strong, teacher, kept, seed=self.seed, step=step)
            unlabeled = unlabeled + inter
            logs["loss/inter_pixel"] = inter.detach()
        return (labeled + unlabeled) / 2, logs
