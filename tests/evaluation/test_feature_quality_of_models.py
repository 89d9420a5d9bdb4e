"""Cluster scores of a model's features over a set of images: the sample of pixels, and what is measured on it."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from corrmatch_hf.commands.evaluate import main
from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation.feature_quality import PixelSample, feature_quality, model_feature_quality
from corrmatch_hf.methods import METHODS, method_class
from corrmatch_hf.model import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor

from ..two_processes import in_two_processes

pytest.importorskip("sklearn")

NORMALISATION = {"image_mean": (0.5, 0.4, 0.3), "image_std": (0.2, 0.3, 0.4)}
SCORES = {"silhouette", "calinski_harabasz", "davies_bouldin"}


def tiny_model(**config):
    torch.manual_seed(0)
    config = {"encoder_name": "test_resnet", "output_stride": 16, "aspp_channels": 16, "decoder_channels": 16,
              "low_level_channels": 8, "correlation_channels": 16, "num_labels": 3} | config  # fmt: skip
    return CorrMatchForSegmentation(CorrMatchConfig(**config))


def samples(count=5):
    """Images of several sizes whose colour tells the class a little, with a part that does not count."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(count):
        height, width = 40 + 8 * (i % 3), 64
        label = torch.randint(0, 3, (height // 8, width // 8), generator=generator)
        label = label.repeat_interleave(8, 0).repeat_interleave(8, 1)
        image = torch.randint(0, 156, (3, height, width), generator=generator) + 40 * label
        label[:5] = 255
        made.append({"image": image.to(torch.uint8), "label": label, "file": f"{i}.png"})
    return made


def all_features(model, rows):
    """Every labelled pixel of every image, one at a time."""
    mean, std = (torch.tensor(NORMALISATION[key])[:, None, None] for key in ("image_mean", "image_std"))
    features, labels = [], []
    for row in rows:
        with torch.no_grad():
            encoded = model.eval().encode(((row["image"] / 255 - mean) / std)[None])
            fused = model.decode(encoded).fused[0]
        height, width = fused.shape[1:]
        for y in range(height):
            for x in range(width):
                at = int(y * row["label"].shape[0] / height), int(x * row["label"].shape[1] / width)
                if row["label"][at] != 255:
                    features.append(fused[:, y, x])
                    labels.append(row["label"][at])
    return torch.stack(features), torch.stack(labels)


def test_without_a_limit_it_is_over_all_pixels_of_all_images():
    model, rows = tiny_model().train(), samples()
    got = model_feature_quality(model, rows, **NORMALISATION)
    assert model.training and all(p.grad is None for p in model.parameters())
    features, labels = all_features(model, rows)
    assert got.pop("num_pixels") == len(labels)
    assert got == pytest.approx(feature_quality(features, labels), rel=1e-4)


def test_a_limit_leaves_a_sample_that_depends_on_the_seed_alone():
    model, rows = tiny_model(), samples()
    one, again, other = (
        model_feature_quality(model, rows, max_pixels=200, seed=seed, **NORMALISATION) for seed in (1, 1, 2)
    )
    assert one == again != other
    assert one["num_pixels"] == 200
    whole = model_feature_quality(model, rows, **NORMALISATION)
    assert one["silhouette"] == pytest.approx(whole["silhouette"], abs=0.1)


@pytest.mark.parametrize("name", METHODS)
def test_the_model_of_every_method(name):
    cls = method_class(name)
    options = {"dgcl_memory_size": 40} if name == "dgcl" else {}
    method = cls(tiny_model(correlation_head=cls.uses_correlation_head), cls.Options(**options))
    scores = model_feature_quality(method.segmentation_model, samples(2), max_pixels=100, **NORMALISATION)
    assert set(scores) == SCORES | {"num_pixels"} and np.isfinite(list(scores.values())).all()


def test_weights_of_half_precision():
    model, rows = tiny_model(), samples(2)
    exact = model_feature_quality(model, rows, **NORMALISATION)
    half = model_feature_quality(model.to(torch.bfloat16), rows, **NORMALISATION)
    assert half["silhouette"] == pytest.approx(exact["silhouette"], abs=0.02)


# -------------------------------------------------------------------------------------------------------- the sample


def pictures(sizes):
    """Features that name their image and pixel; every third pixel does not count."""
    for image, (height, width) in enumerate(sizes):
        pixel = torch.arange(height * width).view(height, width)
        features = torch.stack([torch.full_like(pixel, image), pixel]).float()
        yield image, features, pixel % 7, pixel % 3 != 0


SIZES = [(30, 40), (10, 10), (60, 50), (1, 2), (30, 40)]


def test_the_sample_is_bounded_uniform_and_of_pixels_that_count():
    taken = torch.zeros(len(SIZES))
    for seed in range(20):
        sample = PixelSample(300, seed)
        for picture in pictures(SIZES):
            sample.add(*picture)
            assert len(sample.features) <= 300
        image, pixel = sample.features.long().T
        assert len(sample.features) == 300 == len({(int(i), int(p)) for i, p in sample.features})
        assert torch.equal(sample.labels, pixel % 7) and (pixel % 3 != 0).all()
        taken += image.bincount(minlength=len(SIZES))
    counts = torch.tensor([sum(p % 3 != 0 for p in range(h * w)) for h, w in SIZES]).float()
    expected = 20 * 300 * counts / counts.sum()
    assert ((taken - expected).abs() <= 4 * expected.sqrt()).all(), (taken, expected)


def test_neither_order_nor_division_of_the_images_matters():
    whole, backwards, *parts = (PixelSample(300, 5) for _ in range(4))
    for picture in pictures(SIZES):
        whole.add(*picture)
        parts[picture[0] % 2].add(*picture)
    for picture in reversed(list(pictures(SIZES))):
        backwards.add(*picture)
    parts[0]._keep_best(*((part.numbers, part.features, part.labels) for part in parts))
    for other in (backwards, parts[0]):
        assert torch.equal(whole.features, other.features) and torch.equal(whole.labels, other.labels)


def test_images_without_a_pixel_that_counts():
    sample = PixelSample(10, 0)
    nothing = torch.zeros(4, 5, dtype=torch.bool)
    for image in range(2):
        sample.add(image, torch.randn(3, 4, 5), torch.zeros(4, 5, dtype=torch.long), nothing)
    assert len(sample.labels) == 0
    sample.add(2, torch.randn(3, 4, 5), torch.zeros(4, 5, dtype=torch.long), ~nothing)
    assert sample.features.shape == (10, 3)


# ------------------------------------------------------------------------------------------------- bad input, processes


def test_missing_requirements_and_labels_are_named(monkeypatch):
    model, rows = tiny_model(), samples(2)
    with pytest.raises(InputError, match="max_pixels is 2"):
        model_feature_quality(model, rows, max_pixels=2, **NORMALISATION)
    with pytest.raises(InputError, match=r"1\.png has no label"):
        model_feature_quality(model, [rows[0], rows[1] | {"label": None}], **NORMALISATION)
    rows = [row | {"label": torch.full_like(row["label"], 255)} for row in rows]
    with pytest.raises(InputError, match="0 pixels"):
        model_feature_quality(model, rows, **NORMALISATION)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        model_feature_quality(None, None, **NORMALISATION)


def of_process(rank):
    return model_feature_quality(
        tiny_model(), samples(), max_pixels=300, rank=rank, world_size=2, **NORMALISATION
    )


def test_two_processes_get_the_scores_of_one(tmp_path):
    one, two = in_two_processes(of_process, tmp_path)
    want = model_feature_quality(tiny_model(), samples(), max_pixels=300, **NORMALISATION)
    assert one == two == pytest.approx(want, rel=1e-5)


# -------------------------------------------------------------------------------------------------------- the command


def test_the_command_measures_features_when_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, rows = tiny_model(), samples(3)
    model.save_pretrained(tmp_path / "model")
    CorrMatchImageProcessor(**NORMALISATION).save_pretrained(tmp_path / "model")
    for split in ("train", "validation"):
        for kind, key in (("images", "image"), ("masks", "label")):
            folder = tmp_path / "data" / split / kind
            folder.mkdir(parents=True)
            for i, row in enumerate(rows):
                pixels = row[key].permute(1, 2, 0) if key == "image" else row[key]
                Image.fromarray(pixels.numpy().astype(np.uint8)).save(folder / f"{i}.png")
    command = ["--model", str(tmp_path / "model"), "--data_dir", str(tmp_path / "data"), "--num_workers", "0"]

    plain = main([*command, "--num_labels", "3"])
    assert "silhouette" not in capsys.readouterr().out and "feature_quality" not in plain
    metrics = main([*command, "--num_labels", "3", "--feature_quality"])
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written == metrics and plain == {k: v for k, v in metrics.items() if k != "feature_quality"}
    want = model_feature_quality(model, rows, **NORMALISATION)
    assert metrics["feature_quality"] == pytest.approx(want, rel=1e-4)
    line = next(line for line in printed.splitlines() if line.startswith("silhouette"))
    assert f"{want['silhouette']:.3f}" in line
    for name in ("Calinski-Harabasz", "Davies-Bouldin"):
        assert name in printed

    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        main([*command, "--num_labels", "3", "--feature_quality"])
    assert "mean IoU" not in capsys.readouterr().out, "before anything is computed"
