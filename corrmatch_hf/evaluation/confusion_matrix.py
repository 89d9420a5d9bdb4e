"""The confusion matrix all segmentation figures come from, and those figures.

One `bincount` over `truth * K + prediction` per image; integer counts, so sums over images and processes are
exact and come out the same in any order.
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
        matrix: int64 (K, K), rows are the truth, columns the prediction. Lives on `device`; under NCCL that
            must be the process's GPU for `reduce` to work.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, device: torch.device | str = "cpu"):
        if num_labels < 1:
            raise InputError(f"num_labels is {num_labels}: a confusion matrix needs at least one class.")
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_labels, num_labels, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Counts the pixels of two tensors of the same shape, of any shape and any integer types (or bool).

        Predictions below ignored labels are not looked at. Any other id outside 0..K-1 raises `InputError`,
        and the matrix stays as it was.
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
        # Masks of pixels cost more than counting. So every id of an 8-bit label gets a row, the ignored one too.
        rows = max(k, 256)
        if not _within(prediction, k) or not _within(label, rows):
            prediction, label = self._labelled(prediction, label)
            rows = k
            if not _within(prediction, k) or not _within(label, k):
                raise self._outside_error(prediction, label)
        # int32 is enough for the cells and twice as fast as int64.
        cells = label.to(torch.int32) * k + prediction.to(torch.int32)
        counts = torch.bincount(cells, minlength=rows * k).view(rows, k)
        if 0 <= self.ignore_index < rows:
            counts[self.ignore_index] = 0
        if counts[k:].any():
            raise self._outside_error(*self._labelled(prediction, label))
        self.matrix += counts[:k].to(self.matrix.device)

    def _labelled(self, prediction: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels that count, in int64: compared as bytes, 156 would be -100, and -1 would be 255."""
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
        """Sums over all processes, in place: called once, each holds the total. Alone, nothing changes."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.matrix)
        return self

    def compute(self, id2label: Mapping[int, str] | None = None) -> dict:
        """The figures, as plain Python numbers in 0..1 that `json.dump` takes; None where a ratio is 0/0.

        Returns:
            mean_iou: mean over the classes that occur in the truth or in a prediction.
            mean_iou_all_classes: mean of intersection / (union + 1e-10) over all K classes, absent ones count
                0: what papers of this family publish.
            mean_accuracy: mean recall over the classes that occur in the truth.
            pixel_accuracy: share of labelled pixels predicted right.
            per_class: {name: {"iou", "accuracy", "frequency"}}, frequency being the class's share of the
                truth.
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
    """The same ids; torch stores unsigned integers of more than 8 bits, as 16-bit masks have, but hardly computes."""
    return ids.long() if ids.dtype in (torch.uint16, torch.uint32, torch.uint64) else ids


def _within(ids: Tensor, end: int) -> bool:
    """Whether all of `ids` are in 0..end-1; no ids are."""
    if not ids.numel():
        return True
    low, high = torch.stack(ids.aminmax()).tolist()
    return low >= 0 and high < end


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else value.item()


def _names(num_labels: int, id2label: Mapping[int, str] | None) -> list[str]:
    """One name per class; a name that several classes share gets the id behind it, so that none is lost."""
    names = [str((id2label or {}).get(c, c)) for c in range(num_labels)]
    count = Counter(names)
    return [f"{name} ({c})" if count[name] > 1 else name for c, name in enumerate(names)]
