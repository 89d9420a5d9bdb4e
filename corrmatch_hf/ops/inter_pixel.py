"""Consistency of the relations between pixels: our reading of the idea of IPixMatch (arXiv 2404.18891).

No code of that method is public, and its formula could not be verified. According to its abstract and summaries,
relations inside the teacher's soft pseudo-labels are compared with the student's over confident pixels, by KL
divergence or by a correlation distance. What exactly is compared is our reading; do not expect the paper's numbers.

    kl            per class, the logits over the image's confident pixels become a distribution over these pixels;
                  KL(teacher || student), mean over classes
    correlation   1 - the Pearson correlation of a class's probabilities over the confident pixels, mean over classes
    pairwise      cosine similarities between the pixels' probability vectors; each row of this matrix becomes a
                  distribution; KL(teacher || student), mean over rows; on a sample of the confident pixels

For all of them: student and teacher logits are (N, K, H, W) floats, a CutMix box already pasted into the teacher's;
`confident` is (N, H, W) bool and excludes padding. The value of an image needs at least two confident pixels; the loss
is the mean over the images of the total batch of all processes that have one, and 0 with zero gradient if none has.
It is a float32 scalar, under autocast too. Neither the teacher nor pixels that are not confident get a gradient.

These losses depend on relations only, not on values: adding a number to all logits of a class does not change `kl`.
They complement a loss per pixel and cannot replace it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import per_process
from ..model.correlation_corrmatch import full_precision

MIN_STD = 1e-6  # of a class's probabilities over the pixels; below it the class counts as constant


def inter_pixel_kl(
    student_logits: Tensor, teacher_logits: Tensor, confident: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL divergence of each class's distribution over the confident pixels, times temperature squared.

    The factor keeps the size of the gradient when the temperature (above 0) flattens the distributions.
    Memory: about 7 float32 tensors of the logits' size at once.
    """
    usable, mask = _usable(confident.flatten(1))
    student = student_logits.float().flatten(2) / temperature
    teacher = teacher_logits.detach().float().flatten(2) / temperature
    divergence = _kl_over_masked(student, teacher, mask.unsqueeze(1))
    return _mean_over_images(temperature**2 * divergence.mean(1), usable)


def inter_pixel_correlation(student_logits: Tensor, teacher_logits: Tensor, confident: Tensor) -> Tensor:
    """1 - Pearson correlation of each class's probabilities over the confident pixels.

    A class whose teacher probabilities are constant (standard deviation below 1e-6) has no correlation and is left out,
    and so is an image with only such classes. A constant student correlates with nothing: the class costs 1.
    Memory: about 5 float32 tensors of the logits' size at once.
    """
    mask = confident.flatten(1).unsqueeze(1)
    count = mask.sum(2)
    smallest = MIN_STD * count.clamp(min=1).sqrt()

    student, student_norm = _centred(student_logits, mask, count)
    teacher, teacher_norm = _centred(teacher_logits.detach(), mask, count)
    kept = teacher_norm > smallest
    # The bound on the norm keeps the gradient of a constant student finite.
    norms = student_norm.clamp(min=smallest) * teacher_norm.clamp(min=smallest)
    correlation = (student * teacher).sum(2) / norms

    per_image = ((1 - correlation) * kept).sum(1) / kept.sum(1).clamp(min=1)
    return _mean_over_images(per_image, kept.any(1))  # a single pixel is constant in all classes


def inter_pixel_pairwise(
    student_logits: Tensor,
    teacher_logits: Tensor,
    confident: Tensor,
    generator: torch.Generator,
    pixels: int = 1024,
    temperature: float = 1.0,
) -> Tensor:
    """KL divergence of the rows of the similarity matrices between sampled confident pixels.

    The similarities are cosines of probability vectors, in [0, 1]; a temperature (above 0) below 1 sharpens their rows.

    Args:
        generator: of the sample, on the logits' device and in the same state on all processes.
        pixels: P, confident pixels sampled per image (all of them where there are fewer), at least 2.

    Memory: a handful of (N, P, P) float32 tensors, 4 P^2 bytes an image each (4 MiB at 1024), whatever H and W are.
    """
    index, sampled = _sample(confident.flatten(1), pixels, generator)
    usable, mask = _usable(sampled)
    student = _similarities(student_logits, index) / temperature
    teacher = _similarities(teacher_logits.detach(), index) / temperature
    divergence = _kl_over_masked(student, teacher, mask.unsqueeze(1))
    return _mean_over_images((divergence * mask).sum(1) / mask.sum(1), usable)


def _usable(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which images have two pixels in `mask` (N, P), and the mask with all pixels for the others.

    The others are then computed like any image and weighted with 0, so that the host need not know which they are.
    """
    usable = mask.sum(1) >= 2
    return usable, mask | ~usable.unsqueeze(1)


def _mean_over_images(per_image: Tensor, usable: Tensor) -> Tensor:
    return (per_image * usable).sum() / per_process(usable.sum())


def _kl_over_masked(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL(softmax teacher || softmax student) over the last dimension where `mask` (not all False) holds."""
    log_student = student.masked_fill(~mask, -torch.inf).log_softmax(-1)
    log_teacher = teacher.masked_fill(~mask, -torch.inf).log_softmax(-1)
    # Outside the mask the difference is inf - inf, whose gradient must not be used.
    return (log_teacher.exp() * (log_teacher - log_student).masked_fill(~mask, 0)).sum(-1)


def _centred(logits: Tensor, mask: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (N, K, P) less their mean over the mask and 0 outside it, and their norms (N, K)."""
    probability = logits.float().flatten(2).softmax(1)
    mean = (probability * mask).sum(2) / count.clamp(min=1)
    centred = (probability - mean.unsqueeze(2)) * mask
    return centred, torch.linalg.vector_norm(centred, dim=2)


def _sample(mask: Tensor, pixels: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions (N, P) drawn from `mask` (N, H*W) without replacement, and which of them are in it (N, P).

    All images share one draw of random ranks, so that an image's sample does not depend on the process that has it.
    """
    ranks = torch.rand(mask.shape[1], generator=generator, device=mask.device)
    index = torch.where(mask, ranks, -1.0).topk(min(pixels, mask.shape[1]), dim=1).indices
    return index, mask.gather(1, index)


def _similarities(logits: Tensor, index: Tensor) -> Tensor:
    """Cosines (N, P, P) between the probability vectors at the positions `index` (N, P)."""
    at = logits.flatten(2).gather(2, index.unsqueeze(1).expand(-1, logits.shape[1], -1))
    unit = F.normalize(at.float().softmax(1), dim=1)
    with full_precision(logits.device):  # which would multiply matrices in half precision
        return unit.transpose(1, 2) @ unit
