import re

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor
from corrmatch_hf.errors import InputError
from corrmatch_hf.publish import write_run_card

RUN = {
    "method": "corrmatch",
    "encoder_name": "resnet50",
    "output_stride": 16,
    "dataset": "street photos",
    "id2label": {0: "sky", 1: "road | lane"},
}
METRICS = {
    "mean_iou": 0.5123,
    "mean_iou_all_classes": 0.25615,
    "mean_accuracy": 0.6,
    "pixel_accuracy": 0.9,
    "per_class": {
        "sky": {"iou": 0.5123, "accuracy": 0.6, "frequency": 1.0},
        "road | lane": {"iou": None, "accuracy": None, "frequency": 0.0},
    },
    "num_images": 7,
}


def test_front_matter_is_what_the_hub_reads(tmp_path):
    path = write_run_card(tmp_path, run=RUN | {"dataset_id": "user/street"}, metrics=METRICS)
    assert path == tmp_path / "README.md"
    data = ModelCard.load(path).data
    assert data.library_name == "transformers" and data.pipeline_tag == "image-segmentation"
    assert data.license == "apache-2.0" and data.datasets == ["user/street"]
    assert data.tags == ["semantic-segmentation", "semi-supervised", "corrmatch", "timm"]
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == (
        "mean_iou",
        0.5123,
        "user/street",
    )


def test_a_card_of_the_fewest_facts_makes_nothing_up(tmp_path):
    text = write_run_card(tmp_path, run=RUN).read_text(encoding="utf-8")
    assert "DeepLabV3+" in text and "`resnet50` at output stride 16" in text and "`corrmatch`" in text
    assert "None" not in text
    for absent in ("Results", "Pictures", "Options", "Labelled", "model-index", "metrics:", "datasets:"):
        assert absent not in text


def test_facts_and_figures_stand_in_their_tables(tmp_path):
    run = RUN | {"labeled_images": 23, "unlabeled_images": 344, "seed": 1234567, "parameters": 40_345_678}
    run["reference"] = "[A paper](https://example.org)."
    text = write_run_card(
        tmp_path, run=run, metrics=METRICS | {"step": 90}, best={"step": 80, "mean_iou": 0.7}
    ).read_text(encoding="utf-8")
    for line in (
        "| Labelled images | 23 |",
        "| Unlabelled images | 344 |",
        "| Seed | 1234567 |",
        "| Classes | sky, road \\| lane |",
        "| Mean IoU over the classes present | 51.23 |",
        "| sky | 51.23 | 60.00 | 100.00 |",
        "| road \\| lane | – | – | 0.00 |",
    ):
        assert line in text.splitlines(), line
    assert "On 7 images, after step 90" in text and "70.00 after step 80" in text
    assert "40,345,678 parameters" in text and "[A paper](https://example.org)" in text


def test_options_come_back_exactly(tmp_path):
    options = {
        "learning_rate": 1e-3,
        "scale": (0.5, 2.0),
        "window": None,
        "name": "caf\u00e9",
        "folder": tmp_path,
    }
    text = write_run_card(tmp_path, run=RUN, options=options).read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(.*?)```", text, re.S).group(1)
    assert yaml.safe_load(block) == {**options, "scale": [0.5, 2.0], "folder": str(tmp_path)}


def test_pictures_are_shown_and_must_be_there(tmp_path):
    with pytest.raises(InputError, match=r"curves\.png"):
        write_run_card(tmp_path, run=RUN, pictures={"curves.png": "Training curves"})
    (tmp_path / "curves.png").write_bytes(b"png")
    text = write_run_card(tmp_path, run=RUN, pictures={"curves.png": "Training curves"}).read_text(
        encoding="utf-8"
    )
    assert "![Training curves](curves.png)" in text


def test_missing_facts_are_named(tmp_path):
    with pytest.raises(InputError, match="encoder_name, dataset"):
        write_run_card(tmp_path, run={k: v for k, v in RUN.items() if k not in ("encoder_name", "dataset")})


def test_the_metrics_of_an_unlabelled_set_do_not_break_the_card(tmp_path):
    metrics = METRICS | {"mean_iou": None, "pixel_accuracy": None}
    text = write_run_card(tmp_path, run=RUN, metrics=metrics).read_text(encoding="utf-8")
    assert "model-index" not in text and "| Pixel accuracy | – |" in text


def test_the_snippet_runs(tmp_path, monkeypatch, capsys):
    """The code of the card, as a reader would run it."""
    torch.manual_seed(0)
    config = CorrMatchConfig(
        encoder_name="test_resnet",
        id2label={0: "sky", 1: "road"},
        aspp_channels=16,
        decoder_channels=16,
        correlation_head=False,
    )
    CorrMatchForSegmentation(config).save_pretrained(tmp_path / "run")
    CorrMatchImageProcessor().save_pretrained(tmp_path / "run")
    Image.new("RGB", (40, 30), (90, 120, 200)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    path = write_run_card("run", run=RUN)
    code = re.search(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S).group(1)
    exec(compile(code, "card", "exec"), {})
    shares = re.findall(r"^(?:sky|road): ([\d.]+)%$", capsys.readouterr().out, re.M)
    assert sum(map(float, shares)) == pytest.approx(100, abs=0.2)
