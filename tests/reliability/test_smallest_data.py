"""The real trainer on the least data there can be: one labelled and one unlabelled image, masks that say little.

What a run writes is strict JSON: a figure that does not exist is null, never NaN.
"""

import io
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from corrmatch_hf.data.semi_dataset import SemiDataset
from corrmatch_hf.data.sources.synthetic import synthetic_semi_dataset
from corrmatch_hf.methods import METHODS, method_class

from ..training.conftest import make_trainer, tiny_data  # noqa: F401  fixtures


def strict_json(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def assert_strict(folder):
    """metrics.json, having read every JSON file of the run strictly."""
    files = [*folder.rglob("*.json")]
    for path in files:
        strict_json(path.read_text(encoding="utf-8"))
    rows = (folder / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) >= 2 and all(strict_json(row) for row in rows)
    assert folder / "metrics.json" in files
    return strict_json((folder / "metrics.json").read_text(encoding="utf-8"))


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def rows(masks):
    """Photos of 40 x 48 pixels with these masks, or without where they are None."""
    rng = np.random.default_rng(0)
    features = {"image": datasets.Image(), "file": datasets.Value("string")}
    columns = {
        "image": [
            {"bytes": png(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)), "path": None} for _ in masks
        ],
        "file": [f"{i}.png" for i in range(len(masks))],
    }
    if masks[0] is not None:
        features["label"] = datasets.Image()
        columns["label"] = [{"bytes": png(mask), "path": f"{i}-mask.png"} for i, mask in enumerate(masks)]
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def made_of(labeled, validation, classes):
    return SemiDataset(
        rows([labeled]), rows([None]), rows([validation]), {i: f"class {i}" for i in range(classes)}
    )


def mask(value):
    return np.full((40, 48), value, np.uint8)


@pytest.fixture(scope="module")
def one_of_each():
    return synthetic_semi_dataset(labeled=1, unlabeled=1, validation=1, image_size=48)


@pytest.mark.parametrize(
    "name, options, config",
    [
        *((name, {}, {}) for name in METHODS),
        ("corrmatch", {}, {"cutmix_partner": "batch"}),
        ("fixmatch", {"teacher": "ema"}, {"ema_decay": 0.9}),
    ],
)
@pytest.mark.filterwarnings("ignore:No labelled image shows")
def test_one_labelled_and_one_unlabelled_image(make_trainer, one_of_each, name, options, config):  # noqa: F811
    if name == "dgcl":
        options = {"dgcl_memory_size": 32, "dgcl_supervised_share": 0.0}
    options = method_class(name).Options(**options)
    trainer = make_trainer(
        name, one_of_each, options, per_device_batch_size=1, max_steps=3, cutmix_probability=1.0, **config,
        report=name == "corrmatch",
    )  # fmt: skip
    result = trainer.train()
    assert result["steps"] == assert_strict(trainer.output_dir)["steps"] == 3
    assert 0 <= result["final"]["mean_iou"] <= 1


@pytest.mark.parametrize("classes", [2, 150])
@pytest.mark.filterwarnings("ignore:No labelled image shows")
def test_a_single_labelled_pixel_and_no_label_to_evaluate_on(make_trainer, classes, capsys):  # noqa: F811
    labeled = mask(255)
    labeled[7, 9] = 1
    data = made_of(labeled, mask(255), classes)
    trainer = make_trainer("corrmatch", data, per_device_batch_size=1, max_steps=2, eval_steps=1, report=True)
    result = trainer.train()
    saved = assert_strict(trainer.output_dir)
    assert len(saved["final"]["per_class"]) == classes
    for figures in (result["final"], saved["final"], saved["best"]):
        assert [figures[k] for k in ("mean_iou", "pixel_accuracy", "mean_accuracy")] == [None] * 3
        assert all(set(c.values()) == {None} for c in figures["per_class"].values())
        assert figures["mean_iou_all_classes"] == 0
    assert "mean IoU -" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:No labelled image shows")
def test_one_class_in_all_masks(make_trainer):  # noqa: F811
    data = made_of(mask(1), mask(1), 2)
    trainer = make_trainer("supervised", data, per_device_batch_size=1, max_steps=2, report=True)
    trainer.train()
    final = assert_strict(trainer.output_dir)["final"]
    absent, only = final["per_class"].values()
    assert absent["accuracy"] is None and absent["frequency"] == 0
    assert only["frequency"] == 1 and final["pixel_accuracy"] == only["accuracy"] == final["mean_accuracy"]
