"""Mean Teacher for segmentation: soft consistency with an EMA teacher on all pixels.

After every step the teacher's parameters become g <- 0.99 g + 0.01 f. It stays in training mode and keeps
BatchNorm statistics of its own, as in the baseline of the CPS paper. Student and teacher see the same weak views, x and
u in passes of their own:

    L_c = mean over pixels and classes of ( softmax f([x; u]) - softmax g([x; u]) )^2
    L   = L_x + 100 L_c

No threshold, no ramp-up, no strong augmentation. With --inter_pixel_loss, its weighted term is added, over all valid
pixels of u (see `inter_pixel.py`). The student is what is evaluated and saved.

Designed for a pretrained encoder and a long schedule: from scratch and in few steps it is worse than the supervised
baseline, because the average keeps what an untrained network predicted for the unlabelled images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.batch import SemiBatch
from ..options import option
from .base import Logs, Method, loss_logs
from .citations import Citation
from .inter_pixel import InterPixelOptions, inter_pixel_terms
from .teacher import Teacher


@dataclass
class MeanTeacherOptions(InterPixelOptions):
    """The teacher's decay, and the weight of the consistency."""

    mean_teacher_decay: float = option(
        0.99, "Share of the teacher's parameters kept by a step.", at_least=0, below=1
    )
    consistency_weight: float = option(
        100.0, "Weight of the squared difference of probabilities.", at_least=0
    )


class MeanTeacher(Method):
    """Mean Teacher's training step; the head of this file has the equations."""

    name = "mean_teacher"
    Options = MeanTeacherOptions
    options: MeanTeacherOptions
    citation = Citation(
        "[Mean teachers are better role models](https://arxiv.org/abs/1703.01780) (NIPS 2017), as in CPS's baseline",
        """\
@inproceedings{tarvainen2017mean,
  title={Mean teachers are better role models: Weight-averaged consistency targets improve semi-supervised deep learning
    results},
  author={Tarvainen, Antti and Valpola, Harri},
  booktitle={NIPS},
  year={2017}
}""",
    )
    strong_views = 0
    teacher: Teacher

    def __init__(self, model: nn.Module, options: MeanTeacherOptions | None = None, seed: int = 0):
        super().__init__(model, options, seed)
        self.teacher = Teacher(model, self.options.mean_teacher_decay, buffers=False, warm_up=False)

    @property
    def segmentation_model(self) -> nn.Module:
        return self.model

    def forward(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        views = batch.image, batch.weak  # each with batch statistics of its own
        with torch.no_grad():
            teacher = torch.cat([self.teacher.network(view).logits for view in views])
        # Autocast caches weights that it has cast. Those cast without gradient must not be reused with one, as torch
        # before 2.10 does.
        torch.clear_autocast_cache()
        student = torch.cat([self.model(view).logits for view in views])
        return self.losses(student, teacher, batch)

    def losses(self, student: Tensor, teacher: Tensor, batch: SemiBatch) -> tuple[Tensor, Logs]:
        """The total and all terms, from logits (B_l + B_u, K, H, W) of [x; u]."""
        labeled = len(batch.label)
        difference = student.float().softmax(1) - teacher.detach().float().softmax(1)
        terms = {
            "x": self.labeled_loss(student[:labeled], batch.label),
            "consistency": difference.square().mean(),
            **inter_pixel_terms(self, [(student[labeled:], teacher[labeled:], batch.valid)], batch.step),
        }
        total = terms["x"] + self.options.consistency_weight * terms["consistency"]
        return total + terms.get("inter_pixel", 0), loss_logs(terms)
