"""From a dataset on the Hub to a model on the Hub, with the commands of the README."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from datasets import Dataset, DatasetDict, Features, Image
from huggingface_hub import ModelCard
from PIL import Image as PIL
from safetensors.torch import save

from corrmatch_hf import CorrMatchForSegmentation
from corrmatch_hf.data.sources.synthetic import synthetic_semi_dataset

from .loopback_hub import TOKEN

TRAIN = Path(__file__).resolve().parents[2] / "examples" / "train_semi.py"
RUN = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
OPTIONS = [
    "--encoder_name", "test_resnet", "--aspp_channels", "8", "--low_level_channels", "8", "--decoder_channels", "8",
    "--correlation_channels", "8", "--crop_size", "33", "--per_device_batch_size", "2", "--max_steps", "3",
    "--logging_steps", "1", "--labeled_count", "4",
]  # fmt: skip

LOAD = """
import sys
from PIL import Image
from transformers import pipeline
from huggingface_hub import hf_hub_download
name = "user/model"
photo = Image.open(hf_hub_download(name, "samples/1.jpg"))
segment = pipeline("image-segmentation", model=name, trust_remote_code=True)
parts = segment(photo)
assert parts and all(part["mask"].size == photo.size for part in parts)
print("labels", sorted(part["label"] for part in parts))
"""


@pytest.fixture
def on_the_hub(hub):
    """A dataset with id2label.json, and the weights of a timm encoder."""
    semi = synthetic_semi_dataset(labeled=6, unlabeled=4, validation=3, image_size=48)
    features = Features({"image": Image(), "label": Image()})

    def split(part, masks=True):
        rows = [{"image": r["image"], "label": r.get("label") if masks else None} for r in part]
        return Dataset.from_list(rows, features=features)

    unlabeled = split(semi.unlabeled, masks=False)
    splits = DatasetDict(train=split(semi.labeled), unlabeled=unlabeled, validation=split(semi.validation))
    files = {"id2label.json": json.dumps({str(i): name for i, name in semi.id2label.items()}).encode()}
    for name, rows in splits.items():
        buffer = io.BytesIO()
        rows.to_parquet(buffer)
        files[f"data/{name}-00000-of-00001.parquet"] = buffer.getvalue()
    hub.add("user/scenes", files, "dataset")
    torch.manual_seed(3)
    donor = timm.create_model("test_resnet.r160_in1k", pretrained=False)
    hub.add(
        "timm/test_resnet.r160_in1k", {"model.safetensors": save(donor.state_dict()), "config.json": b"{}"}
    )
    return semi


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_from_a_dataset_id_ends_in_a_model_that_a_stranger_loads(
    streaming, hub, on_the_hub, run_client, tmp_path
):
    output = tmp_path / "run"
    push = ["--push_to_hub", "True", "--hub_model_id", "user/model"]
    data = ["--dataset_name", "user/scenes", *(["--streaming", "True"] * streaming)]
    result = run_client(RUN, str(TRAIN), *OPTIONS, *data, *push, "--output_dir", str(output))
    assert "published: " in result.stdout
    assert hub.messages("user/model") == ["initial commit", "corrmatch on user/scenes, 3 steps"]
    files = hub.files("user/model")
    assert files["model.safetensors"] == (output / "model.safetensors").read_bytes()
    assert not [name for name in files if name.startswith(("checkpoints", "best"))]
    assert {
        "handler.py",
        "requirements.txt",
        "modeling_corrmatch.py",
        "samples/1_overlay.png",
    } <= files.keys()

    data = ModelCard(files["README.md"].decode()).data
    assert data.datasets == ["user/scenes"] and data.base_model == "timm/test_resnet.r160_in1k"
    assert data.pipeline_tag == "image-segmentation" and data.widget[0]["src"] == "samples/1.jpg"
    measured = json.loads(files["metrics.json"])["final"]["mean_iou"]
    assert data.eval_results[0].metric_value == pytest.approx(measured, abs=1e-4)
    assert b"user/model" in files["README.md"]

    written = [p for p in output.rglob("*") if p.is_file()]
    everything = b"".join([p.read_bytes() for p in written] + list(files.values()))
    assert TOKEN.encode() not in everything and TOKEN not in result.stdout + result.stderr

    names = run_client(LOAD, bare=True).stdout
    assert any(name in names for name in on_the_hub.id2label.values())
    loaded, trained = (CorrMatchForSegmentation.from_pretrained(name) for name in ("user/model", output))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), trained.parameters(), strict=True))


def test_every_save_is_published_to_the_branch(hub, on_the_hub, run_client, tmp_path):
    push = ["--push_to_hub", "True", "--hub_model_id", "user/model", "--hub_revision", "nightly"]
    push += ["--hub_private", "True", "--hub_strategy", "every_save", "--save_steps", "1"]
    data = ["--dataset_name", "user/scenes", "--save_inference_only", "True"]
    run_client(RUN, str(TRAIN), *OPTIONS, *data, *push, "--output_dir", str(tmp_path / "run"))
    assert hub.messages("user/model") == [
        "initial commit", *(f"corrmatch on user/scenes, {step} steps" for step in (1, 2, 3)),
    ]  # fmt: skip
    assert hub.repositories["model", "user/model"].private
    assert hub.files("user/model").keys() == {".gitattributes"}  # nothing on the main branch
    config = json.loads(hub.files("user/model", "nightly")["config.json"])
    assert config["correlation_head"] is False


def test_a_failed_upload_costs_nothing_and_can_be_repeated(hub, on_the_hub, run_client, tmp_path):
    output = tmp_path / "run"
    push = ["--push_to_hub", "True", "--hub_model_id", "user/model", "--hub_private", "True"]
    hub.fail["/user/model/commit/"] = 403
    result = run_client(
        RUN, str(TRAIN), *OPTIONS, "--dataset_name", "user/scenes", *push, "--output_dir", str(output), check=False
    )  # fmt: skip
    assert result.returncode == 1 and "trained and saved, but not published" in result.stderr
    command = f"corrmatch push {output} user/model --private"
    assert command in result.stderr and TOKEN not in result.stderr
    assert (output / "model.safetensors").is_file() and (output / "metrics.json").is_file()

    hub.fail.clear()
    retried = run_client(RUN, str(TRAIN.with_name("push.py")), *command.split()[2:])
    assert "published: " in retried.stdout
    assert hub.files("user/model")["model.safetensors"] == (output / "model.safetensors").read_bytes()


def test_publishing_every_save_changes_nothing_in_the_training(hub, on_the_hub, run_client, tmp_path):
    """And an upload that stops being possible half-way costs nothing but itself."""
    data = ["--dataset_name", "user/scenes", "--save_steps", "1"]
    push = ["--push_to_hub", "True", "--hub_model_id", "user/model", "--hub_strategy", "every_save"]
    run_client(RUN, str(TRAIN), *OPTIONS, *data, "--output_dir", str(tmp_path / "plain"))
    result = run_client(
        RUN,
        str(TRAIN),
        *OPTIONS,
        *data,
        *push,
        "--hub_license",
        "mit",
        "--output_dir",
        str(tmp_path / "pushed"),
    )
    assert "published" in result.stdout
    plain, pushed = (tmp_path / name / "model.safetensors" for name in ("plain", "pushed"))
    assert plain.read_bytes() == pushed.read_bytes()


def test_an_unknown_licence_is_found_before_the_first_step(hub, on_the_hub, run_client, tmp_path):
    push = ["--push_to_hub", "True", "--hub_model_id", "user/model", "--hub_license", "gpl-99"]
    output = tmp_path / "run"
    result = run_client(
        RUN,
        str(TRAIN),
        *OPTIONS,
        *push,
        "--encoder_weights",
        "none",
        "--output_dir",
        str(output),
        check=False,
    )
    assert (
        result.returncode == 1 and "license" in result.stderr and not (output / "training_log.jsonl").exists()
    )


def test_a_wrong_token_is_found_before_the_first_step(hub, on_the_hub, run_client, tmp_path):
    push = ["--push_to_hub", "True", "--hub_model_id", "stranger/model", "--encoder_weights", "none"]
    result = run_client(RUN, str(TRAIN), *OPTIONS, *push, "--output_dir", str(tmp_path / "run"), check=False)
    assert (
        result.returncode == 1 and "stranger/model" in result.stderr and "no right to write" in result.stderr
    )
    assert "Traceback" not in result.stderr and not (tmp_path / "run" / "training_log.jsonl").exists()


def test_the_samples_are_photos_of_the_validation_split(hub, on_the_hub, run_client, tmp_path):
    output = tmp_path / "run"
    data = ["--dataset_name", "user/scenes"]
    run_client(RUN, str(TRAIN), *OPTIONS, *data, "--output_dir", str(output))
    image = np.asarray(PIL.open(output / "samples" / "1.jpg"), dtype=float)
    truth = np.asarray(on_the_hub.read_labeled(on_the_hub.validation[0])[0], dtype=float)
    assert image.shape == truth.shape and np.abs(image - truth).mean() < 8  # JPEG
