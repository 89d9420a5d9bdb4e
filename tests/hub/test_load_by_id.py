"""A model on the Hub, loaded by its id by people who have this package and by people who have never heard of it."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from corrmatch_hf import CorrMatchForSegmentation, CorrMatchImageProcessor
from corrmatch_hf.errors import InputError
from corrmatch_hf.hub.load import load_saved

from .conftest import tiny_model
from .loopback_hub import OTHER_TOKEN

SMALL_VIT = {"depth": 4, "embed_dim": 48, "num_heads": 2}
SMALL_SWIN = {"depths": (2, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 2, 2)}
# Encoders with everything that gets lost on the way: tables that are computed and not saved (Swin's and two kinds for
# rotary positions), registers (DINOv3 has four), dilation, norms.
MODELS = {
    "plain": {},
    "swin": {
        "encoder_name": "swin_tiny_patch4_window7_224",
        "encoder_kwargs": SMALL_SWIN,
        "output_stride": 32,
    },
    "dilated": {"encoder_name": "test_efficientnet", "output_stride": 8, "correlation_position": "aspp"},
    "convnext": {"encoder_name": "test_convnext", "output_stride": 32, "correlation_head": False},
    "dinov3": {
        "encoder_name": "vit_small_patch16_dinov3",
        "encoder_kwargs": SMALL_VIT,
        "output_stride": None,
        "decoder": "dpt",
    },
    "eva": {
        "encoder_name": "eva02_tiny_patch14_224",
        "encoder_kwargs": SMALL_VIT,
        "output_stride": None,
        "decoder": "linear",
    },
}

LOAD = """
import copy, json, sys, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
folder, bare, *names = sys.argv[1:]
trust = {"trust_remote_code": True} if bare == "bare" else {}
images = torch.load(f"{folder}/images.pt")
photo = Image.open(f"{folder}/photo.png")
for name in names:
    revision = {"revision": name.split("@")[1]} if "@" in name else {}
    id = name.split("@")[0]
    processor = AutoImageProcessor.from_pretrained(id, **trust, **revision)
    model = AutoModelForSemanticSegmentation.from_pretrained(id, **trust, **revision)
    assert type(model).__name__ == "CorrMatchForSegmentation" and not model.training
    with torch.no_grad():
        # Copied: weights mapped from a file lie at odd addresses, where some processors round otherwise.
        torch.save(copy.deepcopy(model)(images).logits, f"{folder}/{id.split('/')[-1]}.pt")
        from_processor = model(**processor(images=photo, return_tensors="pt"))
    pipe = pipeline("image-segmentation", model=id, **trust, **revision)
    size = [photo.size[::-1]]
    label_map = processor.post_process_semantic_segmentation(from_processor, target_sizes=size)[0]
    for part in pipe(photo):
        expected = label_map == model.config.label2id[part["label"]]
        assert torch.equal(torch.tensor(list(part["mask"].getdata())).view(size[0]) == 255, expected), part
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


@pytest.mark.parametrize("who", ["bare", "with the package"])
def test_every_kind_of_model_gives_the_same_logits_bit_for_bit(who, hub, work, run_client):
    expected, images = {}, torch.load(work / "images.pt")
    for name, options in MODELS.items():
        model = tiny_model(**options)
        model.push_to_hub(name)
        CorrMatchImageProcessor().push_to_hub(name)
        with torch.no_grad():
            expected[name] = model(images).logits
    hub.requests.clear()
    script = LOAD if who == "bare" else "from corrmatch_hf import CorrMatchForSegmentation\n" + LOAD
    result = run_client(script, str(work), who, *(f"user/{name}" for name in MODELS), bare=who == "bare")
    for name, logits in expected.items():
        assert torch.equal(torch.load(work / f"{name}.pt"), logits), name
    assert "Do you wish to run the custom code" not in result.stdout
    assert not [path for _, path in hub.requests if "timm" in path]  # the encoder is part of the weights


def test_a_branch_holds_another_model(hub, api, work, run_client):
    main, other = tiny_model(), tiny_model(decoder_channels=24)
    main.push_to_hub("model")
    CorrMatchImageProcessor().push_to_hub("model")
    api.create_branch("user/model", branch="wide")
    other.push_to_hub("model", revision="wide")
    run_client(LOAD, str(work), "bare", "user/model@wide", bare=True)
    with torch.no_grad():
        assert torch.equal(torch.load(work / "model.pt"), other(torch.load(work / "images.pt")).logits)
    assert CorrMatchForSegmentation.from_pretrained("user/model").config.decoder_channels == 16
    assert (
        CorrMatchForSegmentation.from_pretrained("user/model", revision="wide").config.decoder_channels == 24
    )


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
