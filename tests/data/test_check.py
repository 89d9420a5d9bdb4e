import dataclasses

import numpy as np
import pytest
from PIL import Image

from corrmatch_hf.data import load_semi_dataset
from corrmatch_hf.data.check import check_dataset
from corrmatch_hf.errors import InputError

from .pictures_on_disk import write_mask, write_photo

NAMES = ["a", "b", "c", "d"]


def load(folder, **kwargs):
    return load_semi_dataset(data_dir=str(folder), id2label=NAMES, **kwargs)


def test_good_data_passes(folder, synthetic):
    assert check_dataset(load(folder), need_unlabeled=False) == []
    assert check_dataset(synthetic) == []
    assert (
        check_dataset(dataclasses.replace(synthetic, unlabeled=synthetic.unlabeled.to_iterable_dataset()))
        == []
    )


def test_ids_out_of_range(folder):
    path = write_mask(folder / "train/masks/003.png", [0, 9])
    with pytest.raises(InputError, match=f"{path} holds the class id 9.*--num_labels.*--ignore_index"):
        check_dataset(load(folder), need_unlabeled=False)
    write_mask(folder / "train/masks/003.png", [0, 1])
    path = write_mask(folder / "validation/masks/101.png", [0, 4])
    with pytest.raises(InputError, match=f"{path} holds the class id 4"):
        check_dataset(load(folder), need_unlabeled=False, on_bad_sample="skip")


def test_sizes_that_differ(folder):
    write_mask(folder / "train/masks/003.png", [0, 1], size=(36, 48))
    with pytest.raises(InputError, match=r"003.png is 48 x 36 pixels, but its mask .*003.png is 36 x 48"):
        check_dataset(load(folder), need_unlabeled=False)


def test_a_mask_of_nothing_but_ignore(folder):
    path = write_mask(folder / "train/masks/003.png", [255])
    with pytest.raises(InputError, match=f"{path} of a labelled image contains only the ignore value 255"):
        check_dataset(load(folder), need_unlabeled=False)


def test_pictures_cut_off(folder):
    write_photo(folder / "unlabeled" / "x.png")
    path = write_photo(folder / "unlabeled" / "y.png")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=f"Cannot read the picture {path}"):
        check_dataset(load(folder))
    (warning,) = check_dataset(load(folder), on_bad_sample="skip")
    assert str(path) in warning


def test_too_much_is_bad_to_skip(folder):
    for i in range(6):
        write_mask(folder / f"train/masks/{i:03d}.png", [7])
    with pytest.raises(InputError, match=r"6 of 8 images cannot be used, too many to skip: Mask .*000.png"):
        check_dataset(load(folder), need_unlabeled=False, on_bad_sample="skip")


def test_missing_sets(folder):
    semi = load(folder)
    with pytest.raises(InputError, match=r"no unlabelled images: give --labeled_fraction"):
        check_dataset(semi)
    with pytest.raises(InputError, match=r"no labelled images"):
        check_dataset(dataclasses.replace(semi, labeled=semi.labeled.select([])))


def test_a_class_without_a_label_is_mentioned(folder):
    semi = load_semi_dataset(data_dir=str(folder), id2label=[*NAMES, "unicorn"])
    (warning,) = check_dataset(semi, need_unlabeled=False)
    assert warning.startswith("No labelled image shows unicorn")


def test_only_so_many_are_read(folder):
    (folder / "train/images/004.png").write_text("no picture")
    check_dataset(load(folder), mask_limit=3, need_unlabeled=False)  # first, middle (003), last
    with pytest.raises(InputError):
        check_dataset(load(folder), mask_limit=None, need_unlabeled=False)


def test_a_turned_photo_fits_its_upright_mask(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (48, 36, 3), dtype=np.uint8)
    (folder / "train/images/000.png").unlink()
    Image.fromarray(pixels).save(folder / "train/images/000.jpg", exif=exif)  # stored 36 x 48, shown 48 x 36
    check_dataset(load(folder), need_unlabeled=False)


def test_validation_images_that_train_too_are_told(folder, tmp_path):
    (tmp_path / "both.txt").write_text("train/images/003.png train/masks/003.png\n")
    semi = load(folder, validation_list=str(tmp_path / "both.txt"))
    (warning,) = check_dataset(semi, need_unlabeled=False)
    assert "1 validation images are labelled training images, too" in warning and "003.png" in warning
