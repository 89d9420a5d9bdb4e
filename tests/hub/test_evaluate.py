"""A metric from a Space agrees with this package's own."""

import pytest

METRIC = '''
"""Mean IoU, the long way round: class by class, image by image."""
import datasets
import evaluate
import numpy as np


class LongWay(evaluate.Metric):
    def _info(self):
        sequence = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))
        features = datasets.Features({"predictions": sequence, "references": sequence})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references, num_labels, ignore_index):
        ious = []
        for label in range(num_labels):
            both = either = 0
            for prediction, reference in zip(map(np.array, predictions), map(np.array, references)):
                valid = reference != ignore_index
                both += int(((prediction == label) & (reference == label) & valid).sum())
                either += int((((prediction == label) | (reference == label)) & valid).sum())
            if either:
                ious.append(both / either)
        return {"mean_iou": float(np.mean(ious))}
'''

COMPARE = """
import evaluate, numpy as np
from corrmatch_hf import MeanIoU
rng = np.random.default_rng(0)
references = [rng.integers(0, 4, (9, 12)) for _ in range(3)]
predictions = [np.where(rng.random(r.shape) < 0.6, r, rng.integers(0, 4, r.shape)) for r in references]
references[0][:3] = 255
theirs = evaluate.load("user/long_way").compute(
    predictions=predictions, references=references, num_labels=5, ignore_index=255
)
ours = MeanIoU().compute(predictions=predictions, references=references, num_labels=5, ignore_index=255)
print("values", theirs["mean_iou"], ours["mean_iou"])
"""


def test_a_metric_of_a_space_gives_the_same_figure(hub, run_client):
    hub.add("user/long_way", {"long_way.py": METRIC.encode(), "README.md": b"# Metric"}, "space")
    line = run_client(COMPARE).stdout.split("values")[1]
    theirs, ours = map(float, line.split())
    assert theirs == pytest.approx(ours, abs=1e-12) and 0.3 < ours < 0.9
