import evaluate
import numpy as np
import pytest

from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation import MeanIoU


def slow_mean_iou(predictions, references, num_labels, ignore_index, reduce_labels):
    """Every image and class by boolean masks, areas summed over images."""
    intersection, union, truth = (np.zeros(num_labels) for _ in range(3))
    for prediction, reference in zip(predictions, references, strict=True):
        reference = reference.astype(int).copy()
        if reduce_labels:
            ignored = (reference == 0) | (reference == ignore_index)
            reference -= 1
            reference[ignored] = ignore_index
        counted = reference != ignore_index
        for c in range(num_labels):
            p, t = (prediction == c) & counted, (reference == c) & counted
            intersection[c] += (p & t).sum()
            union[c] += (p | t).sum()
            truth[c] += t.sum()
    with np.errstate(invalid="ignore"):
        return intersection / union, intersection / truth, intersection.sum() / truth.sum()


@pytest.mark.parametrize("reduce_labels", [False, True])
@pytest.mark.parametrize("ignore_index", [255, -1])
def test_values_equal_the_slow_version(ignore_index, reduce_labels):
    rng = np.random.default_rng(0)
    sizes = [(7, 9), (5, 4), (7, 9)]  # sizes may differ
    references = [rng.integers(0, 4, size) for size in sizes]
    for reference in references:
        reference[rng.random(reference.shape) < 0.2] = ignore_index
    predictions = [rng.integers(0, 5, size) for size in sizes]
    values = MeanIoU().compute(
        predictions=predictions,
        references=references,
        num_labels=6,
        ignore_index=ignore_index,
        reduce_labels=reduce_labels,
    )
    iou, accuracy, overall = slow_mean_iou(predictions, references, 6, ignore_index, reduce_labels)
    np.testing.assert_allclose(values["per_category_iou"], iou)
    np.testing.assert_allclose(values["per_category_accuracy"], accuracy)
    assert values["mean_iou"] == pytest.approx(np.nanmean(iou))
    assert values["mean_accuracy"] == pytest.approx(np.nanmean(accuracy))
    assert values["overall_accuracy"] == pytest.approx(overall)
    assert np.isnan(values["per_category_iou"][5])


def test_added_in_parts_it_gives_the_same():
    rng = np.random.default_rng(1)
    maps = rng.integers(0, 3, (4, 6, 6)).astype(np.uint8)
    masks = rng.integers(0, 3, (4, 6, 6)).astype(np.uint8)
    metric = MeanIoU()
    assert isinstance(metric, evaluate.Metric)
    metric.add_batch(predictions=maps[:3], references=masks[:3])
    metric.add(prediction=maps[3].tolist(), reference=masks[3].tolist())
    parts = metric.compute(num_labels=3)
    whole = MeanIoU().compute(predictions=list(maps), references=list(masks), num_labels=3)
    assert parts["mean_iou"] == whole["mean_iou"]


def test_wrong_ids_and_a_missing_class_count_are_named():
    maps = [np.zeros((2, 2), int)]
    with pytest.raises(InputError, match="id 3"):
        MeanIoU().compute(predictions=maps, references=[np.full((2, 2), 3)], num_labels=2)
    with pytest.raises(InputError, match="num_labels"):
        MeanIoU().compute(predictions=maps, references=maps)
