"""Inter-pixel consistency as an addition to any teacher-student method: our reading of the idea of IPixMatch.

No code of IPixMatch (arXiv 2404.18891) is public, and its formula, weight and numbers could not be verified. See
`ops/inter_pixel.py` for what is known of it and what is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..ops.inter_pixel import inter_pixel_correlation, inter_pixel_kl, inter_pixel_pairwise
from ..ops.random_masks import step_generator
from .base import MethodOptions, Positive, Weight, choice


@dataclass
class InterPixelOptions(MethodOptions):
    """How the relations between pixels are compared; off by default. Weight, temperature and pixels are ours."""

    inter_pixel_loss: str = choice(
        "none",
        ("none", "kl", "correlation", "pairwise"),
        "Compare relations between confident pixels, too (our reading of IPixMatch's abstract): each class's "
        "distribution over the pixels, its correlation, or similarities of pixel pairs.",
    )
    inter_pixel_weight: Weight = field(
        default=0.1,
        metadata={
            "help": "Weight of the inter-pixel loss among the unlabelled; try 0.1, 0.5 and 1, choose by validation."
        },
    )
    inter_pixel_temperature: Positive = field(
        default=1.0,
        metadata={
            "help": "kl, pairwise: logits or similarities are divided by it before the softmax over pixels."
        },
    )
    inter_pixel_pixels: int = field(
        default=1024,
        metadata={"help": "pairwise: confident pixels sampled per image; memory grows with their square."},
    )

    def problems(self) -> list[str]:
        found = super().problems()
        if self.inter_pixel_pixels < 2:
            found.append(f"--inter_pixel_pixels is {self.inter_pixel_pixels}; a pair needs at least 2 pixels")
        return found


def inter_pixel_term(
    options: InterPixelOptions,
    student_logits: Tensor,
    teacher_logits: Tensor,
    confident: Tensor,
    *,
    seed: int,
    step: int,
) -> Tensor | None:
    """The weighted inter-pixel loss of a strong view, to be added to the unlabelled loss; None where it is off.

    Args:
        options: of the method.
        student_logits: (N, K, H, W) float, of the strong view.
        teacher_logits: (N, K, H, W) float, of the weak view, the partner's pasted inside the CutMix box. No gradient
            reaches them.
        confident: (N, H, W) bool, pixels whose pseudo-label is confident and that are not padding; all that are not
            padding where a method has no measure of confidence.
        seed, step: of the random choice of pixels ("pairwise").

    Returns:
        Scalar float32, the mean over the total batch of all processes.
    """
    o = options
    if o.inter_pixel_loss == "none":
        return None
    views = student_logits, teacher_logits, confident
    if o.inter_pixel_loss == "kl":
        loss = inter_pixel_kl(*views, o.inter_pixel_temperature)
    elif o.inter_pixel_loss == "correlation":
        loss = inter_pixel_correlation(*views)
    else:
        generator = step_generator(student_logits.device, seed, step, "inter-pixel pixels")
        loss = inter_pixel_pairwise(*views, generator, o.inter_pixel_pixels, o.inter_pixel_temperature)
    return o.inter_pixel_weight * loss
