"""A new model starts from timm's weights, which timm fetches by their name."""

import pytest
import timm
import torch
from safetensors.torch import save

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation

from .conftest import tiny_model


def test_encoder_weights_come_by_name_and_the_model_records_it(hub):
    torch.manual_seed(3)
    donor = timm.create_model("test_resnet.r160_in1k", pretrained=False)
    hub.add(
        "timm/test_resnet.r160_in1k", {"model.safetensors": save(donor.state_dict()), "config.json": b"{}"}
    )
    config = CorrMatchConfig(encoder_name="test_resnet", num_labels=3)
    model = CorrMatchForSegmentation.from_encoder_pretrained(config)
    weights = donor.state_dict()
    body = model.encoder.body.state_dict()
    assert body and all(torch.equal(value, weights[key]) for key, value in body.items())
    assert model.config.encoder_origin == "timm/test_resnet.r160_in1k"
    assert any("timm/test_resnet.r160_in1k/resolve" in path for _, path in hub.requests)


def test_weights_that_cannot_be_had_are_named(hub):
    config = CorrMatchConfig(encoder_name="test_resnet", num_labels=3)
    with pytest.raises(ValueError, match="'test_resnet' could not be downloaded from the Hub"):
        CorrMatchForSegmentation.from_encoder_pretrained(config)


def test_a_trained_model_never_asks_for_them_again(hub, tmp_path):
    model = tiny_model(encoder_origin="timm/test_resnet.r160_in1k")
    model.save_pretrained(tmp_path)
    hub.requests.clear()
    loaded = CorrMatchForSegmentation.from_pretrained(tmp_path)
    assert loaded.config.encoder_origin == "timm/test_resnet.r160_in1k" and not hub.requests
