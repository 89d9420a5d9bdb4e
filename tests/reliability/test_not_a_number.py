"""Outputs that are not numbers never become figures."""

import pytest
import torch

from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation import evaluate_segmentation
from corrmatch_hf.evaluation.feature_quality import feature_quality

from ..evaluation.test_evaluate_segmentation import OPTIONS, make_samples, tiny_model


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_of_broken_weights_is_not_evaluated(value):
    model = tiny_model()
    with torch.no_grad():
        model.classifier.weight[0, 0, 0, 0] = value
    with pytest.raises(InputError, match=r"outputs for photo_1.jpg, photo_2.jpg are not finite"):
        evaluate_segmentation(model, make_samples()[1:], batch_size=2, **OPTIONS)


def test_the_picture_whose_outputs_overflow_is_named():
    model = tiny_model().eval()
    samples = make_samples()
    samples[2]["image"].zero_()
    samples[2]["image"][:, 4, 4] = 255
    forward = model.forward

    def overflowing(pixel_values):
        output = forward(pixel_values)
        dark = pixel_values.mean((1, 2, 3)) < -1
        output.logits[dark] = torch.inf
        return output

    model.forward = overflowing
    with pytest.raises(InputError, match=r"outputs for photo_2.jpg are not finite"):
        evaluate_segmentation(model, samples, batch_size=2, **OPTIONS)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_not_compared(value):
    pytest.importorskip("sklearn")
    features = torch.randn(20, 4)
    features[3, 1] = value
    with pytest.raises(InputError, match="not all finite"):
        feature_quality(features, torch.arange(20) % 2)
