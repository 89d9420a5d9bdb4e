"""Outputs that are not numbers never become figures, masks or files."""

import shutil

import pytest
import torch
from PIL import Image
from transformers import pipeline

from corrmatch_hf import CorrMatchForSegmentation
from corrmatch_hf.commands import run
from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation import evaluate_segmentation
from corrmatch_hf.evaluation.feature_quality import feature_quality
from corrmatch_hf.hub.handler import EndpointHandler

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


@pytest.fixture(scope="module", params=[float("nan"), float("inf")], ids=["nan", "inf"])
def broken_model(request, saved_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken") / "model"
    shutil.copytree(saved_model, folder)
    model = CorrMatchForSegmentation.from_pretrained(folder)
    with torch.no_grad():
        list(model.decoder.parameters())[-1][1] = request.param  # of the classifier
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (40, 30), (90, 120, 30)).save(path)
    return path


def test_no_mask_is_written_from_broken_weights(broken_model, photo, tmp_path, capsys):
    output = tmp_path / "out"
    assert run("predict", [str(photo), "--model", broken_model, "--output_dir", str(output)]) == 1
    assert f"The model's outputs for {photo} are not finite" in capsys.readouterr().err
    assert not list(output.glob("*"))


@pytest.mark.parametrize(("form", "name"), [("onnx", "model.onnx"), ("torch", "model.pt2")])
def test_broken_weights_are_not_exported(broken_model, tmp_path, capsys, form, name):
    output = tmp_path / name
    assert run("export", ["--model", broken_model, "--format", form, "--output", str(output)]) == 1
    assert "are not finite: its weights are corrupt" in capsys.readouterr().err
    assert not output.exists()


def test_an_endpoint_and_a_pipeline_refuse_broken_weights(broken_model, photo):
    with pytest.raises(ValueError, match='outputs for "inputs" are not finite'):
        EndpointHandler(broken_model)({"inputs": photo.read_bytes()})
    with pytest.raises(ValueError, match="outputs are not finite"):
        pipeline("image-segmentation", model=broken_model)(str(photo))
