"""Mean Teacher for segmentation: the student agrees with its own moving average, everywhere and softly.

After every step the teacher's parameters become g <- 0.99 g + 0.01 f. It stays in training mode and keeps
BatchNorm statistics of its own, as in the baseline of the CPS paper. Student and teacher see the same weak views, x and
u in passes of their own:

    L_c = mean over pixels and classes of ( softmax f([x; u]) - softmax g([x; u]) )^2
    L   = L_x + 100 L_c

No threshold, no ramp-up, no strong augmentation. With --inter_pixel_loss, its weighted term joins the sum, over all
valid pixels of u (see `inter_pixel.py`). The student is what is evaluated and saved.

Made for a pretrained encoder and a long schedule: what an untrained network says of unlabelled images is what its
average holds on to, so from scratch and in few steps it stays behind the supervised baseline.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..data.batch import SemiBatch
from .base import BelowOne, Logs, Method, Weight
from .inter_pixel import InterPixelOptions, inter_pixel_term
from .teacher import Teacher


@dataclass
class MeanTeacherOptions(InterPixelOptions):
    """The teacher's inertia, and the weight of agreeing with it."""

    mean_teacher_decay: BelowOne = field(
        default=0.99, metadata={"help": "Share of the teacher's parameters kept by a step."}
    )
    consistency_weight: Weight = field(
        default=100.0, metadata={"help": "Weight of the squared difference of probabilities."}
    )


class MeanTeacher(Method):
    """Mean Teacher's training step. See the file's head for the equations."""

    name = "mean_teacher"
    Options = MeanTeacherOptions
    options: MeanTeacherOptions
    strong_views = 0

    def __init__(self, model: nn.Module, options: MeanTeacherOptions | None = None, seed: int = 0):
        super().__init__(model, options, seed)
        self.teacher = Teacher(model, self.options.mean_teacher_decay, buffers=False, warm_up=False)

    def forward(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        views = batch.image, batch.weak  # each with batch statistics of its own
        with torch.no_grad():
            teacher = torch.cat([self.teacher.network(view).logits for view in views])
        # Weights that autocast cast without gradient must not be reused with one (torch before 2.10 would).
        torch.clear_autocast_cache()
        student = torch.cat([self.model(view).logits for view in views])
        return self.losses(student, teacher, batch.label, batch.valid, step=batch.step)

    def after_step(self) -> None:
        self.teacher.update(self.model)

    def losses(
        self, student: Tensor, teacher: Tensor, label: Tensor, valid: Tensor, step: int = 0
    ) -> tuple[Tensor, Logs]:
        """All terms and their total: logits (N, K, H, W) of [x; u], labels (N_x, H, W), validity (N_u, H, W)."""
        count = len(label)
        labeled = self.labeled_loss(student[:count], label)
        difference = student.float().softmax(1) - teacher.detach().float().softmax(1)
        consistency = difference.square().mean()
        total = labeled + self.options.consistency_weight * consistency
        logs = {"loss/x": labeled.detach(), "loss/consistency": consistency.detach()}
        inter = inter_pixel_term(
            self.options, student[count:], teacher[count:], valid, seed=self.seed, step=step
        )
        if inter is not None:
            total = total + inter
            logs["loss/inter_pixel"] = inter.detach()
        return total, logs
