"""From a dataset on the Hub to a model on the Hub, with the commands of the README."""

import io
import json

import numpy as np
import pytest
import timm
import torch
from datasets import Dataset, DatasetDict, Features, Image
from huggingface_hub import ModelCard
from PIL import Image as PIL
from safetensors.torch import save

from corrmatch_hf import CorrMatchForSegmentation
from corrmatch_hf.commands import run
from corrmatch_hf.data.sources.synthetic import synthetic_semi_dataset

from .loopback_hub import TOKEN

pytestmark = pytest.mark.usefixtures("online_datasets")

OPTIONS = [
    "--encoder_name", "test_resnet", "--aspp_channels", "8", "--low_level_channels", "8", "--decoder_channels", "8",
    "--correlation_channels", "8", "--crop_size", "33", "--per_device_batch_size", "2", "--max_steps", "3",
    "--logging_steps", "1", "--labeled_count", "4", "--dataset_name", "user/scenes", "--method", "corrmatch",
]  # fmt: skip


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


@pytest.fixture
def train(on_the_hub, tmp_path, capfd):
    """Trains into a folder of that name: the exit status, what was printed, the folder."""

    def train(name, *options):
        try:
            status = run("train", [*OPTIONS, *options, "--output_dir", str(tmp_path / name)])
        except SystemExit as stopped:
            print(stopped.code)
            status = 1
        printed = capfd.readouterr()
        return status, printed.out + printed.err, tmp_path / name

    return train


def test_a_run_from_a_streamed_dataset_ends_in_a_model_on_the_hub(hub, on_the_hub, train):
    status, printed, output = train("run", "--streaming", "--push_to_hub", "--hub_model_id", "user/model")
    assert status == 0 and "published: " in printed
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
    assert TOKEN.encode() not in everything and TOKEN not in printed

    loaded, trained = (CorrMatchForSegmentation.from_pretrained(name) for name in ("user/model", output))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), trained.parameters(), strict=True))
    image = np.asarray(PIL.open(output / "samples" / "1.jpg"), dtype=float)
    truth = np.asarray(on_the_hub.read_labeled(on_the_hub.validation[0])[0], dtype=float)
    assert image.shape == truth.shape and np.abs(image - truth).mean() < 8, "JPEG of a validation photo"


def test_every_save_is_published_to_the_branch_and_changes_nothing_in_the_training(hub, train):
    push = ["--push_to_hub", "--hub_model_id", "user/model", "--hub_revision", "nightly", "--hub_private"]
    push += ["--hub_strategy", "every_save", "--hub_license", "mit"]
    options = ["--save_steps", "1", "--save_inference_only"]
    (status, printed, pushed), (_, _, plain) = train("pushed", *options, *push), train("plain", *options)
    assert status == 0 and "published" in printed
    assert hub.messages("user/model") == [
        "initial commit", *(f"corrmatch on user/scenes, {step} steps" for step in (1, 2, 3)),
    ]  # fmt: skip
    assert hub.repositories["model", "user/model"].private
    assert hub.files("user/model").keys() == {".gitattributes"}  # nothing on the main branch
    config = json.loads(hub.files("user/model", "nightly")["config.json"])
    assert config["correlation_head"] is False
    assert (plain / "model.safetensors").read_bytes() == (pushed / "model.safetensors").read_bytes()


def test_a_failed_upload_costs_nothing_and_can_be_repeated(hub, train):
    hub.fail["/user/model/commit/"] = 403
    status, printed, output = train("run", "--push_to_hub", "--hub_model_id", "user/model", "--hub_private")
    assert status == 1 and "trained and saved, but not published" in printed
    command = f"corrmatch push {output} user/model --private"
    assert command in printed and TOKEN not in printed
    assert (output / "model.safetensors").is_file() and (output / "metrics.json").is_file()

    hub.fail.clear()
    assert run("push", command.split()[2:]) == 0
    assert hub.files("user/model")["model.safetensors"] == (output / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--hub_model_id", "user/model", "--hub_license", "gpl-99"], ["license"]),
        (["--hub_model_id", "stranger/model"], ["stranger/model", "no right to write"]),
    ],
)
def test_what_cannot_be_published_is_found_before_the_first_step(options, found, train):
    status, printed, output = train("run", "--push_to_hub", "--encoder_weights", "none", *options)
    assert status == 1 and all(words in printed for words in found)
    assert "Traceback" not in printed and not (output / "training_log.jsonl").exists()
