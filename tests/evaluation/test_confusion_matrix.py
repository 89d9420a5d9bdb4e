"""Figures against a slow version that says what IoU is, one pixel and one class at a time."""

import json
import math

import pytest
import torch

from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation import ConfusionMatrix


def slow_figures(prediction, label, num_labels, ignore_index):
    pairs = [(t, p) for t, p in zip(label.flatten().tolist(), prediction.flatten().tolist(), strict=True)]
    pairs = [(t, p) for t, p in pairs if t != ignore_index]
    iou, accuracy = {}, {}
    for c in range(num_labels):
        intersection = sum(t == c and p == c for t, p in pairs)
        union = sum(t == c or p == c for t, p in pairs)
        truth = sum(t == c for t, _ in pairs)
        iou[c] = intersection / union if union else None
        accuracy[c] = intersection / truth if truth else None
    return iou, accuracy, sum(t == p for t, p in pairs) / len(pairs)


@pytest.mark.parametrize("ignore_index", [255, -100, 0])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_figures_equal_the_slow_version(ignore_index, dtype):
    if ignore_index < 0 and dtype == torch.uint8:
        pytest.skip("no negative values in uint8")
    label = torch.randint(0, 4, (3, 9, 7))
    label[torch.rand(label.shape) < 0.2] = ignore_index
    prediction = torch.randint(0, 5, label.shape)  # class 4 is only predicted, class 5 is nowhere
    confusion = ConfusionMatrix(6, ignore_index)
    for p, t in zip(prediction, label, strict=True):
        confusion.update(p.to(dtype), t.to(dtype))
    figures = confusion.compute()
    iou, accuracy, pixel_accuracy = slow_figures(prediction, label, 6, ignore_index)
    present = [v for v in iou.values() if v is not None]
    assert figures["mean_iou"] == pytest.approx(sum(present) / len(present), abs=1e-12)
    assert figures["mean_iou_all_classes"] == pytest.approx(sum(present) / 6, abs=1e-9)
    recalls = [v for v in accuracy.values() if v is not None]
    assert figures["mean_accuracy"] == pytest.approx(sum(recalls) / len(recalls), abs=1e-12)
    assert figures["pixel_accuracy"] == pytest.approx(pixel_accuracy, abs=1e-12)
    for c in range(6):
        assert figures["per_class"][str(c)]["iou"] == pytest.approx(iou[c])
        assert figures["per_class"][str(c)]["accuracy"] == pytest.approx(accuracy[c])
    assert figures["per_class"]["5"]["iou"] is None
    assert sum(v["frequency"] for v in figures["per_class"].values()) == pytest.approx(1)


def test_rows_are_truth_and_columns_are_prediction():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 0, 1, 255]))
    assert confusion.matrix.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert confusion.matrix.dtype == torch.int64


def test_more_classes_than_uint8_holds():
    confusion = ConfusionMatrix(300)
    confusion.update(torch.tensor([44, 7], dtype=torch.uint8), torch.tensor([299, 7]))
    assert confusion.matrix[299, 44] == 1 and confusion.matrix[7, 7] == 1 and confusion.matrix.sum() == 2


def test_merging_equals_counting_together():
    prediction, label = torch.randint(0, 3, (2, 50)), torch.randint(0, 3, (2, 50))
    together, first, second = ConfusionMatrix(3), ConfusionMatrix(3), ConfusionMatrix(3)
    together.update(prediction, label)
    first.update(prediction[0], label[0])
    second.update(prediction[1], label[1])
    first += second
    assert torch.equal(first.matrix, together.matrix)
    with pytest.raises(InputError, match="4 classes"):
        first += ConfusionMatrix(4)


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        ([0, 1], [0, 7], "label holds the id 7.*0 to 2.*ignore_index is 255"),
        ([0, 1], [0, -1], "label holds the id -1"),
        ([0, 1], [0, 3], "label holds the id 3"),
        ([0, 1], [0, 300], "label holds the id 300"),
        ([0, 3], [0, 1], "prediction holds the id 3"),
        ([0, 255], [0, 1], "prediction holds the id 255"),
        ([0, 1, 2], [0, 1], "shape"),
        ([0.2, 1.0], [0, 1], "argmax"),
    ],
)
def test_what_cannot_be_counted_is_refused_and_leaves_the_matrix_alone(prediction, label, message):
    confusion = ConfusionMatrix(3)
    with pytest.raises(InputError, match=message):
        confusion.update(torch.tensor(prediction), torch.tensor(label))
    assert confusion.matrix.sum() == 0


def test_predictions_under_ignored_labels_do_not_matter():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([0, 99, -5]), torch.tensor([0, 255, 255]))
    assert confusion.matrix.sum() == 1


@pytest.mark.parametrize("ignore_index", [-100, 0, 255, 1000])
def test_ignored_ids_wherever_they_are(ignore_index):
    confusion = ConfusionMatrix(3, ignore_index)
    confusion.update(torch.tensor([0, 2, 1, 1]), torch.tensor([ignore_index, 2, 1, 2]))
    assert confusion.matrix.tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 1]]
    confusion.update(torch.tensor([]).long(), torch.tensor([]).long())
    assert confusion.matrix.sum() == 3


def test_nothing_labelled_gives_none_and_valid_json():
    confusion = ConfusionMatrix(2)
    confusion.update(torch.tensor([0, 1]), torch.tensor([255, 255]))
    figures = confusion.compute({0: "a", 1: "b"})
    assert figures["mean_iou"] is None and figures["pixel_accuracy"] is None
    assert json.loads(json.dumps(figures, allow_nan=False))["per_class"]["a"]["frequency"] is None


def test_classes_with_the_same_name_are_both_listed():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]))
    per_class = confusion.compute({0: "door", 1: "door", 2: "wall"})["per_class"]
    assert list(per_class) == ["door (0)", "door (1)", "wall"]
    assert math.isclose(per_class["door (1)"]["iou"], 0.5)


def test_reduce_alone_changes_nothing():
    confusion = ConfusionMatrix(2)
    confusion.update(torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert confusion.reduce().matrix.tolist() == [[1, 1], [0, 0]]


def test_ids_beyond_32_bits_are_no_other_ids():
    confusion = ConfusionMatrix(3)
    with pytest.raises(InputError, match="4294967298"):
        confusion.update(torch.zeros(2, dtype=torch.long), torch.tensor([1, 2**32 + 2]))
    assert not confusion.matrix.any()
