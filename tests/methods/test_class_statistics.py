"""What becomes of each class's pseudo-labels: by loops, over processes, and where a class starves."""

import numpy as np
import pytest
import torch

from corrmatch_hf.methods import CorrMatch, CorrMatchOptions, GateMatch, GateMatchOptions
from corrmatch_hf.methods.class_statistics import STEP, ClassStatistics, starving_classes, untaught_classes

from .tiny import tiny_model


def maps(seed, classes=4, shape=(3, 17, 22)):
    rng = np.random.default_rng(seed)
    draw = lambda low: torch.from_numpy(rng.integers(low, classes, shape))  # noqa: E731
    return {
        "labels": draw(0),
        "confidence": torch.from_numpy(rng.random(shape)).float(),
        "kept": torch.from_numpy(rng.random(shape) < 0.6),
        "valid": torch.from_numpy(rng.random(shape) < 0.8),
        "propagated": (draw(0), torch.from_numpy(rng.random(shape) < 0.9)),
        "truth": draw(-1),
    }


def test_the_figures_by_loops():
    statistics, parts = ClassStatistics(4), [maps(0), maps(1)]
    for part in parts:
        statistics.observe(**part)
        statistics.observe_labeled(torch.where(part["truth"] < 0, 255, part["truth"]))
    found, totals = statistics.read()
    for c in range(4):
        seen, confidences, kept, after, right, right_after = 0, [], 0, 0, [], []
        pixels = labeled = own = 0
        for part in parts:
            after_labels, after_counts = part["propagated"]
            for place in np.ndindex(part["labels"].shape):
                if place[1] % STEP or place[2] % STEP:
                    continue
                truth = int(part["truth"][place])
                labeled += truth >= 0
                own += truth == c
                if not part["valid"][place]:
                    continue
                pixels += 1
                if after_labels[place] == c and after_counts[place] and truth >= 0:
                    right_after.append(truth == c)
                if part["labels"][place] != c:
                    continue
                seen += 1
                confidences.append(float(part["confidence"][place]))
                kept += bool(part["kept"][place])
                after += bool(after_counts[place])
                if part["kept"][place] and truth >= 0:
                    right.append(truth == c)
        wanted = {
            "labeled_share": own / labeled,
            "share": seen / pixels,
            "confidence": np.mean(confidences),
            "kept_ratio": kept / seen,
            "propagated_ratio": after / seen,
            "accuracy": np.mean(right),
            "propagated_accuracy": np.mean(right_after),
        }
        assert {name: values[c] for name, values in found.items()} == pytest.approx(wanted, abs=1e-4)
    assert totals.keys() == {"pseudo_label_accuracy", "propagated_accuracy"}
    assert statistics.read() == ({}, {})  # since the last call


def test_counters_of_a_checkpoint_go_on_exactly():
    whole, resumed = ClassStatistics(4), ClassStatistics(4)
    whole.observe(**maps(0))
    resumed.restore(whole.counts(), torch.device("cpu"))
    for statistics in (whole, resumed):
        statistics.observe(**maps(1))
    assert whole.read() == resumed.read()
    resumed.restore([[1, 2]], torch.device("cpu"))  # of another version
    assert resumed.read() == ({}, {})


def test_a_class_that_pseudo_labels_nearly_lack_starves():
    row = {
        "labeled_share": [0.6, 0.3999, 0.0001],
        "share": [0.9, 0.1, 0.0],
        "kept_ratio": [0.9, 0.01, None],
    }
    assert starving_classes([row]) == {
        1: pytest.approx((0.3999, 0.00123), abs=1e-4)
    }  # 2 is too rare to judge
    assert starving_classes([row | {"propagated_ratio": [0.9, 0.9, None]}]) == {}
    assert starving_classes([]) == {} and untaught_classes([]) == untaught_classes([row]) == []
    earlier, newest = row | {"taught": [0, 0, 1]}, row | {"taught": [1, 0, 1]}
    assert untaught_classes([earlier, newest]) == [1] and starving_classes([earlier, newest]) == {}


@pytest.mark.parametrize("method, options", [
    (CorrMatch, CorrMatchOptions(threshold_update="per_class")),
    (GateMatch, GateMatchOptions(threshold="class_mean")),
])  # fmt: skip
def test_what_is_set_already_is_not_advised(method, options):
    assert method(tiny_model()).advice_for_starving.startswith("--threshold")
    assert method(tiny_model(), options).advice_for_starving.startswith("more labelled photos")
