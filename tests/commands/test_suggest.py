"""The command in this process, with a tiny model of random weights."""

import json

import pytest

from corrmatch_hf.commands import run, suggest
from corrmatch_hf.data import load_semi_dataset
from corrmatch_hf.errors import InputError

from ..conftest import write_synthetic
from .test_predict import write_photo


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    pytest.importorskip("sklearn")
    root = tmp_path_factory.mktemp("pool")
    write_synthetic(root, labeled=8, validation=1)
    return root


def chosen(output) -> list[str]:
    return [line.rsplit("/", 1)[1] for line in (output / "list.txt").read_text().splitlines()]


def test_list_sheet_and_polygons_of_the_chosen_photos(photos, saved_model, tmp_path, capsys):
    folder = photos / "train" / "images"
    command = ["--model", str(saved_model), "--photos", str(folder), "--count", "3"]
    assert run("suggest", [*command, "--output_dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    names = chosen(tmp_path / "out")
    assert len(set(names)) == 3 and "8 photos looked at" in printed
    assert all(name in printed for name in names)
    assert (tmp_path / "out" / "contact_sheet.jpg").stat().st_size > 5000
    assert sorted(p.name for p in (tmp_path / "out" / "labelme").glob("*.png")) == sorted(names)
    for name in names:
        content = json.loads((tmp_path / "out" / "labelme" / name).with_suffix(".json").read_text())
        assert content["imagePath"] == name and content["shapes"]
    assert run("import", [str(tmp_path / "out" / "labelme"), str(tmp_path / "again")]) == 0

    # The same again, and refused where corrections may lie.
    suggest.main([*command, "--output_dir", str(tmp_path / "twice"), "--save_as", "coco"])
    assert chosen(tmp_path / "twice") == names
    assert (tmp_path / "twice" / "coco" / "annotations.json").is_file()
    with pytest.raises(InputError, match="may hold corrections"):
        suggest.main([*command, "--output_dir", str(tmp_path / "out")])


def test_the_list_is_one_that_training_reads(photos, saved_model, tmp_path):
    command = ["--model", str(saved_model), "--photos", str(photos / "train" / "images"), "--count", "2"]
    suggest.main([*command, "--output_dir", str(tmp_path), "--save_as", "none"])
    data = load_semi_dataset(data_dir=str(photos), labeled_list=str(tmp_path / "list.txt"))
    assert [file.rsplit("/", 1)[1] for file in data.labeled["file"]] == chosen(tmp_path)
    assert len(data.unlabeled) == 6


@pytest.mark.parametrize("kind", ["list", "folder of masks"])
def test_labelled_photos_are_left_out(kind, photos, saved_model, tmp_path, capsys):
    labeled = tmp_path / "labeled"
    if kind == "list":
        lines = [f"train/images/{i}.png train/masks/{i}.png\n" for i in range(4)]
        labeled.write_text("".join([*lines, "elsewhere/images/5.png\n"]))
    else:
        labeled.mkdir()
        for i in range(4):
            write_photo(labeled / f"{i}_mask.png")
    command = ["--model", str(saved_model), "--photos", str(photos / "train" / "images"), "--count", "9"]
    options = ["--labeled", str(labeled), "--save_as", "none", "--output_dir", str(tmp_path / "out")]
    suggest.main([*command, *options])
    assert set(chosen(tmp_path / "out")) == {"4.png", "5.png", "6.png", "7.png"}
    assert "--count 9 is more than there are" in capsys.readouterr().out


def test_an_unreadable_photo_is_told_after_the_others_are_done(photos, saved_model, tmp_path):
    bad = tmp_path / "broken.jpg"
    bad.write_bytes(b"not a photo")
    command = ["--model", str(saved_model), "--photos", str(bad), str(photos / "train" / "images")]
    with pytest.raises(InputError, match=r"broken\.jpg"):
        suggest.main([*command, "--count", "2", "--output_dir", str(tmp_path / "out")])
    assert len(chosen(tmp_path / "out")) == 2


def test_what_cannot_be_used_is_told(photos, saved_model, tmp_path, capsys):
    folder = photos / "train" / "images"
    command = ["--model", str(saved_model), "--photos", str(folder), "--output_dir", str(tmp_path)]
    with pytest.raises(InputError, match="All 8 photos"):
        suggest.main([*command, "--labeled", str(folder)])
    with pytest.raises(InputError, match="does not exist"):
        suggest.main([*command, "--labeled", str(tmp_path / "gone.txt")])
    with pytest.raises(InputError, match="--rare_power is 3"):
        suggest.main([*command, "--rare_power", "3"])
