"""The confusion matrix and the segmentation metrics computed from it.

One `bincount` over `truth * K + prediction` per image. Counts are integers, so that sums over images and processes are
exact in any order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InputError


class ConfusionMatrix:
    """Counts of (true class, predicted class) over all pixels whose label is not `ignore_index`.

    Attributes:
        matrix: int64 (K, K) on `device`; rows are the truth, columns the prediction. With NCCL, `reduce` needs it on
            the process's GPU.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, device: torch.device | str = "cpu"):
        if num_labels < 1:
            raise InputError(f"num_labels is {num_labels}: a confusion matrix needs at least one class.")
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_labels, num_labels, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count the pixels of two tensors of equal, arbitrary shape and any integer type (or bool).

        Predictions at ignored labels are not used. Any other id outside 0..K-1 raises `InputError` and leaves the
        matrix unchanged.
        """
        if prediction.shape != label.shape:
            raise InputError(
                f"The prediction has shape {tuple(prediction.shape)}, the label {tuple(label.shape)}: "
                "they must be equal; resize the prediction to the label."
            )
        if prediction.is_floating_point() or label.is_floating_point():
            raise InputError(
                f"The confusion matrix counts class ids but got {prediction.dtype} predictions and "
                f"{label.dtype} labels: take the argmax over the classes first."
            )
        if not label.numel():
            return
        k = self.num_labels
        prediction, label = (_computable(ids.flatten()) for ids in (prediction, label.to(prediction.device)))
        # Masking pixels is slower than counting, so every id of an 8-bit label gets a row, including the ignored one.
        rows = max(k, 256)
        if not _within(prediction, k) or not _within(label, rows):
            prediction, label = self._labelled(prediction, label)
            rows = k
            if not _within(prediction, k) or not _within(label, k):
                raise self._outside_error(prediction, label)
        # int32 is large enough and twice as fast as int64.
        cells = label.to(torch.int32) * k + prediction.to(torch.int32)
        counts = torch.bincount(cells, minlength=rows * k).view(rows, k)
        if 0 <= self.ignore_index < rows:
            counts[self.ignore_index] = 0
        if counts[k:].any():
            raise self._outside_error(*self._labelled(prediction, label))
        self.matrix += counts[:k].to(self.matrix.device)

    def _labelled(self, prediction: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels that are not ignored, as int64: as bytes, 156 would equal -100, and -1 would equal 255."""
        label = label.long()
        counted = label != self.ignore_index
        return prediction[counted].long(), label[counted]

    def _outside_error(self, prediction: Tensor, label: Tensor) -> InputError:
        def outside(ids: Tensor) -> list[int]:
            return ids[(ids < 0) | (ids >= self.num_labels)].unique().tolist()[:5]

        known = f"the {self.num_labels} classes are 0 to {self.num_labels - 1}"
        if wrong := outside(label):
            return InputError(
                f"The label holds the id {', '.join(map(str, wrong))} but {known} and ignore_index is "
                f"{self.ignore_index}: correct num_labels, ignore_index or reduce_labels, or map the ids."
            )
        wrong = outside(prediction)
        return InputError(
            f"The prediction holds the id {', '.join(map(str, wrong))} at a labelled pixel but {known}: "
            "the model and the labels need the same classes."
        )

    def __iadd__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        if (other.num_labels, other.ignore_index) != (self.num_labels, self.ignore_index):
            raise InputError(
                f"A confusion matrix of {other.num_labels} classes and ignore_index {other.ignore_index} "
                f"cannot be added to one of {self.num_labels} and {self.ignore_index}."
            )
        self.matrix += other.matrix.to(self.matrix.device)
        return self

    def reduce(self) -> ConfusionMatrix:
        """Sum over all processes, in place; without distributed training nothing changes."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.matrix)
        return self

    def compute(self, id2label: Mapping[int, str] | None = None) -> dict:
        """The metrics as plain Python numbers in 0..1, ready for JSON; None for 0/0.

        Returns:
            mean_iou: mean over the classes that occur in the truth or in a prediction.
            mean_iou_all_classes: mean of intersection / (union + 1e-10) over all K classes, absent ones counting 0, as
                published by papers of this family.
            mean_accuracy: mean recall over the classes that occur in the truth.
            pixel_accuracy: share of correctly predicted labelled pixels.
            per_class: {name: {"iou", "accuracy", "frequency"}}; frequency is the class's share of the truth.
        """
        matrix = self.matrix.cpu().double()
        hit, truth, guess = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        union = truth + guess - hit
        total = truth.sum()
        iou, accuracy, frequency = hit / union, hit / truth, truth / total  # 0/0 is NaN: the class is absent

        per_class = {
            name: {
                "iou": _number(iou[c]),
                "accuracy": _number(accuracy[c]),
                "frequency": _number(frequency[c]),
            }
            for c, name in enumerate(_names(self.num_labels, id2label))
        }
        return {
            "mean_iou": _number(iou.nanmean()),
            "mean_iou_all_classes": _number((hit / (union + 1e-10)).mean()),
            "mean_accuracy": _number(accuracy.nanmean()),
            "pixel_accuracy": _number(hit.sum() / total),
            "per_class": per_class,
        }


def _computable(ids: Tensor) -> Tensor:
    """The same ids in a type that torch computes in; it hardly supports the unsigned integers of 16-bit masks."""
    return ids.long() if ids.dtype in (torch.uint16, torch.uint32, torch.uint64) else ids


def _within(ids: Tensor, end: int) -> bool:
    """Whether all of `ids` are in 0..end-1; True for no ids."""
    if not ids.numel():
        return True
    low, high = torch.stack(ids.aminmax()).tolist()
    return low >= 0 and high < end


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else value.item()


def _names(num_labels: int, id2label: Mapping[int, str] | None) -> list[str]:
    """One name per class; the id is appended to names that several classes share."""
    names = [str((id2label or {}).get(c, c)) for c in range(num_labels)]
    count = Counter(names)
    return [f"{name} ({c})" if count[name] > 1 else name for c, name in enumerate(names)]
