import json
import re

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

import corrmatch_hf
from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor
from corrmatch_hf.errors import InputError
from corrmatch_hf.hub.model_card import card_for_push, record_for_push, write_run_card
from corrmatch_hf.text import library_versions

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
    (tmp_path / "samples").mkdir()
    for file in ("samples/1.jpg", "samples/1_overlay.png"):
        (tmp_path / file).write_bytes(b"picture")
    run = RUN | {
        "dataset_id": "user/street", "dataset_split": "test", "base_model": "timm/resnet50.a1_in1k",
        "license": "cc-by-4.0", "hub_model_id": "user/streets-model",
    }  # fmt: skip
    samples = [{"image": "samples/1.jpg", "output": "samples/1_overlay.png", "title": "A street"}]
    path = write_run_card(tmp_path, run=run, metrics=METRICS, samples=samples)
    assert path == tmp_path / "README.md"
    card = ModelCard.load(path)
    data = card.data
    assert data.library_name == "transformers" and data.pipeline_tag == "image-segmentation"
    assert data.license == "cc-by-4.0" and data.datasets == ["user/street"]
    assert data.base_model == "timm/resnet50.a1_in1k" and data.metrics == ["mean_iou", "pixel_accuracy"]
    assert data.tags == [
        "image-segmentation", "semantic-segmentation", "semi-supervised", "corrmatch", "timm", "custom_code",
    ]  # fmt: skip
    output = {"url": "samples/1_overlay.png"}
    assert data.widget == [{"src": "samples/1.jpg", "example_title": "A street", "output": output}]
    first, second = data.eval_results
    assert (first.metric_type, first.metric_value, first.dataset_type) == ("mean_iou", 0.5123, "user/street")
    assert (second.metric_type, second.metric_value, second.dataset_split) == ("pixel_accuracy", 0.9, "test")
    assert data.model_name == "streets-model" and card.text.lstrip().startswith("# streets-model")


def test_a_card_of_the_fewest_facts_makes_nothing_up(tmp_path):
    path = write_run_card(tmp_path, run={k: RUN[k] for k in ("encoder_name", "output_stride", "id2label")})
    text = path.read_text(encoding="utf-8")
    assert "DeepLabV3+ on the timm encoder `resnet50` at output stride 16" in text
    assert "None" not in text and "No licence is stated" in text
    for absent in (
        "## Results", "## Pictures", "## Training", "options", "Labelled", "model-index", "metrics:", "datasets:",
        "license:", "{%", "CorrMatch:", "widget", "base_model",
    ):  # fmt: skip
        assert absent not in text, absent


@pytest.mark.parametrize("decoder, name", [("dpt", "DPT"), ("linear", "a linear decoder")])
def test_the_decoder_is_the_models(tmp_path, decoder, name):
    config = CorrMatchConfig(
        encoder_name="test_vit",
        encoder_kwargs={"depth": 4},
        num_labels=3,
        decoder_type=decoder,
        decoder_channels=8,
    )
    CorrMatchForSegmentation(config).save_pretrained(tmp_path)
    assert f"{name} on the timm encoder `test_vit` at output stride 16" in card_for_push(
        tmp_path, "user/name"
    )


def test_facts_and_figures_stand_in_their_tables(tmp_path):
    run = RUN | {"labeled_images": 23, "unlabeled_images": 344, "seed": 1234567, "parameters": 40_345_678}
    run |= {"steps": 90, "processes": 2, "seconds": 3725.4}
    text = write_run_card(
        tmp_path, run=run, metrics=METRICS | {"step": 90}, best={"step": 80, "mean_iou": 0.7}
    ).read_text(encoding="utf-8")
    for line in (
        "| Labelled images | 23 |",
        "| Unlabelled images | 344 |",
        "| Seed | 1234567 |",
        "| Processes | 2 |",
        "| Training time | 1 h 2 min |",
        "Classes: sky, road \\| lane.",
        "| Mean IoU over the classes present | 51.23 |",
        "| sky | 51.23 | 60.00 | 100.00 |",
        "| road \\| lane | - | - | 0.00 |",
    ):
        assert line in text.splitlines(), line
    assert "On 7 evaluation images of street photos, after step 90" in text
    assert "40,345,678 parameters" in text and "(https://arxiv.org/abs/2306.04300)" in text


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
    assert yaml.safe_load(block) == {**options, "scale": [0.5, 2.0], "folder": f".../{tmp_path.name}"}


def test_pictures_are_shown_and_must_be_there(tmp_path):
    with pytest.raises(InputError, match=r"curves\.png"):
        write_run_card(tmp_path, run=RUN, pictures={"curves.png": "Training curves"})
    (tmp_path / "curves.png").write_bytes(b"png")
    text = write_run_card(tmp_path, run=RUN, pictures={"curves.png": "Training curves"}).read_text(
        encoding="utf-8"
    )
    assert "![Training curves](curves.png)" in text


def test_missing_facts_are_named(tmp_path):
    with pytest.raises(InputError, match="encoder_name, id2label"):
        write_run_card(tmp_path, run={k: v for k, v in RUN.items() if k not in ("encoder_name", "id2label")})


def test_the_metrics_of_an_unlabelled_set_do_not_break_the_card(tmp_path):
    metrics = METRICS | {"mean_iou": None, "pixel_accuracy": None}
    text = write_run_card(tmp_path, run=RUN, metrics=metrics).read_text(encoding="utf-8")
    assert "model-index" not in text and "| Pixel accuracy | - |" in text


def saved_model(folder, correlation_head=True):
    torch.manual_seed(0)
    config = CorrMatchConfig(
        encoder_name="test_resnet",
        id2label={0: "sky", 1: "road"},
        aspp_channels=16,
        decoder_channels=16,
        correlation_channels=16,
        correlation_head=correlation_head,
    )
    model = CorrMatchForSegmentation(config)
    model.save_pretrained(folder)
    CorrMatchImageProcessor().save_pretrained(folder)
    return model


def test_the_three_snippets_run(tmp_path, monkeypatch, capsys):
    """The code of the card, as a reader would run it; the first two find the same."""
    saved_model(tmp_path / 'my "run"')
    Image.new("RGB", (40, 30), (90, 120, 200)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    text = write_run_card('my "run"', run=RUN).read_text(encoding="utf-8")
    pipeline, auto, package = re.findall(r"```python\n(.*?)```", text, re.S)
    printed = []
    for code in (pipeline, auto):
        exec(compile(code, "card", "exec"), {})
        printed.append(re.findall(r"^(sky|road): ([\d.]+)%$", capsys.readouterr().out, re.M))
    assert printed[0] == printed[1]
    assert sum(float(share) for _, share in printed[0]) == pytest.approx(100, abs=0.2)
    exec(compile(package, "card", "exec"), {})
    with Image.open("photo_overlay.jpg") as picture:
        assert picture.width >= 40 and picture.height >= 30


def limits(path):
    return path.read_text(encoding="utf-8").split("## Limits")[1].split("##")[0]


def test_limits_follow_from_the_facts(tmp_path):
    per_class = METRICS["per_class"] | {"tree": {"iou": 0.1, "accuracy": 0.2, "frequency": 0.3}}
    run = RUN | {"labeled_images": 23, "seed": 7, "steps": 90, "inference_only": True}
    path = write_run_card(tmp_path, run=run, metrics=METRICS | {"step": 90, "per_class": per_class})
    for words in (
        "2 classes",
        "the masks of 23 images of street photos",
        "show no road \\| lane: the accuracy for this class is unknown",
        "the weakest is tree, with an IoU of 10.00, the strongest sky, with 51.23",
        "last step; they were not selected",
        "a single run with seed 7",
        "correlation head is left out",
    ):
        assert words in limits(path), words


def test_limits_say_nothing_that_is_not_known(tmp_path):
    text = limits(write_run_card(tmp_path, run=RUN))
    assert "have not been evaluated" in text
    for words in ("seed", "step", "weakest", "show no", "correlation head"):
        assert words not in text, words


@pytest.mark.parametrize(
    ("step", "best_step", "words"),
    [
        (90, 80, "not selected on the evaluation images. The best mean IoU of the run's evaluations was 70.00, after"),
        (90, 90, "not selected on the evaluation images.\n"),
        (80, 80, "which are therefore optimistic"),
    ],
)  # fmt: skip
def test_the_card_states_whether_the_weights_were_selected_by_their_result(step, best_step, words, tmp_path):
    best = {"step": best_step, "mean_iou": 0.7}
    path = write_run_card(tmp_path, run=RUN | {"steps": 90}, metrics=METRICS | {"step": step}, best=best)
    assert words in limits(path) and limits(path).count("- The weights ") == 1


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ({"encoder_origin": "none"}, "started from random weights"),
        ({"encoder_origin": "own.pth"}, "started from the weights of `own.pth`"),
        (
            {"encoder_origin": "timm/a.b", "base_model": "timm/a.b"},
            "[timm/a.b](https://huggingface.co/timm/a.b)",
        ),
        ({}, None),
    ],
)
def test_the_card_names_the_encoders_initial_weights_if_known(origin, words, tmp_path):
    text = write_run_card(tmp_path, run=RUN | origin).read_text(encoding="utf-8")
    assert words in text if words else "The encoder started" not in text


def test_a_supervised_model_is_not_called_semi_supervised(tmp_path):
    path = write_run_card(tmp_path, run=RUN | {"method": "supervised"})
    assert "semi-supervised" not in ModelCard.load(path).data.tags
    assert "sun2024corrmatch" not in path.read_text(encoding="utf-8")


def test_names_that_mean_something_in_markdown_are_shown_as_they_are(tmp_path):
    run = RUN | {"id2label": {i: f"c{i}" for i in range(11)} | {1: "<b> [x](y) *z* ~~s~~ _u_ a_b"}}
    text = write_run_card(tmp_path, run=run).read_text(encoding="utf-8")
    assert r"c0, \<b> \[x\](y) \*z\* \~\~s\~\~ \_u\_ a_b, c2, c3" in text and "c9, c10." in text


def test_command_and_versions_are_those_of_the_run(tmp_path):
    versions = library_versions()
    path = write_run_card(tmp_path, run=RUN, command="python train.py --seed 3", versions=versions)
    text = path.read_text(encoding="utf-8")
    assert "```bash\npython train.py --seed 3\n```" in text
    assert f"torch {versions['torch']}" in text and torch.__version__.startswith(versions["torch"])
    assert f"version={{{versions['corrmatch_hf']}}}" in text


def test_no_secret_and_no_folder_above_the_last_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "my-own-secret")
    monkeypatch.setenv("HOME", "/home/ada")
    token = "hf_" + "AbC123" * 5
    options = {
        "dataset_name": f"https://user:{token}@host/data",
        "note": "my-own-secret",
        "data_dir": "/home/ada/photos",
        "others": ["/home/adam/x", "/mnt/acme corp/y"],
        "encoder_weights": "C:\\Users\\ada\\weights.pth",
        "extra_unlabeled": "s3://bucket/pool?X-Amz-Credential=abc&X-Amz-Signature=def",
        "keys": "AKIAABCDEFGHIJKLMNOP",
    }
    run = RUN | {"dataset": "my-own-secret"}
    write_run_card(
        tmp_path,
        run=run,
        options=options,
        command=f"train --token {token} --out=/home/ada --data_dir '/mnt/acme corp/y'",
    )
    for file in ("README.md", "run.json"):
        text = (tmp_path / file).read_text(encoding="utf-8")
        assert token not in text and "my-own-secret" not in text
        assert not re.search("ada|adam|acme|Users|AKIA|=abc|=def", text)
        for part in (".../photos", ".../x", ".../y", ".../weights.pth", "--data_dir .../y", "--out=~", "***"):
            assert part in text
        assert "https://***@host/data" in text
        assert "s3://bucket/pool?X-Amz-Credential=***&X-Amz-Signature=***" in text


def test_a_name_of_a_class_cannot_change_the_card(tmp_path):
    names = {0: "sky\n# Title", 1: "\x1b[2Jcar", 2: "\u202eroad", 3: "a | b", 4: "&lt;script&gt;"}
    metrics = METRICS | {"per_class": dict.fromkeys(names.values(), METRICS["per_class"]["sky"])}
    path = write_run_card(tmp_path, run=RUN | {"id2label": names}, metrics=metrics)
    for text in (path.read_text(encoding="utf-8"), (tmp_path / "run.json").read_text(encoding="utf-8")):
        assert "\n# Title" not in text and "\x1b" not in text and "\u202e" not in text
    assert r"| \\u202eroad |" in path.read_text(encoding="utf-8")


def test_the_facts_lie_beside_the_card(tmp_path):
    (tmp_path / "curves.png").write_bytes(b"png")
    facts = {"metrics": METRICS, "pictures": {"curves.png": "Curves"}, "options": {"scale": (0.5, 2.0)}}
    write_run_card(tmp_path, run=RUN, **facts)
    read = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert read["metrics"] == METRICS and read["options"] == {"scale": [0.5, 2.0]}
    assert read["run"] == RUN | {"id2label": {"0": "sky", "1": "road | lane"}}


def test_versions_are_those_of_what_is_installed():
    versions = library_versions()
    assert versions["torch"] == torch.__version__.split("+")[0] or versions["torch"] == torch.__version__
    assert versions["timm"] == timm.__version__ and versions["corrmatch_hf"] == corrmatch_hf.__version__


# ------------------------------------------------------------------------------------------------- for the Hub


def test_a_pushed_card_carries_the_models_id(tmp_path):
    write_run_card(tmp_path, run=RUN, metrics=METRICS)
    text = card_for_push(tmp_path, "user/streets")
    assert text.count('"user/streets"') == 3 and str(tmp_path) not in text and "# streets\n" in text
    assert ModelCard(text).data.model_name == "streets"
    write_run_card(tmp_path, run=RUN | {"hub_model_id": "user/streets"}, metrics=METRICS)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == text


def test_a_card_from_the_hub_can_be_published_under_another_id(tmp_path):
    write_run_card(tmp_path, run=RUN, metrics=METRICS)
    first = card_for_push(tmp_path, "user/streets")
    (tmp_path / "README.md").write_text(first, encoding="utf-8")
    second = card_for_push(tmp_path, "ada/alleys")
    assert "streets" not in second and "# alleys\n" in second and second.count('"ada/alleys"') == 3


def test_an_edited_card_is_kept_but_for_the_name_in_its_snippets(tmp_path):
    path = write_run_card(tmp_path, run=RUN)
    path.write_text(path.read_text(encoding="utf-8").replace("## Limits", "## My limits"), encoding="utf-8")
    text = card_for_push(tmp_path, "user/streets")
    assert "## My limits" in text and text.count('"user/streets"') == 3
    assert text.replace('"user/streets"', json.dumps(str(tmp_path))) == path.read_text(encoding="utf-8")


def test_an_edited_card_survives_the_next_run_into_its_folder(tmp_path):
    path = write_run_card(tmp_path, run=RUN)
    write_run_card(tmp_path, run=RUN | {"seed": 5})
    assert "| Seed | 5 |" in path.read_text(encoding="utf-8")
    path.write_text(path.read_text(encoding="utf-8") + "\nMy own words.\n", encoding="utf-8")
    write_run_card(tmp_path, run=RUN | {"seed": 6})
    assert path.read_text(encoding="utf-8").endswith("\nMy own words.\n")
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["run"]["seed"] == 6


def test_the_published_record_agrees_with_the_card(tmp_path):
    saved_model(tmp_path)
    write_run_card(tmp_path, run=RUN | {"parameters": 1, "inference_only": False})
    run = json.loads(record_for_push(tmp_path, "user/streets", inference_only=True))["run"]
    assert run["inference_only"] is True and run["hub_model_id"] == "user/streets" and run["parameters"] > 1
    (tmp_path / "run.json").unlink()
    assert record_for_push(tmp_path, "user/streets") is None


def test_a_card_that_somebody_wrote_is_kept_as_it_is(tmp_path):
    (tmp_path / "README.md").write_text("# Only mine\n")
    assert card_for_push(tmp_path, "user/streets") == "# Only mine\n"


def test_pictures_that_were_removed_are_not_published(tmp_path):
    (tmp_path / "samples").mkdir()
    for file in ("curves.png", "predictions.png", "samples/1.jpg", "samples/1_overlay.png"):
        (tmp_path / file).write_bytes(b"picture")
    pictures = {"curves.png": "Curves", "predictions.png": "Photos of my street"}
    samples = [{"image": "samples/1.jpg", "output": "samples/1_overlay.png", "title": "A street"}]
    write_run_card(tmp_path, run=RUN, pictures=pictures, samples=samples)
    for file in ("predictions.png", "samples/1.jpg"):
        (tmp_path / file).unlink()
    card = ModelCard(card_for_push(tmp_path, "user/streets"))
    assert "curves.png" in card.text and "predictions.png" not in card.text and "widget" not in card.data


def test_a_model_without_a_card_gets_one_from_its_config(tmp_path):
    model = saved_model(tmp_path)
    text = card_for_push(tmp_path, "user/streets")
    assert (
        "`test_resnet` at output stride 16" in text and "2 classes" in text and "Classes: sky, road." in text
    )
    assert f"({sum(p.numel() for p in model.parameters()):,} parameters)" in text
    for words in ("trained with", "## Training", "seed", "not been evaluated", "left out", "run.json"):
        assert words not in text, words
    assert ModelCard(text).data.pipeline_tag == "image-segmentation"


@pytest.mark.parametrize("recorded", [True, False])
def test_the_card_mentions_a_missing_correlation_head(recorded, tmp_path):
    model = saved_model(tmp_path)
    if recorded:
        write_run_card(tmp_path, run=RUN | {"parameters": sum(p.numel() for p in model.parameters())})
    text = card_for_push(tmp_path, "user/streets", inference_only=True)
    rest = sum(p.numel() for part in (model.encoder, model.decoder) for p in part.parameters())
    assert "correlation head is left out" in text and f"({rest:,} parameters)" in text


def test_a_model_that_never_had_a_correlation_head_does_not_miss_it(tmp_path):
    saved_model(tmp_path, correlation_head=False)
    assert "left out" not in card_for_push(tmp_path, "user/streets", inference_only=True)


@pytest.mark.parametrize("text", ["{", "[]", '{"run": {}}', '{"run": null}'])
def test_a_corrupt_record_is_named(text, tmp_path):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json does not contain the facts of a run"):
        card_for_push(tmp_path, "user/streets")


def test_a_converted_model_names_its_checkpoint(tmp_path):
    model = saved_model(tmp_path)
    model.config.converted_from = {"file": "corrmatch_r101.pth", "sha256": "ab12"}
    model.save_pretrained(tmp_path)
    text = card_for_push(tmp_path, "user/streets")
    assert "from the checkpoint `corrmatch_r101.pth` (SHA-256 `ab12`)" in text
    assert "that of the checkpoint applies" in text
    model.config.converted_from["key"] = "model_ema"
    model.save_pretrained(tmp_path)
    assert "converted from `model_ema` in the checkpoint `corr" in card_for_push(tmp_path, "user/streets")


def test_a_foreign_model_needs_a_card_of_its_own(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "segformer"}')
    with pytest.raises(InputError, match=r"'segformer'.*write a README\.md"):
        card_for_push(tmp_path, "user/streets")
