"""The inter-pixel loss as an option of every teacher-student method: our reading of the idea of IPixMatch.

No code of IPixMatch (arXiv 2404.18891) is public, and its formula, weight and numbers could not be verified.
`ops/inter_pixel.py` says what is known of it and what is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from ..ops.inter_pixel import inter_pixel_correlation, inter_pixel_kl, inter_pixel_pairwise
from ..ops.random_masks import step_generator
from ..options import option
from .base import Method, MethodOptions

if TYPE_CHECKING:
    from .pseudo_labels import PseudoLabels


@dataclass
class InterPixelOptions(MethodOptions):
    """How the relations between pixels are compared; off by default. Weight, temperature and pixels are ours."""

    inter_pixel_loss: Literal["none", "kl", "correlation", "pairwise"] = option(
        "none",
        "Also compare relations between confident pixels (our reading of IPixMatch's abstract): each class's "
        "distribution over the pixels, its correlation, or similarities of pixel pairs.",
        group="Method",
    )
    inter_pixel_weight: float = option(
        0.1,
        "Weight of the inter-pixel loss among the unlabelled losses; try 0.1, 0.5 and 1, choose by validation.",
        group="Method",
        at_least=0,
        only_with=("inter_pixel_loss=kl", "inter_pixel_loss=correlation", "inter_pixel_loss=pairwise"),
    )
    inter_pixel_temperature: float = option(
        1.0,
        "kl, pairwise: logits or similarities are divided by it before the softmax over pixels.",
        group="Method",
        above=0,
        only_with=("inter_pixel_loss=kl", "inter_pixel_loss=pairwise"),
    )
    inter_pixel_pixels: int = option(
        1024,
        "pairwise: confident pixels sampled per image; memory grows with their square.",
        group="Method",
        at_least=2,
        only_with="inter_pixel_loss=pairwise",
    )


def inter_pixel_terms(
    method: Method, views: Sequence[tuple[Tensor, Tensor | PseudoLabels, Tensor]], step: int
) -> dict[str, Tensor]:
    """{"inter_pixel": the weighted loss, mean over the views}, to be added to a method's terms; {} if it is off.

    Args:
        method: whose `InterPixelOptions` and seed are used.
        views: for each strong view the student's logits (N, K, H, W), the teacher's as a tensor or as
            `PseudoLabels`, and the pixels to compare, (N, H, W) bool: confident and not padding.
        step: of the random choice of pixels.
    """
    if method.options.inter_pixel_loss == "none":
        return {}
    losses = [
        inter_pixel_term(
            method.options,
            student,
            teacher if isinstance(teacher, Tensor) else teacher.logits,
            confident,
            seed=method.seed + i,  # each view samples other pixels
            step=step,
        )
        for i, (student, teacher, confident) in enumerate(views)
    ]
    return {"inter_pixel": sum(losses) / len(losses)}


def inter_pixel_term(
    options: InterPixelOptions,
    student_logits: Tensor,
    teacher_logits: Tensor,
    confident: Tensor,
    *,
    seed: int,
    step: int,
) -> Tensor | None:
    """The weighted inter-pixel loss of one strong view; None if it is off.

    Args:
        options: of the method.
        student_logits: (N, K, H, W) float, of the strong view.
        teacher_logits: (N, K, H, W) float, of the weak view, with the partner's inside the CutMix box. They get no
            gradient.
        confident: (N, H, W) bool, pixels whose pseudo-label is confident and that are not padding; all that are not
            padding if a method has no measure of confidence.
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
