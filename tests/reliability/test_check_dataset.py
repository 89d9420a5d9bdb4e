"""`corrmatch check`: everything that is wrong with a dataset, counted by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corrmatch_hf.commands import run
from corrmatch_hf.data import load_semi_dataset, synthetic_semi_dataset
from corrmatch_hf.data.check import check_dataset, scan_dataset
from corrmatch_hf.data.check_report import format_report
from corrmatch_hf.errors import InputError

from ..data.pictures_on_disk import write_mask, write_photo
from ..data.test_training_set import streamed
from .bad_pictures import NAMES, bomb, cut_jpeg, load, put, write_dataset


@pytest.fixture
def root(tmp_path):
    root = write_dataset(tmp_path / "my set")
    (root / "id2label.json").write_text(json.dumps(NAMES))
    return root


def test_a_good_dataset(root):
    report = scan_dataset(load(root), crop_size=40)
    assert report.refused == [] and report.leaks == {} and report.never_labeled == []
    assert {name: (p.images, p.read, p.width, p.height) for name, p in report.parts.items()} == {
        "labelled": (4, 4, (48, 48, 48), (36, 36, 36)),
        "unlabelled": (4, 4, (48, 48, 48), (36, 36, 36)),
        "validation": (2, 2, (48, 48, 48), (36, 36, 36)),
    }
    assert [p.smaller_than_crop for p in report.parts.values()] == [4, 4, 2]
    assert [p.smaller_than_crop for p in scan_dataset(load(root), crop_size=36).parts.values()] == [0, 0, 0]
    assert report.parts["unlabelled"].masks is None
    masks = report.parts["labelled"].masks
    assert masks.pixels == [4 * 12 * 36] * 4 and masks.images == [4] * 4 and masks.ignored == 0
    assert not any(masks.odd.values()) and masks.unknown_ids == {}


def test_figures_are_those_of_the_masks_themselves(root):
    rng = np.random.default_rng(0)
    for path in (root / "train/masks").iterdir():
        Image.fromarray(rng.choice([0, 1, 1, 2, 255], (36, 48)).astype(np.uint8)).save(path)
    write_photo(root / "train/images/000.png", size=(100, 20))
    write_mask(root / "train/masks/000.png", [0, 2, 255], size=(100, 20))
    report = scan_dataset(load(root))
    everything = [np.asarray(Image.open(p)) for p in (root / "train/masks").iterdir()]
    masks = report.parts["labelled"].masks
    assert masks.pixels == [int(sum((m == i).sum() for m in everything)) for i in range(4)]
    assert masks.images == [int(sum((m == i).any() for m in everything)) for i in range(4)]
    assert masks.ignored == sum((m == 255).sum() for m in everything)
    assert report.never_labeled == ["c"]
    assert report.parts["labelled"].width == (48, 48, 100) and report.parts["labelled"].height == (20, 36, 36)


@pytest.fixture
def spoiled(root):
    """Two bad photos, four bad masks, two bad unlabelled photos and a bad validation mask; and what is only odd."""
    for i in range(10, 20):
        shutil.copy(root / "train/masks/000.png", root / f"train/masks/{i:03d}.png")
        write_photo(root / f"train/images/{i:03d}.png", i)
    cut_jpeg(root / "train/images/001.png")
    put(root / "train/images/002.png", b"")
    write_mask(root / "train/masks/010.png", [0, 1, 7])
    write_mask(root / "train/masks/011.png", [0, 9, 7])
    write_mask(root / "train/masks/012.png", [0, 1], size=(47, 36))
    put(root / "train/masks/013.png", b"no picture")
    bomb(root / "unlabeled/200.png", 12000)
    put(root / "unlabeled/201.png", b"")
    write_mask(root / "validation/masks/100.png", [200])
    # odd, but training would take them
    write_mask(root / "train/masks/014.png", [2])
    write_mask(root / "train/masks/015.png", [255])
    Image.new("L", (48, 36), 1).save(put(root / "train/masks/016.jpg", b""), quality=95)
    ids = np.asarray(Image.open(root / "train/masks/017.png"))
    Image.fromarray(np.repeat(ids[..., None], 3, 2)).save(root / "train/masks/017.png")
    shutil.copy(root / "train/images/018.png", root / "validation/images/101.png")
    return root


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_everything_wrong_is_reported_and_nothing_stops_the_scan(spoiled):
    report = scan_dataset(load(spoiled))
    bad = {name: sorted(Path(f).stem for f in part.bad) for name, part in report.parts.items()}
    assert bad == {
        "labelled": ["001", "002", "010", "011", "012", "013"],
        "unlabelled": ["200", "201"],
        "validation": ["100"],
    }
    masks = {name: part.masks for name, part in report.parts.items() if part.masks}
    unknown = {Path(f).stem: ids for f, ids in masks["labelled"].unknown_ids.items()}
    assert unknown == {"010": [7], "011": [7, 9]}
    assert list(masks["validation"].unknown_ids.values()) == [[200]]
    odd = {kind: sorted(Path(f).stem for f in files) for kind, files in masks["labelled"].odd.items()}
    assert odd == {"one_class": ["014", "016"], "all_ignored": ["015"], "jpeg": ["016"], "colored": ["017"]}
    assert {Path(a).stem: Path(b).stem for a, b in report.leaks.items()} == {"101": "018"}
    assert len(report.refused) == 4  # of each part the bad ones, and the mask of nothing
    text = format_report(report)
    reasons = [reason for part in report.parts.values() for reason in part.bad.values()]
    assert len([reason for reason in reasons if reason in text]) == 9 - 3, "all of them, with their reasons"
    for mask, ids in (("train/masks/010", "7"), ("train/masks/011", "7, 9"), ("validation/masks/100", "200")):
        assert f"  {spoiled}/{mask}.png: {ids}\n" in text
    assert "015.png" in text and "016.jpg" in text and "017.png" in text and "018.png" in text
    assert "Training would stop:" in text


def test_what_is_bad_is_what_training_stops_at(root):
    """One spoiled file at a time: the scan refuses if and only if the check before training does, with its words."""
    sources = {p: p.read_bytes() for p in root.rglob("*.png")}
    spoilers = [
        lambda: write_mask(root / "train/masks/001.png", [9]),
        lambda: write_mask(root / "train/masks/001.png", [255]),
        lambda: write_mask(root / "train/masks/001.png", [0, 1]),
        lambda: write_mask(root / "validation/masks/100.png", [255]),
        lambda: put(root / "unlabeled/200.png", b""),
        lambda: put(root / "validation/masks/100.png", b"text"),
        lambda: write_photo(root / "train/images/002.png", size=(3, 3)),
        lambda: write_photo(root / "unlabeled/202.png", size=(3, 3)),
    ]
    refusals = []
    for spoil in spoilers:
        spoil()
        semi = load(root)
        report = scan_dataset(semi)
        try:
            check_dataset(semi, limit=None, mask_limit=None)
            assert report.refused == []
        except InputError as error:
            assert report.refused != []
            told = [s for part in report.parts.values() for s in part.bad.values()]
            assert str(error) in told or "only the ignore value" in str(error)
        refusals.append(bool(report.refused))
        for path, content in sources.items():
            path.write_bytes(content)
    assert refusals == [True, True, False, False, True, True, True, False]


def test_limits_are_spread_and_streams_are_read_from_their_start(root):
    put(root / "train/images/001.png", b"")
    limited = scan_dataset(load(root), limit=2).parts  # first and last
    assert [(p.images, p.read) for p in limited.values()] == [(4, 2), (4, 2), (2, 2)]
    assert limited["labelled"].bad == {}
    stream = scan_dataset(streamed(load(root)), limit=3).parts["unlabelled"]
    assert (stream.images, stream.read) == (None, 3)
    stream = scan_dataset(streamed(load(root))).parts["unlabelled"]
    assert (stream.images, stream.read) == (4, 4)


def test_the_synthetic_set():
    semi = synthetic_semi_dataset(labeled=5, unlabeled=6, validation=3, image_size=40)
    report = scan_dataset(semi)
    assert report.refused == [] and report.leaks == {}
    assert sum(report.parts["labelled"].masks.pixels) == sum(
        np.asarray(row["label"]).size for row in semi.labeled
    )


def test_the_command_prints_and_writes_its_report(spoiled, tmp_path, monkeypatch, capsys):
    output = tmp_path / "new/report.json"
    args = ["--data_dir", str(spoiled), "--crop_size", "40", "--output", str(output)]
    with pytest.warns(Image.DecompressionBombWarning):
        assert exit_status(*args) == 1
    shown = capsys.readouterr().out
    assert "6 of 14 labelled images cannot be used" in shown and f"written to {output}" in shown
    report = json.loads(output.read_text(encoding="utf-8"))
    assert len(report["parts"]["labelled"]["bad"]) == 6 and report["crop_size"] == 40
    assert report["parts"]["unlabelled"]["smaller_than_crop"] == 2
    assert exit_status("--limit", "0") == 1
    assert capsys.readouterr().err.startswith("error: --limit is 0")
    assert exit_status("--output", str(tmp_path)) == 1
    assert capsys.readouterr().err.endswith("is a folder; give a file name.\n")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_without_a_list_of_classes_a_broken_mask_does_not_stop_it(spoiled):
    (spoiled / "id2label.json").unlink()
    with pytest.raises(InputError, match=r"The masks hold the values .*200 in .*\.png"):  # no plausible class
        load_semi_dataset(data_dir=str(spoiled))
    report = scan_dataset(load_semi_dataset(data_dir=str(spoiled), num_labels=4))
    assert any("013" in file for file in report.parts["labelled"].bad)


def exit_status(*args: str) -> int:
    return run("check", args)


def test_its_exit_status(root, capsys):
    assert exit_status("--data_dir", str(root)) == 0
    assert "Nothing that would stop training was found." in capsys.readouterr().out
    put(root / "unlabeled/201.png", b"")
    assert exit_status("--data_dir", str(root)) == 1
    assert "Bad unlabelled images (1):" in capsys.readouterr().out
    shutil.rmtree(root / "train/masks")
    assert exit_status("--data_dir", str(root)) == 1
    assert capsys.readouterr().err.startswith("error: No training image has a mask")


@pytest.mark.parametrize("options", [
    ["--ignore_index", str(value)] for value in (0, 1, 3, 4, -1, -100, 254, 2**31 - 1, -(2**31), 2**31, 2**40)
] + [["--num_labels", str(value)] for value in (1, 4, 5, 300, 2**17)] + [
    ["--reduce_labels"], ["--labeled_count", "1"], ["--labeled_count", "9999"], ["--id2label", '{"0": null, "1": "b"}'],
    ["--id2label", '{"0": "a"}'], ["--label_colors", "[[0, 0, 0]]"], ["--validation_split", "no"],
    ["--train_split", "no"],
])  # fmt: skip
def test_its_verdict_is_that_of_training_with_the_same_options(options, root, tmp_path, monkeypatch, capsys):
    """Training may stop earlier, with one of the reasons."""
    from corrmatch_hf.training.trainer import SemiSupervisedTrainer

    monkeypatch.setattr(
        SemiSupervisedTrainer,
        "train",
        lambda self: {"warned": check_dataset(self.data, on_bad_sample="error")},
    )
    data = [
        "--data_dir",
        str(root),
        *([] if "--labeled_count" in options else ["--labeled_count", "2"]),
        *options,
    ]
    checked = exit_status(*data)
    said = capsys.readouterr()
    small = [
        "--encoder_name",
        "test_resnet",
        "--encoder_weights",
        "none",
        "--max_steps",
        "1",
        "--crop_size",
        "33",
    ]
    trained = run("train", [*data, *small, "--output_dir", str(tmp_path / "run")])
    assert checked == trained, (said, capsys.readouterr())
    assert "Traceback" not in said.err


def test_camvid(shared_dir):
    camvid = shared_dir / "data/camvid"
    lists = {f"{kind}_list": str(camvid / f"splits/1_16/{kind}.txt") for kind in ("labeled", "unlabeled")}
    report = scan_dataset(load_semi_dataset(data_dir=str(camvid), **lists), limit=23)
    assert report.refused == []
    masks = report.parts["labelled"].masks
    assert sum(masks.pixels) + masks.ignored == 23 * 480 * 360
    assert report.id2label[8] == "car" and masks.images[0] == 23
