"""What was loaded once works without a network."""

import pytest
import torch
from huggingface_hub import constants

from corrmatch_hf.errors import InputError
from corrmatch_hf.hub.load import load_saved

from .conftest import tiny_model

LOAD = """
import sys, torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
processor = AutoImageProcessor.from_pretrained("user/model", trust_remote_code=True)
model = AutoModelForSemanticSegmentation.from_pretrained("user/model", trust_remote_code=True)
with torch.no_grad():
    torch.manual_seed(0)
    print("sum", model(**processor(torch.rand(3, 40, 50), do_rescale=False, return_tensors="pt")).logits.sum().item())
"""


def test_model_processor_and_code_come_from_the_cache(hub, saved, run_client):
    hub.add("user/model", {path.name: path.read_bytes() for path in saved.iterdir()})
    online = run_client(LOAD, bare=True).stdout
    hub.fail["/"] = 503
    hub.requests.clear()
    offline = run_client(LOAD, bare=True, HF_HUB_OFFLINE="1").stdout
    assert "sum" in online and offline == online
    assert not hub.requests


def test_this_package_needs_no_network_either(hub, saved, monkeypatch):
    hub.add("user/model", {path.name: path.read_bytes() for path in saved.iterdir()})
    load_saved("user/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    weights = load_saved("user/model")[0].state_dict()
    assert all(torch.equal(weights[key], value) for key, value in tiny_model().state_dict().items())
    with pytest.raises(InputError, match="user/other"):
        load_saved("user/other")
    assert not hub.requests
