"""The command, with a tiny model and three pictures."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from corrmatch_hf import CorrMatchForSegmentation, CorrMatchImageProcessor
from corrmatch_hf.commands.evaluate import main
from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation import ConfusionMatrix

from ..conftest import ID2LABEL


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """The command writes evaluation.json where it is called."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """train: one picture; validation and test: three each, of two sizes."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, sizes in {"train": [(30, 40)], "validation": [(30, 40)] * 2 + [(25, 33)]}.items():
        write_split(folder / split, sizes, rng)
    write_split(folder / "test", [(25, 33)] * 3, rng)
    (folder / "id2label.json").write_text(json.dumps(ID2LABEL))
    return folder


def write_split(folder, sizes, rng):
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for i, size in enumerate(sizes):
        mask = rng.integers(0, 2, size, dtype=np.uint8)  # no car anywhere
        mask[:3] = 255
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")


def expected_figures(saved_model, split):
    model = CorrMatchForSegmentation.from_pretrained(saved_model)
    processor = CorrMatchImageProcessor.from_pretrained(saved_model)
    confusion = ConfusionMatrix(3)
    for path in sorted((split / "images").iterdir()):
        with torch.no_grad():
            logits = model(**processor(images=Image.open(path), return_tensors="pt")).logits
        confusion.update(logits[0].argmax(0), torch.tensor(np.array(Image.open(split / "masks" / path.name))))
    return {**confusion.compute(ID2LABEL), "num_images": 3}


def test_the_command_prints_a_table_and_writes_the_figures(saved_model, photos, tmp_path, capsys):
    output = tmp_path / "new" / "metrics.json"
    main(["--model", str(saved_model), "--data_dir", str(photos), "--output", str(output)])
    assert json.loads(output.read_text()) == expected_figures(saved_model, photos / "validation")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["class", "sky", "road", "car"]
    for figure in ("mean IoU", "mean accuracy", "pixel accuracy", "images"):
        assert any(line.startswith(figure) for line in lines)


def test_what_was_assumed_about_the_data_is_told(saved_model, photos, tmp_path, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    shutil.copy(
        folder / "validation" / "masks" / "0.png", folder / "validation" / "masks" / "of_no_photo.png"
    )
    main(["--model", str(saved_model), "--data_dir", str(folder), "--num_workers", "0"])
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(told) == 1 and "of_no_photo.png" in told[0]


def test_split_and_inference_options_are_used(saved_model, photos, capsys):
    base = ["--model", str(saved_model), "--data_dir", str(photos), "--num_workers", "0"]
    test = main([*base, "--split", "test"])
    assert test["pixel_accuracy"] == expected_figures(saved_model, photos / "test")["pixel_accuracy"]
    other = main(
        [*base, "--split", "test", "--window", "16", "--stride", "8", "--scales", "0.5", "1", "--flip"]
    )
    assert other["num_images"] == 3 and other["pixel_accuracy"] != test["pixel_accuracy"]
    assert "note" not in capsys.readouterr().err


@pytest.mark.parametrize("named", ["by its name", "found", "by folders", "by a list"])
def test_a_dataset_of_the_evaluated_split_alone(saved_model, photos, tmp_path, named):
    """With the classes of the model, not those that its masks happen to hold: there is no car in them."""
    (tmp_path / "data").mkdir()
    shutil.copytree(photos / "test", tmp_path / "data" / "test")
    images, masks = tmp_path / "data" / "test" / "images", tmp_path / "data" / "test" / "masks"
    (tmp_path / "list.txt").write_text("".join(f"{images}/{i}.png {masks}/{i}.png\n" for i in range(3)))
    data = {
        "by its name": ["--data_dir", str(tmp_path / "data"), "--split", "test"],
        "found": ["--data_dir", str(tmp_path / "data")],
        "by folders": ["--validation_images", str(images), "--validation_masks", str(masks)],
        "by a list": ["--validation_list", str(tmp_path / "list.txt")],
    }[named]
    found = main(["--model", str(saved_model), "--num_workers", "0", *data])
    expected = expected_figures(saved_model, photos / "test")
    assert {found[key] == expected[key] for key in ("mean_iou", "pixel_accuracy", "num_images")} == {True}
    assert list(found["per_class"]) == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_low_precision_moves_the_figures_little(saved_model, photos):
    base = ["--model", str(saved_model), "--data_dir", str(photos), "--num_workers", "0", "--split", "test"]
    figures = main([*base, "--precision", "bf16", "--batch_size", "2"])
    expected = expected_figures(saved_model, photos / "test")["pixel_accuracy"]
    assert figures["pixel_accuracy"] == pytest.approx(expected, abs=0.05)


def test_what_does_not_fit_is_told(saved_model, photos, tmp_path, capsys):
    base = ["--data_dir", str(photos), "--num_workers", "0"]
    with pytest.raises(InputError, match=r"No segmentation model .*nowhere"):
        main([*base, "--model", str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match=r"--split.*tset"):
        main([*base, "--model", str(saved_model), "--split", "tset"])
    names = tmp_path / "names.json"
    names.write_text(json.dumps({0: "road", 1: "sky", 2: "car"}))
    main([*base, "--model", str(saved_model), "--id2label", str(names)])
    assert "note: the model was trained for ['sky', 'road', 'car']" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    (other / "id2label.json").write_text(json.dumps({0: "sky", 1: "road"}))
    with pytest.raises(
        InputError, match=r"The model has 3 classes, but .*id2label\.json names 2.*--id2label"
    ):
        main(["--data_dir", str(other), "--num_workers", "0", "--model", str(saved_model)])
    names.write_text(json.dumps({0: "sky", 1: "road"}))
    with pytest.raises(InputError, match="predicts 3 classes but the dataset has 2"):
        main([*base, "--model", str(saved_model), "--id2label", str(names)])
