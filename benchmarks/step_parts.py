"""The small parts around the network: threshold, hard example mining, CutMix of targets, and counting for mIoU.

References, from the papers' pseudo-code and definitions, by the means the published runs used: loops over classes,
boolean indexing and sorting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import datasets
import evaluate
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from corrmatch_hf.evaluation.confusion_matrix import ConfusionMatrix
from corrmatch_hf.methods.dynamic_threshold import DynamicThreshold
from corrmatch_hf.methods.pseudo_labels import PseudoLabels
from corrmatch_hf.ops.losses import ohem_cross_entropy

from .measure import Row, milliseconds

CLASSES = 21
IGNORE = 255
OHEM_THRESHOLD, OHEM_KEPT = 0.7, 100_000


def rows(
    device: str, images: int = 4, crop: int = 321, maps: int = 20, map_size: int = 512, repeats: int = 5
) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    shape = (images, crop, crop)
    # Smooth, and as confident as a network in training: classes lie in patches, ids are not noise.
    weak, partner = (smooth_logits(images, crop, generator).to(device) for _ in range(2))
    label = weak.argmax(1)
    label = torch.where(
        (torch.rand(shape, generator=generator) < 0.3).to(device), (label + 1) % CLASSES, label
    )
    label[:, : crop // 20] = IGNORE
    valid = torch.ones(shape, dtype=torch.bool, device=device)
    valid[:, -crop // 10 :] = False
    box = torch.zeros(shape, dtype=torch.bool, device=device)
    other_valid = valid.flip(1)
    box[::2, crop // 4 : crop // 2, crop // 5 : 2 * crop // 3] = True
    pixels = f"{images} x {crop}^2"

    pseudo, other = PseudoLabels.of(weak, valid), PseudoLabels.of(partner, other_valid)
    thresholds = [DynamicThreshold(CLASSES).to(device) for _ in range(2)]

    def threshold_reference() -> Tensor:
        return classwise_update(thresholds[0].value, weak, valid)

    def threshold_ours() -> Tensor:
        return thresholds[1].update(pseudo.confidence, pseudo.labels, valid)

    same = torch.allclose(threshold_reference(), threshold_ours(), rtol=1e-6, atol=0)
    times = milliseconds(threshold_reference, threshold_ours, device, repeats)
    yield Row(f"threshold update, {pixels}, {CLASSES} classes", *times, "ms", same, 50, "to 1e-6")

    def ohem_reference() -> Tensor:
        return sorted_ohem(weak, label)

    def ohem_ours() -> Tensor:
        return ohem_cross_entropy(weak, label, OHEM_THRESHOLD, OHEM_KEPT, IGNORE)

    same = torch.allclose(ohem_reference(), ohem_ours(), rtol=1e-5, atol=0)
    times = milliseconds(ohem_reference, ohem_ours, device, repeats)
    yield Row(f"OHEM, {pixels}, {CLASSES} classes", *times, "ms", same, 1.5, "to 1e-5")

    zero_one = box.float()

    def cutmix_reference() -> tuple[Tensor, ...]:
        return indexed_cutmix(
            (pseudo.labels, pseudo.confidence, valid), (other.labels, other.confidence, other_valid), zero_one
        )

    def cutmix_ours() -> tuple[Tensor, ...]:
        mixed = pseudo.mixed(other, box)
        return mixed.labels, mixed.confidence, mixed.valid

    same = all(torch.equal(a, b) for a, b in zip(cutmix_reference(), cutmix_ours(), strict=True))
    times = milliseconds(cutmix_reference, cutmix_ours, device, 4 * repeats)
    yield Row(f"CutMix of labels, confidence and padding, {pixels}", *times, "ms", same, 4)

    truth = torch.randint(CLASSES, (maps, map_size // 32, map_size // 32), generator=generator)
    truth = truth.repeat_interleave(32, 1).repeat_interleave(32, 2)
    wrong = torch.rand(truth.shape, generator=generator) < 0.3
    predicted = torch.where(wrong, torch.randint(CLASSES, truth.shape, generator=generator), truth).to(device)
    truth[:, : map_size // 20] = IGNORE
    truth = truth.to(device)

    def miou_evaluate() -> float:
        return HistogramMeanIoU().compute(
            predictions=predicted.cpu().numpy(), references=truth.cpu().numpy()
        )["mean_iou"]

    def miou_reference() -> float:
        return histogram_miou(predicted.cpu().numpy(), truth.cpu().numpy())

    def miou_ours() -> float | None:
        confusion = ConfusionMatrix(CLASSES, IGNORE, device)
        for prediction, mask in zip(predicted, truth, strict=True):
            confusion.update(prediction, mask)
        return confusion.compute()["mean_iou"]

    same = abs(miou_reference() - miou_ours()) < 1e-12
    what = f"mIoU of {maps} maps of {map_size}^2, {CLASSES} classes, against"
    times = milliseconds(miou_evaluate, miou_ours, device, 2)
    yield Row(f"{what} evaluate's mean_iou", *times, "ms", same, 20, "to 1e-12")
    times = milliseconds(miou_reference, miou_ours, device, repeats)
    yield Row(f"{what} its counting alone", *times, "ms", same, None, "to 1e-12")


def smooth_logits(images: int, crop: int, generator: torch.Generator) -> Tensor:
    small = 4 * torch.randn(images, CLASSES, crop // 8 + 1, crop // 8 + 1, generator=generator)
    return F.interpolate(small, size=(crop, crop), mode="bilinear", align_corners=True)


@torch.no_grad()
def classwise_update(value: Tensor, logits: Tensor, valid: Tensor, momentum: float = 0.999) -> Tensor:
    """CorrMatch's algorithm 2: the mean, over the classes predicted, of each one's largest confidence is followed."""
    confidence, predicted = logits.softmax(1).max(1)
    best = []
    for c in predicted[valid].unique():
        best.append(confidence[valid & (predicted == c)].max())
    if best:
        value.copy_(momentum * value + (1 - momentum) * torch.stack(best).mean())
    return value


def sorted_ohem(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy over the valid pixels whose true class is at most as probable as the cut; the cut by sorting."""
    valid = label != IGNORE
    classes = logits.shape[1]
    true_class = torch.where(valid, label, 0).flatten()
    probability = logits.softmax(1).transpose(0, 1).reshape(classes, -1)
    probability = probability.masked_fill(~valid.flatten(), 1.0)
    probability = probability[true_class, torch.arange(true_class.numel(), device=label.device)]
    cut = OHEM_THRESHOLD
    if OHEM_KEPT > 0:
        order = probability.argsort()
        last = probability[order[min(order.numel(), OHEM_KEPT) - 1]]
        cut = max(cut, float(last))
    kept = valid & (probability <= cut).view_as(valid)
    return F.cross_entropy(logits, label.masked_fill(~kept, IGNORE), ignore_index=IGNORE)


def indexed_cutmix(own: tuple[Tensor, ...], partner: tuple[Tensor, ...], box: Tensor) -> tuple[Tensor, ...]:
    """`box` is 0 or 1 per pixel."""
    mixed = tuple(tensor.clone() for tensor in own)
    for tensor, pasted in zip(mixed, partner, strict=True):
        tensor[box == 1] = pasted[box == 1]
    return mixed


def histogram_miou(predictions: Iterable[np.ndarray], truths: Iterable[np.ndarray]) -> float:
    """mIoU as the `mean_iou` metric of `evaluate` counts it: three histograms per image over its labelled pixels."""
    intersection, union = np.zeros(CLASSES), np.zeros(CLASSES)

    def areas(ids: np.ndarray) -> np.ndarray:
        return np.histogram(ids, bins=CLASSES, range=(0, CLASSES - 1))[0]

    for prediction, truth in zip(predictions, truths, strict=True):
        labelled = truth != IGNORE
        prediction, truth = prediction[labelled], truth[labelled]
        hit = areas(prediction[prediction == truth])
        intersection += hit
        union += areas(prediction) + areas(truth) - hit
    with np.errstate(invalid="ignore"):
        return float(np.nanmean(intersection / union))


class HistogramMeanIoU(evaluate.Metric):
    """The metric as `evaluate.load("mean_iou")` gives it, which needs the Hub: maps pass through an Arrow table."""

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.List(datasets.List(datasets.Value("uint16")))
        features = datasets.Features({"predictions": maps, "references": maps})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references) -> dict[str, float]:
        pairs = [(np.array(p), np.array(t)) for p, t in zip(predictions, references, strict=True)]
        return {"mean_iou": histogram_miou(*zip(*pairs, strict=True))}
