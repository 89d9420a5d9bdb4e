"""A model on the Hub, loaded by its id by people who have this package and by people who have never heard of it."""

import copy
import re

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from corrmatch_hf import CorrMatchForSegmentation, CorrMatchImageProcessor
from corrmatch_hf.errors import InputError
from corrmatch_hf.hub.load import load_saved
from corrmatch_hf.hub.push import push_folder

from .conftest import tiny_model
from .loopback_hub import OTHER_TOKEN

SMALL_VIT = {"depth": 4, "embed_dim": 48, "num_heads": 2}
SMALL_SWIN = {"depths": (2, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 2, 2)}
# Encoders with everything that gets lost on the way: tables that are computed and not saved (Swin's and two kinds for
# rotary positions), registers (DINOv3 has four), dilation, norms.
MODELS = {
    "plain": {"correlation_position": "aspp"},
    "swin": {
        "encoder_name": "swin_tiny_patch4_window7_224",
        "encoder_kwargs": SMALL_SWIN,
        "output_stride": 32,
    },
    "dilated": {"encoder_name": "test_efficientnet", "output_stride": 8, "correlation_head": False},
    "dinov3": {
        "encoder_name": "vit_small_patch16_dinov3",
        "encoder_kwargs": SMALL_VIT,
        "output_stride": None,
        "decoder_type": "dpt",
    },
    "eva": {
        "encoder_name": "eva02_tiny_patch14_224",
        "encoder_kwargs": SMALL_VIT,
        "output_stride": None,
        "decoder_type": "linear",
    },
}

# The logits of every model; the first also as a pipeline.
STRANGER = """
import copy, sys, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
folder, *names = sys.argv[1:]
images = torch.load(f"{folder}/images.pt")
for name in names:
    id, _, branch = name.partition("@")
    model = AutoModelForSemanticSegmentation.from_pretrained(id, trust_remote_code=True, revision=branch or "main")
    assert type(model).__name__ == "CorrMatchForSegmentation" and not model.training
    with torch.no_grad():
        # Copied: weights mapped from a file lie at odd addresses, where some processors round otherwise.
        torch.save(copy.deepcopy(model)(images).logits, f"{folder}/{name.split('/')[1]}.pt")

photo = Image.open(f"{folder}/photo.png")
pipe = pipeline("image-segmentation", model=names[0], trust_remote_code=True, revision="main")
processor = AutoImageProcessor.from_pretrained(names[0], trust_remote_code=True, revision="main")
with torch.no_grad():
    output = pipe.model(**processor(images=photo, return_tensors="pt"))
size = photo.size[::-1]
label_map = processor.post_process_semantic_segmentation(output, target_sizes=[size])[0]
for part in pipe(photo):
    expected = label_map == pipe.model.config.label2id[part["label"]]
    assert torch.equal(torch.tensor(list(part["mask"].getdata())).view(size) == 255, expected), part
    assert part["mask"].size == photo.size and bool(expected.any())
"""


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    torch.save(torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(1)), folder / "images.pt")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder


def test_every_kind_of_model_gives_the_same_logits_bit_for_bit(hub, api, work, run_as_stranger):
    """With this package and without, on a branch, and without a network from then on."""
    models = {name: tiny_model(**options) for name, options in MODELS.items()}
    models["plain"].save_pretrained(work / "plain")
    CorrMatchImageProcessor().save_pretrained(work / "plain")
    push_folder(work / "plain", "user/plain")
    for name in models.keys() - {"plain"}:
        models[name].push_to_hub(name)
    models["plain@wide"] = tiny_model(decoder_channels=24)
    api.create_branch("user/plain", branch="wide")
    models["plain@wide"].push_to_hub("plain", revision="wide")
    hub.requests.clear()

    images = torch.load(work / "images.pt")
    with torch.no_grad():
        expected = {name: model(images).logits for name, model in models.items()}
        for name, logits in expected.items():
            id, _, branch = name.partition("@")
            loaded = CorrMatchForSegmentation.from_pretrained(f"user/{id}", revision=branch or "main")
            assert torch.equal(copy.deepcopy(loaded)(images).logits, logits), name
    printed = run_as_stranger(STRANGER, str(work), *(f"user/{name}" for name in models))
    for name, logits in expected.items():
        assert torch.equal(torch.load(work / f"{name}.pt"), logits), name
    assert (
        "Do you wish to run the custom code" not in printed and "new version of the following" not in printed
    )
    assert not [path for _, path in hub.requests if "timm" in path]  # the encoder is part of the weights

    hub.fail["/"] = 503
    hub.requests.clear()
    (work / "plain.pt").unlink()
    run_as_stranger(STRANGER, str(work), "user/plain", HF_HUB_OFFLINE="1")
    assert torch.equal(torch.load(work / "plain.pt"), expected["plain"]) and not hub.requests


def test_a_model_in_the_cache_needs_no_network(hub, saved, monkeypatch):
    hub.add("user/model", {path.name: path.read_bytes() for path in saved.iterdir()})
    load_saved("user/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    weights = load_saved("user/model")[0].state_dict()
    assert all(torch.equal(weights[key], value) for key, value in tiny_model().state_dict().items())
    with pytest.raises(InputError, match="user/other"):
        load_saved("user/other")
    assert not hub.requests


def test_private_models_open_to_their_owner_alone(hub, monkeypatch):
    tiny_model().push_to_hub("secret", private=True)
    CorrMatchImageProcessor().push_to_hub("secret")
    model, processor = load_saved("user/secret")
    assert model.config.num_labels == 3 and type(processor) is CorrMatchImageProcessor
    for token in (OTHER_TOKEN, "hf_wrong"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(InputError, match="user/secret") as raised:
            load_saved("user/secret")
        assert token not in str(raised.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="user/secret"):
        load_saved("user/secret")


def test_a_model_that_is_not_there_is_named(hub):
    with pytest.raises(InputError, match=re.escape("'user/nothing'")):
        load_saved("user/nothing")
