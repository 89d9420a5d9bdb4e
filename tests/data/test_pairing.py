"""Files are paired by the names people have, nothing is left out in silence, and the ambiguous is refused."""

import os

import numpy as np
import pytest
from PIL import Image

from corrmatch_hf.data import load_semi_dataset
from corrmatch_hf.data.images import suffixes
from corrmatch_hf.errors import InputError

from .pictures_on_disk import write_mask, write_photo


def pairs(semi, part="labeled"):
    rows = getattr(semi, part).with_format("arrow")[:]
    names = [column.combine_chunks() for column in (rows["file"], rows["label"])]
    masks = [cell["path"] for cell in names[1].to_pylist()]
    return {
        os.path.basename(f): os.path.basename(m) for f, m in zip(names[0].to_pylist(), masks, strict=True)
    }


@pytest.mark.parametrize(
    "photo, mask",
    [
        ("a{}.jpg", "a{}_mask.png"),
        ("a{}.jpg", "a{}.jpg.png"),
        ("a{}.jpg", "a{}-label.png"),
        ("a{}.jpg", "mask_a{}.png"),
        ("a{}_sat.jpg", "a{}_mask.png"),
        ("a{}_leftImg8bit.png", "a{}_gtFine_labelIds.png"),
        ("img {}.JPG", "img {}_seg.png"),
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_names_with_added_words(tmp_path, photo, mask, together):
    for i in range(3):
        write_photo(tmp_path / ("train" if together else "train/images") / photo.format(i), i)
        write_mask(tmp_path / ("train" if together else "train/masks") / mask.format(i), [0, 1])
    semi = load_semi_dataset(data_dir=str(tmp_path))
    assert pairs(semi) == {photo.format(i): mask.format(i) for i in range(3)}
    assert any(mask.format(0) in note for note in semi.notes)


def write_layout(tmp_path, images, masks):
    for i in range(2):
        write_photo(tmp_path / images / f"{i}.jpg", i)
        write_mask(tmp_path / masks / f"{i}.png", [0, 1])


@pytest.mark.parametrize(
    "images, masks",
    [
        ("", ""),
        ("train", "train"),
        ("train2017", "annotations/train2017"),
        ("images/train2017", "annotations/train2017"),
        ("train", "trainannot"),
        ("train", "train_labels"),
        ("ds0/img", "ds0/masks_machine"),
        ("default", "defaultannot"),
        ("leftImg8bit/train", "gtFine/train"),
    ],
)
def test_layouts_people_have(tmp_path, images, masks):
    write_layout(tmp_path, images, masks)
    assert pairs(load_semi_dataset(data_dir=str(tmp_path))) == {"0.jpg": "0.png", "1.jpg": "1.png"}


def test_validation_folders_people_have(tmp_path):
    write_layout(tmp_path, "train2017", "annotations/train2017")
    write_layout(tmp_path, "val2017", "annotations/val2017")
    assert len(load_semi_dataset(data_dir=str(tmp_path)).validation) == 2


def test_ambiguous_names_are_refused(tmp_path):
    write_photo(tmp_path / "images/a.jpg")
    for name in ("a_gtFine_labelIds.png", "a_mask.png"):
        write_mask(tmp_path / "masks" / name, [0, 1])
    with pytest.raises(InputError, match=r"a\.jpg may have 2 masks, a_gtFine_labelIds\.png, a_mask\.png"):
        load_semi_dataset(data_dir=str(tmp_path))
    for mask in (tmp_path / "masks").iterdir():
        mask.unlink()
    write_mask(tmp_path / "masks/a.png", [0, 1])
    write_photo(tmp_path / "images/a.bmp")
    with pytest.raises(InputError, match=r"a\.png may belong to .*a\.bmp or .*a\.jpg"):
        load_semi_dataset(data_dir=str(tmp_path))


def test_every_picture_that_pillow_reads_is_used_and_the_others_are_named(tmp_path):
    write_layout(tmp_path, "images", "masks")
    Image.init()
    written = 0
    for suffix in sorted(suffixes()):
        try:
            Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / "images" / f"other{suffix}")
            written += 1
        except (KeyError, OSError, ValueError):  # a format that is read, but not written
            (tmp_path / "images" / f"other{suffix}").unlink(missing_ok=True)
    (tmp_path / "images/phone.heic").write_bytes(b"x")
    (tmp_path / "images/notes.txt").write_text("no picture")
    semi = load_semi_dataset(data_dir=str(tmp_path))
    assert written > 10 and len(semi.unlabeled) == written
    assert [note for note in semi.notes if "phone.heic" in note and "notes.txt" not in note]


@pytest.mark.parametrize("part", ["train", "validation"])
def test_many_unused_files_stop(tmp_path, part):
    for split in ("train", "validation"):
        write_layout(tmp_path, f"{split}/images", f"{split}/masks")
    for i in range(3):
        write_mask(tmp_path / part / f"masks/elsewhere{i}.png", [0, 1])
    with pytest.raises(InputError, match=r"elsewhere0\.png.*--allow_unused_files"):
        load_semi_dataset(data_dir=str(tmp_path))
    semi = load_semi_dataset(data_dir=str(tmp_path), allow_unused_files=True)
    assert any("3 of the 7 files" in note for note in semi.notes)


def test_validation_photos_without_masks_count_as_unused(tmp_path):
    write_layout(tmp_path, "train/images", "train/masks")
    write_layout(tmp_path, "validation/images", "validation/masks")
    for i in range(2):
        write_photo(tmp_path / f"validation/images/more{i}.jpg")
    with pytest.raises(InputError, match=r"no mask has their name: more0\.jpg, more1\.jpg"):
        load_semi_dataset(data_dir=str(tmp_path))


def test_masks_that_are_given_up_are_told(tmp_path):
    for i in range(10):
        write_photo(tmp_path / f"images/{i}.jpg", i)
        write_mask(tmp_path / f"masks/{i}.png", [0, 1])
    semi = load_semi_dataset(data_dir=str(tmp_path), labeled_fraction=0.2)
    assert any("--labeled_fraction uses 2 of the 10 masks" in note for note in semi.notes)


def test_lists_written_on_windows_and_paths_that_do_not_exist(tmp_path):
    write_layout(tmp_path, "city/images", "city/masks")
    write_layout(tmp_path, "town/images", "town/masks")
    listed = tmp_path / "labeled.txt"
    listed.write_text("city\\images\\0.jpg\tcity\\masks\\0.png\r\n")
    semi = load_semi_dataset(data_dir=str(tmp_path), labeled_list=str(listed))
    assert pairs(semi) == {"0.jpg": "0.png"}
    listed.write_text("village/images/0.jpg\n")
    with pytest.raises(InputError, match=r"labeled\.txt, line 1 .*village"):
        load_semi_dataset(data_dir=str(tmp_path), labeled_list=str(listed))


@pytest.mark.parametrize("empty, validation", [("validation", 2), ("test", 2), ("unlabeled", 2)])
def test_an_empty_split_does_not_stop_the_others(tmp_path, empty, validation):
    for split in {"train", "validation", "test"} - {empty}:
        write_layout(tmp_path, f"{split}/images", f"{split}/masks")
    (tmp_path / empty / "images").mkdir(parents=True)
    (tmp_path / empty / "masks").mkdir()
    semi = load_semi_dataset(data_dir=str(tmp_path))
    assert len(semi.labeled) == 2 and len(semi.validation) == validation
    assert empty == "test" or any(f"split {empty!r} is left out" in note for note in semi.notes)


def test_folders_in_capital_letters(tmp_path):
    write_layout(tmp_path, "Train/Images", "Train/Masks")
    assert len(load_semi_dataset(data_dir=str(tmp_path)).labeled) == 2


def test_names_that_differ_in_capitals_or_in_the_coding_of_accents(tmp_path):
    for photo, mask in ("IMG_1.JPG", "img_1.png"), ("caf\u00e9.jpg", "cafe\u0301.png"):
        write_photo(tmp_path / "images" / photo)
        write_mask(tmp_path / "masks" / mask, [0, 1])
    assert pairs(load_semi_dataset(data_dir=str(tmp_path))) == {
        "IMG_1.JPG": "img_1.png",
        "caf\u00e9.jpg": "cafe\u0301.png",
    }


def test_masks_in_other_folders_than_their_photos_are_told(tmp_path):
    write_photo(tmp_path / "images" / "berlin" / "0.jpg")
    write_mask(tmp_path / "masks" / "0.png", [0, 1])
    with pytest.raises(InputError, match=r"called 'berlin/0.jpg', a mask '0.png'"):
        load_semi_dataset(data_dir=str(tmp_path))


def test_a_test_split_without_masks_is_told_and_left_out(tmp_path):
    write_layout(tmp_path, "train/images", "train/masks")
    write_photo(tmp_path / "test" / "images" / "9.jpg")
    semi = load_semi_dataset(data_dir=str(tmp_path))
    assert semi.validation is None
    assert "The split 'test' is left out: none of its photos has a mask." in semi.notes
    with pytest.raises(InputError, match="No image of the split 'test' has a mask"):
        load_semi_dataset(data_dir=str(tmp_path), validation_split="test")


@pytest.mark.parametrize("stray", ["photos.tar", "index.parquet", "metadata.csv", "metadata.jsonl"])
def test_archives_and_tables_beside_the_folders_are_not_the_dataset(tmp_path, stray):
    write_layout(tmp_path, "train/images", "train/masks")
    (tmp_path / stray).write_text("image_id,split\n0,train\n")
    assert len(pairs(load_semi_dataset(data_dir=str(tmp_path)))) == 2


def test_a_split_of_an_unknown_name_is_told(tmp_path):
    for split in "train", "holdout":
        write_layout(tmp_path, f"{split}/images", f"{split}/masks")
    (note,) = load_semi_dataset(data_dir=str(tmp_path)).notes
    assert "'holdout'" in note and "--validation_split" in note
    assert len(load_semi_dataset(data_dir=str(tmp_path), validation_split="holdout").validation) == 2
