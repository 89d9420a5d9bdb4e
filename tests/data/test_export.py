"""A folder made ready to be shared: what is taken as it is, what is written anew, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corrmatch_hf.data import load_semi_dataset
from corrmatch_hf.data.masks import MaskFormat, voc_colors
from corrmatch_hf.errors import InputError
from corrmatch_hf.hub.dataset_export import export_folder

from .pictures_on_disk import CLASSES, write_mask, write_photo, write_split

SIZE = (48, 36)  # width, height
NAMES = ["sky", "road", "car", "tree"]


@pytest.fixture
def aside(tmp_path) -> Path:
    return tmp_path / "aside"


def masks_of(split) -> list[str | None]:
    """Paths, undecoded."""
    return [label and label["path"] for label in split.data.column("label").to_pylist()]


def read(path: str) -> np.ndarray:
    """A shared mask, as anyone reads it."""
    picture = Image.open(path)
    assert (picture.format, picture.mode) in {("PNG", "L"), ("PNG", "P")}
    return np.asarray(picture)


def every_mask_as(root: Path, convert) -> None:
    for path in sorted(root.glob("*/masks/*.png")):
        convert(np.array(Image.open(path))).save(path)


def expected_masks(root: Path) -> list[np.ndarray]:
    return [np.array(Image.open(p)) for p in sorted((root / "train" / "masks").glob("*.png"))]


# What is shared


def test_masks_that_are_ids_already_stay_the_files_they_are(folder, aside):
    data = export_folder(folder, aside)
    assert masks_of(data.splits["train"]) == sorted(str(p) for p in (folder / "train" / "masks").iterdir())
    assert (data.rewritten, list(data.splits)) == (0, ["train", "validation"])
    assert data.id2label == {i: f"LABEL_{i}" for i in range(CLASSES)}
    assert not aside.exists()


def test_palette_masks_stay_the_files_they_are(folder, aside):
    def palette(ids):
        picture = Image.fromarray(ids).convert("L")
        picture.putpalette([value for color in voc_colors() for value in color])
        return picture

    every_mask_as(folder, palette)
    data = export_folder(folder, aside)
    assert data.rewritten == 0
    assert (read(masks_of(data.splits["train"])[0]) == expected_masks(folder)[0]).all()


def rgb(ids):
    return Image.fromarray(np.array(voc_colors(), dtype=np.uint8)[ids])


def shifted(ids):
    return Image.fromarray(np.where(ids == 255, 0, ids + 1).astype(np.uint8))


def other_ignored(ids):
    return Image.fromarray(np.where(ids == 255, 200, ids).astype(np.uint8))


@pytest.mark.parametrize(
    ("convert", "options"),
    [
        (rgb, {}),
        (rgb, {"label_colors": {**dict(enumerate(voc_colors()[:CLASSES])), 255: voc_colors()[255]}}),
        (shifted, {"reduce_labels": True}),
        (other_ignored, {"ignore_index": 200}),
        (lambda ids: Image.fromarray(ids.astype(np.uint16)), {}),
    ],
    ids=["PASCAL VOC's colours", "label_colors", "reduce_labels", "ignore_index", "16 bits"],
)
def test_other_masks_become_ids_from_0_and_255(folder, aside, convert, options):
    expected = expected_masks(folder)
    every_mask_as(folder, convert)
    data = export_folder(folder, aside, id2label=NAMES, **options)
    paths = masks_of(data.splits["train"])
    assert data.rewritten == len(paths) + len(data.splits["validation"]) == 11
    assert [Path(p).name for p in paths] == [f"{i:03d}.png" for i in range(8)]
    for path, ids in zip(paths, expected, strict=True):
        np.testing.assert_array_equal(read(path), ids)


def test_a_jpeg_or_turned_mask_is_written_as_upright_png(tmp_path, aside):
    root = tmp_path / "set"
    write_photo(root / "images" / "a.png", size=SIZE)
    write_mask(root / "masks" / "a.png", [0, 1, 2], size=SIZE[::-1])
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(root / "masks" / "a.png")
    turned.save(root / "masks" / "a.png", exif=exif)
    data = export_folder(root, aside)
    (path,) = masks_of(data.splits["train"])
    expected = np.asarray(turned.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(read(path), expected)
    assert data.rewritten == 1


def test_images_without_masks_have_none_in_every_split(folder, aside):
    write_photo(folder / "train" / "images" / "900.png")
    write_photo(folder / "validation" / "images" / "901.png")
    write_split(folder / "test" / "images", None, 2, first=800)
    write_split(folder / "unlabelled", None, 3, first=700)
    data = export_folder(folder, aside)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 9, "validation": 4, "test": 2, "unlabeled": 3
    }  # fmt: skip
    assert data.masks == {"train": 8, "validation": 3, "test": 0, "unlabeled": 0}
    assert masks_of(data.splits["train"])[-1] is None
    assert masks_of(data.splits["unlabeled"]) == [None] * 3
    assert list(data.pixels) == ["train", "validation"]


def test_pixels_are_counted_for_each_class_and_for_ignored_ones(folder, aside):
    data = export_folder(folder, aside)
    every = np.concatenate([mask.ravel() for mask in expected_masks(folder)])
    assert data.pixels["train"] == [(every == i).sum() for i in (*range(CLASSES), 255)]


def test_a_voc_folder_gives_the_splits_of_its_lists(tmp_path, aside):
    write_split(tmp_path / "JPEGImages", tmp_path / "SegmentationClass", 6)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("000\n003\n")
    (lists / "val.txt").write_text("005\n")
    (lists / "trainval.txt").write_text("000\n003\n005\n")
    data = export_folder(tmp_path, aside, id2label=NAMES)
    assert [Path(p).stem for p in masks_of(data.splits["train"])] == ["000", "003"]
    assert [Path(p).stem for p in masks_of(data.splits["validation"])] == ["005"]
    assert data.left_out == ["trainval"]


def test_names_come_from_the_folder_or_the_option(folder, aside):
    (folder / "id2label.json").write_text(json.dumps(NAMES))
    assert export_folder(folder, aside).id2label == dict(enumerate(NAMES))
    assert export_folder(folder, aside, id2label=list("abcd")).id2label == dict(enumerate("abcd"))


def test_the_result_trains_like_the_folder(folder, aside):
    """`load_semi_dataset` on what is shared, saved to disk, against the folder with its options."""
    write_photo(folder / "train" / "images" / "900.png")
    every_mask_as(folder, shifted)
    options = {"reduce_labels": True, "id2label": NAMES}
    data = export_folder(folder, aside, **options)
    data.splits.save_to_disk(aside / "saved")
    ours = load_semi_dataset(str(aside / "saved"), id2label=NAMES, labeled_count=4, split_seed=3)
    theirs = load_semi_dataset(data_dir=str(folder), **options, labeled_count=4, split_seed=3)
    assert (len(ours.labeled), len(ours.unlabeled), len(ours.validation)) == (4, 5, 3)
    for part in ("labeled", "validation"):
        for one, other in zip(getattr(ours, part), getattr(theirs, part), strict=True):
            (image, mask), (image2, mask2) = ours.read_labeled(one), theirs.read_labeled(other)
            assert image == image2
            np.testing.assert_array_equal(mask, mask2)
    for one, other in zip(ours.unlabeled, theirs.unlabeled, strict=True):
        assert one["image"] == other["image"]


# What is refused


def test_every_picture_that_cannot_be_used_is_named_in_one_message(folder, aside):
    (folder / "train" / "masks" / "001.png").write_bytes(b"no picture")
    write_mask(folder / "train" / "masks" / "002.png", [0, 1], size=(40, 36))
    write_mask(folder / "validation" / "masks" / "100.png", [0, 9])
    photo = folder / "train" / "images" / "003.png"
    photo.write_bytes(photo.read_bytes()[:500])
    with pytest.raises(InputError) as error:
        export_folder(folder, aside, id2label=NAMES)
    lines = str(error.value).splitlines()
    assert lines[0] == "4 of 11 images cannot be published:"
    for line, parts in zip(
        lines[1:],
        [
            ("masks/001.png", "Cannot read"),
            ("48 x 36", "40 x 36", "002.png"),
            ("images/003.png", "Cannot read"),
            ("masks/100.png", "class id 9"),
        ],
        strict=True,
    ):
        assert all(part in line for part in parts), line


def test_of_many_problems_the_first_twenty_are_listed(tmp_path, aside):
    write_split(tmp_path / "images", tmp_path / "masks", 25)
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError) as error:
        export_folder(tmp_path, aside, id2label=NAMES)
    lines = str(error.value).splitlines()
    assert (len(lines), lines[-1]) == (22, "... and 5 more.")


def test_folders_that_cannot_be_shared_are_refused(tmp_path, folder, aside):
    with pytest.raises(InputError, match="does not exist"):
        export_folder(tmp_path / "nowhere", aside)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no training images, no folder of images: expected train/images"):
        export_folder(tmp_path / "empty", aside)
    write_split(tmp_path / "test only" / "test" / "images", None, 1)
    with pytest.raises(InputError, match="no training images, only test"):
        export_folder(tmp_path / "test only", aside)
    with pytest.raises(InputError, match="has 256 classes, but 8-bit masks allow at most 255"):
        export_folder(folder, aside, id2label=[f"c{i}" for i in range(256)], ignore_index=300)
    (folder / "metadata.jsonl").write_text('{"file_name": "train/images/a.png"}\n')
    with pytest.raises(InputError, match=r"datasets\.load_dataset"):
        export_folder(folder, aside)


def test_what_is_shared_needs_no_options_to_be_read(folder, aside):
    every_mask_as(folder, rgb)
    data = export_folder(folder, aside, id2label=NAMES)
    for path, ids in zip(masks_of(data.splits["train"]), range(8), strict=True):
        present = MaskFormat(CLASSES).present(path, path)
        assert present == {0, 1 + ids % (CLASSES - 1)}
