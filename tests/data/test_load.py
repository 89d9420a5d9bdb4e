import io
import json
import shlex
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from corrmatch_hf.data import load_semi_dataset
from corrmatch_hf.data.check import check_dataset
from corrmatch_hf.data.load import draw_labeled
from corrmatch_hf.data.options import DataOptions
from corrmatch_hf.data.semi_dataset import EvaluationSet
from corrmatch_hf.errors import InputError

from .pictures_on_disk import write_mask, write_photo, write_split


def stems(dataset) -> list[str]:
    return [Path(file).stem for file in dataset["file"]]


def counts(semi) -> tuple[int, int, int]:
    return tuple(0 if part is None else len(part) for part in (semi.labeled, semi.unlabeled, semi.validation))


# ------------------------------------------------------------------------------------------- local folders


def test_a_folder_of_splits(folder):
    semi = load_semi_dataset(data_dir=str(folder))
    assert counts(semi) == (8, 0, 3) and semi.unlabeled is None
    assert semi.name == "set"
    assert semi.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2", 3: "LABEL_3"}
    assert semi.labeled.column_names == ["image", "label", "file"]
    for row in semi.labeled:
        image, mask = semi.read_labeled(row)
        assert np.array_equal(np.array(image), np.array(Image.open(row["file"])))
        assert np.array_equal(mask, np.array(Image.open(row["file"].replace("images", "masks"))))
    assert counts(load_semi_dataset(str(folder))) == (8, 0, 3)  # as `name` too


def test_images_without_masks_are_unlabeled(folder):
    for i in range(5):
        (folder / "train" / "masks" / f"{i:03d}.png").unlink()
    semi = load_semi_dataset(data_dir=str(folder))
    assert counts(semi) == (3, 5, 3)
    assert semi.unlabeled.column_names == ["image", "file"]
    assert stems(semi.labeled) == ["005", "006", "007"]


@pytest.mark.parametrize("inside", ["", "images"])
def test_a_folder_called_unlabeled(folder, inside):
    write_split(folder / "unlabeled" / inside, None, 4, first=50)
    assert counts(load_semi_dataset(data_dir=str(folder))) == (8, 4, 3)
    assert counts(load_semi_dataset(data_dir=str(folder), labeled_count=3)) == (3, 9, 3)


@pytest.mark.parametrize("train, validation", [("train", "val"), ("training", "valid"), ("train", "test")])
@pytest.mark.parametrize("split_first", [True, False])
def test_other_names_of_the_same_layout(tmp_path, train, validation, split_first):
    for split, count in ((train, 4), (validation, 2)):
        if split_first:
            write_split(tmp_path / split / "imgs", tmp_path / split / "labels", count)
        else:
            write_split(tmp_path / "images" / split, tmp_path / "annotations" / split, count)
    assert counts(load_semi_dataset(data_dir=str(tmp_path))) == (4, 0, 2)


# The second is a usual name of a folder of photos, too.
@pytest.mark.parametrize("name", ["animals", "photos"])
def test_a_folder_one_too_high_names_the_right_one(tmp_path, name):
    inner = tmp_path / "unzipped here" / name
    write_split(inner / "train" / "images", inner / "train" / "masks", 2)
    with pytest.raises(InputError, match=f"{name} in it has images and masks") as error:
        load_semi_dataset(data_dir=str(inner.parent))
    (given,) = shlex.split(str(error.value).partition("give --data_dir ")[2].rstrip("."))
    assert counts(load_semi_dataset(data_dir=given))[0] == 2


def test_a_validation_split_may_be_named(folder):
    shutil.copytree(folder / "train", folder / "extra")
    assert counts(load_semi_dataset(data_dir=str(folder), validation_split="extra"))[2] == 8
    with pytest.raises(InputError, match=r"Unknown split \(--validation_split\).*did you mean 'extra'"):
        load_semi_dataset(data_dir=str(folder), validation_split="extr")
    with pytest.raises(InputError, match=r"Unknown split \(--train_split\).*did you mean 'train'"):
        load_semi_dataset(data_dir=str(folder), train_split="trian")


def test_voc_layout(tmp_path):
    write_split(tmp_path / "JPEGImages", tmp_path / "SegmentationClass", 6)
    write_split(tmp_path / "JPEGImages", None, 2, first=50)
    assert counts(load_semi_dataset(data_dir=str(tmp_path))) == (6, 2, 0)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("000\n001\n050\n")
    (lists / "val.txt").write_text("002\n003\n")
    semi = load_semi_dataset(data_dir=str(tmp_path))
    assert counts(semi) == (2, 1, 2) and stems(semi.validation) == ["002", "003"]
    (tmp_path / "labeled.txt").write_text("001\n")
    semi = load_semi_dataset(data_dir=str(tmp_path), labeled_list=str(tmp_path / "labeled.txt"))
    assert counts(semi) == (1, 2, 2) and stems(semi.labeled) == ["001"]
    (lists / "val.txt").write_text("002\n999\n")
    with pytest.raises(InputError, match=r"val.txt, line 2: there is no image named '999'"):
        load_semi_dataset(data_dir=str(tmp_path))


def test_plain_folders(folder):
    semi = load_semi_dataset(
        train_images=str(folder / "train/images"),
        train_masks=str(folder / "train/masks"),
        validation_images=str(folder / "validation/images"),
        validation_masks=str(folder / "validation/masks"),
        extra_unlabeled=str(folder / "validation/images"),
    )
    assert counts(semi) == (8, 3, 3)


def test_pictures_may_lie_deeper(tmp_path):
    for city in ("a", "b"):
        write_split(tmp_path / "train/images" / city, tmp_path / "train/masks" / city, 2)
    assert counts(load_semi_dataset(data_dir=str(tmp_path))) == (4, 0, 0)


def test_errors_name_the_folder_and_its_option(folder, tmp_path):
    with pytest.raises(InputError, match=r"folder .*nowhere \(--data_dir\) does not exist"):
        load_semi_dataset(data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"photos \(--train_images, --train_masks\) does not exist"):
        load_semi_dataset(train_images=str(tmp_path / "photos"), train_masks=str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"contains no known layout of images"):
        load_semi_dataset(data_dir=str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"empty \(--extra_unlabeled\) contains no pictures"):
        load_semi_dataset(data_dir=str(folder), extra_unlabeled=str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"an image is called '000.png', a mask '100.png'"):
        load_semi_dataset(
            train_images=str(folder / "train/images"), train_masks=str(folder / "validation/masks")
        )
    write_photo(folder / "train/images/000.jpg")
    with pytest.raises(InputError, match=r"mask .*000.png may belong to .*000.jpg or .*000.png"):
        load_semi_dataset(data_dir=str(folder))


def test_names_of_classes(folder, tmp_path):
    (folder / "id2label.json").write_text(
        json.dumps({"0": "sky", "1": "road", "2": "car", "3": "tree", "255": "?"})
    )
    assert load_semi_dataset(data_dir=str(folder)).id2label == {0: "sky", 1: "road", 2: "car", 3: "tree"}
    (tmp_path / "names.json").write_text(json.dumps(["a", "b", "c", "d"]))
    for given in (str(tmp_path / "names.json"), ["a", "b", "c", "d"], {"0": "a", 1: "b", 2: "c", 3: "d"}):
        assert load_semi_dataset(data_dir=str(folder), id2label=given).id2label == dict(enumerate("abcd"))
    with pytest.raises(InputError, match=r"--num_labels is 7, but .*id2label.json names 4"):
        load_semi_dataset(data_dir=str(folder), num_labels=7)
    with pytest.raises(InputError, match=r"cannot be read as JSON"):
        load_semi_dataset(data_dir=str(folder), id2label=str(tmp_path / "none.json"))
    (folder / "id2label.json").unlink()
    assert load_semi_dataset(data_dir=str(folder), num_labels=7).num_labels == 7


def test_meaning_of_masks(folder, tmp_path):
    reduced = load_semi_dataset(data_dir=str(folder), reduce_labels=True)
    assert reduced.num_labels == 3
    _, mask = reduced.read_labeled(reduced.labeled[0])
    assert set(np.unique(mask)) == {0, 255}  # 0 -> ignore, 1 -> 0, 255 stays
    with pytest.raises(InputError, match=r"values 0, 1, 2, 255 .*--num_labels 256"):
        load_semi_dataset(data_dir=str(folder), ignore_index=3)

    root, colors = tmp_path / "colors", [[9, 9, 0], [0, 9, 9], [9, 0, 9]]
    for i in range(3):
        write_photo(root / f"train/images/{i}.png", size=(4, 2))
        write_photo(root / f"train/masks/{i}.png", size=(4, 2))
        Image.fromarray(np.array([[colors[i]] * 2 + [[255, 255, 255]] * 2] * 2, dtype=np.uint8)).save(
            root / f"train/masks/{i}.png"
        )
    (tmp_path / "colors.json").write_text(json.dumps({**dict(enumerate(colors)), "255": [255, 255, 255]}))
    semi = load_semi_dataset(data_dir=str(root), label_colors=str(tmp_path / "colors.json"))
    assert semi.num_labels == 3 and np.array(semi.label_colors).shape == (3, 3)
    assert semi.read_labeled(semi.labeled[1])[1].tolist() == [[1, 1, 255, 255]] * 2
    with pytest.raises(InputError, match=r"--label_colors gives 2 colours, but there are 3 classes"):
        load_semi_dataset(data_dir=str(root), label_colors=colors[:2], id2label=["a", "b", "c"])
    with pytest.raises(InputError, match=r"--label_colors must give"):
        load_semi_dataset(data_dir=str(root), label_colors=[[1, 2], [3, 4]])
    with pytest.raises(InputError, match=r"same colour to two"):
        load_semi_dataset(data_dir=str(root), label_colors=[[1, 2, 3], [1, 2, 3]])


# -------------------------------------------------------------------------------------- which are labelled


def test_a_drawn_share(folder):
    semi = load_semi_dataset(data_dir=str(folder), labeled_fraction=0.5, split_seed=3)
    assert counts(semi) == (4, 4, 3)
    assert sorted(stems(semi.labeled) + stems(semi.unlabeled)) == [f"{i:03d}" for i in range(8)]
    assert "label" not in semi.unlabeled.column_names
    again = load_semi_dataset(data_dir=str(folder), labeled_count=4, split_seed=3)
    assert stems(again.labeled) == stems(semi.labeled)
    drawn = {
        tuple(stems(load_semi_dataset(data_dir=str(folder), labeled_count=3, split_seed=s).labeled))
        for s in range(6)
    }
    assert len(drawn) > 1
    for names in drawn:  # 0 and one of 1, 2, 3 in each image: three images can show everything, so they do
        assert {1 + int(name) % 3 for name in names} == {1, 2, 3}


def test_a_share_is_held_out_to_evaluate_on(folder):
    shutil.rmtree(folder / "validation")
    semi = load_semi_dataset(data_dir=str(folder), labeled_count=6, hold_out=0.34)
    assert counts(semi) == (4, 2, 2) and "keeps 2 of the 6 labelled images out" in " ".join(semi.notes)
    names = [stems(part) for part in (semi.labeled, semi.unlabeled, semi.validation)]
    assert sorted(names[0] + names[1] + names[2]) == [f"{i:03d}" for i in range(8)]
    assert {1 + int(name) % 3 for name in names[0]} == {1, 2, 3}  # what is trained on shows every class
    with pytest.raises(InputError, match=r"--hold_out 0.9 of 1 labelled images leaves none"):
        load_semi_dataset(data_dir=str(folder), labeled_count=1, hold_out=0.9)


def test_holding_out_is_for_data_without_validation_images(folder):
    with pytest.raises(
        InputError, match=r"--hold_out is 0.2, but there are 3 validation images: leave it out"
    ):
        load_semi_dataset(data_dir=str(folder), hold_out=0.2)


def test_data_are_told_apart_by_names_sizes_and_meaning(folder, tmp_path):
    before = load_semi_dataset(data_dir=str(folder)).identity
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "moved")
    assert load_semi_dataset(data_dir=str(moved)).identity == before
    assert load_semi_dataset(data_dir=str(moved), num_labels=9).identity["classes"] != before["classes"]
    write_photo(moved / "validation/images/100.png", size=(20, 30))
    changed = load_semi_dataset(data_dir=str(moved)).identity
    assert [part for part in before if changed[part] != before[part]] == ["validation"]
    (moved / "train/images/000.png").rename(moved / "train/images/new.png")
    (moved / "train/masks/000.png").rename(moved / "train/masks/new.png")
    assert load_semi_dataset(data_dir=str(moved)).identity["labelled"] != before["labelled"]


def test_lists(folder, tmp_path):
    (tmp_path / "labeled.txt").write_text(
        "train/images/001.png train/masks/001.png\n\ntrain/images/004.png\n"
    )
    (tmp_path / "unlabeled.txt").write_text(
        "train/images/002.png train/masks/never-read.png\ntrain/images/003.png\n"
    )
    (tmp_path / "validation.txt").write_text("train/images/007.png train/masks/007.png\n")
    options = {"data_dir": str(folder), "labeled_list": str(tmp_path / "labeled.txt")}
    semi = load_semi_dataset(**options, unlabeled_list=str(tmp_path / "unlabeled.txt"))
    assert stems(semi.labeled) == ["001", "004"] and stems(semi.unlabeled) == ["002", "003"]
    assert np.array_equal(
        semi.read_labeled(semi.labeled[1])[1], np.array(Image.open(folder / "train/masks/004.png"))
    )
    semi = load_semi_dataset(**options, validation_list=str(tmp_path / "validation.txt"))
    assert stems(semi.unlabeled) == ["000", "002", "003", "005", "006", "007"]
    assert stems(semi.validation) == ["007"]
    shutil.copy(tmp_path / "labeled.txt", folder / "labeled.txt")
    (folder / "labeled.txt").write_text("train/images/001.png train/masks/001.png\n")
    assert counts(load_semi_dataset(labeled_list=str(folder / "labeled.txt"))) == (1, 0, 0)  # beside the list


def test_the_masks_of_unlabeled_images_are_never_read(folder, tmp_path):
    (tmp_path / "labeled.txt").write_text("".join(f"train/images/{i:03d}.png\n" for i in range(3)))
    for i in range(3, 8):
        (folder / "train" / "masks" / f"{i:03d}.png").write_text("no picture")
    semi = load_semi_dataset(data_dir=str(folder), labeled_list=str(tmp_path / "labeled.txt"))
    assert counts(semi) == (3, 5, 3)
    assert all(semi.unlabeled[i]["image"].size == (48, 36) for i in range(5))


def test_further_unlabeled_images(folder, tmp_path):
    write_split(tmp_path / "more", None, 3, first=20)
    (tmp_path / "some.txt").write_text("more/020.png\nmore/021.png\n")
    parquet = tmp_path / "parquet" / "train.parquet"
    parquet.parent.mkdir()
    photos = [{"path": None, "bytes": (tmp_path / f"more/{i:03d}.png").read_bytes()} for i in range(20, 23)]
    features = datasets.Features({"photo": datasets.Image()})
    datasets.Dataset.from_dict({"photo": photos}, features=features).to_parquet(str(parquet))
    semi = load_semi_dataset(
        train_images=str(folder / "train/images"),
        train_masks=str(folder / "train/masks"),
        labeled_count=6,
        extra_unlabeled=[str(tmp_path / "more"), str(tmp_path / "some.txt"), str(parquet.parent)],
    )
    assert counts(semi) == (6, 2 + 3 + 2 + 3, 0)
    assert semi.unlabeled[-1]["image"].size == (48, 36) and semi.unlabeled[-1]["file"] == "train[2]"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"labeled_fraction": 0.0}, "--labeled_fraction is 0.0"),
        ({"labeled_fraction": 20}, "--labeled_fraction is 20"),
        ({"labeled_count": 0}, "--labeled_count is 0"),
        ({"labeled_count": 9}, "--labeled_count is 9, but only 8 training images have a mask"),
        ({"labeled_count": 1, "labeled_fraction": 0.5}, "exclude each other"),
        ({"unlabeled_list": "x.txt"}, "--unlabeled_list needs --labeled_list"),
        ({"train_masks": "x"}, "--train_masks needs --train_images"),
        ({"validation_masks": "x"}, "must be given together"),
        ({"split_seed": -1}, "--split_seed is -1"),
        ({"seed": 1}, "Unknown option of load_semi_dataset 'seed': did you mean 'split_seed'"),
        ({"labeled_list": "x.txt"}, r"The list x.txt \(--labeled_list\) does not exist"),
    ],
)
def test_options_that_cannot_be(folder, options, message):
    with pytest.raises(InputError, match=message):
        load_semi_dataset(data_dir=str(folder), **options)


def test_options_may_be_given_as_one_object(folder):
    options = DataOptions(data_dir=str(folder), labeled_count=3)
    assert counts(load_semi_dataset(options)) == (3, 5, 3)


# ------------------------------------------------------------------------------- whatever `datasets` reads


def png(seed, mask=False) -> bytes:
    """The bytes of a photo, or of a mask with the ids 0 to 3."""
    high = 4 if mask else 256
    pixels = np.random.default_rng(seed).integers(0, high, (8, 9) if mask else (8, 9, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def rows(
    count: int, label: str = "label", image: str = "image", masks: bool = True, first: int = 0
) -> datasets.Dataset:
    """A dataset like one of the Hub, with pictures inside."""

    def png(array) -> dict:
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, "PNG")
        return {"bytes": stream.getvalue(), "path": None}

    rng = np.random.default_rng(first)
    columns = {image: [], label: [], "scene": []}
    for i in range(first, first + count):
        columns[image].append(png(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)))
        mask = np.full((12, 16), 1 + i % 3, dtype=np.uint8)
        mask[:3] = 0
        columns[label].append(png(mask) if masks else None)
        columns["scene"].append(i)
    features = {image: datasets.Image(), label: datasets.Image(), "scene": datasets.Value("int64")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture
def repository(tmp_path) -> Path:
    """A dataset repository as `push_to_hub` leaves it: Parquet in data/, id2label.json beside."""
    root = tmp_path / "repository"
    (root / "data").mkdir(parents=True)
    rows(8, "annotation", "pixel_values").to_parquet(str(root / "data/train-00000-of-00001.parquet"))
    rows(3, "annotation", "pixel_values", first=20).to_parquet(
        str(root / "data/validation-00000-of-00001.parquet")
    )
    (root / "id2label.json").write_text(json.dumps({str(i): f"class {i}" for i in range(4)}))
    return root


@pytest.mark.parametrize("as_name", [True, False])
def test_a_repository(repository, as_name):
    where = {"dataset_name": str(repository)} if as_name else {"data_dir": str(repository)}
    semi = load_semi_dataset(**where, labeled_fraction=0.5)
    assert counts(semi) == (4, 4, 3)
    assert semi.labeled.column_names == ["image", "label", "file"]
    assert semi.unlabeled.column_names == ["image", "file"]
    assert semi.id2label[3] == "class 3" and semi.name == "repository"
    assert semi.labeled[0]["file"].startswith("train[")
    image, mask = semi.read_labeled(semi.labeled[0])
    assert image.size == (16, 12) and mask.shape == (12, 16)


def test_a_part_of_a_split(repository):
    semi = load_semi_dataset(str(repository), train_split="train[:6]", validation_split="train[6:]")
    assert counts(semi) == (6, 0, 2)


def test_columns_may_be_named(tmp_path):
    rows(4, "what", "where").to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(
        InputError, match=r"No column of images was found .*'scene', 'what', 'where'.*--image_column"
    ):
        load_semi_dataset(str(tmp_path))
    (note,) = load_semi_dataset(str(tmp_path), image_column="where").notes
    assert "the masks from 'what'" in note
    with pytest.raises(InputError, match=r"Unknown label column .* 'wat'.*did you mean 'what'"):
        load_semi_dataset(str(tmp_path), image_column="where", label_column="wat")
    with pytest.raises(InputError, match=r"contains .*not pictures"):
        load_semi_dataset(str(tmp_path), image_column="where", label_column="scene")
    assert counts(load_semi_dataset(str(tmp_path), image_column="where", label_column="what")) == (4, 0, 0)


def test_pictures_win_over_words_boxes_and_numbers(tmp_path):
    """The types of the columns decide, then their names; what was taken is told."""
    cells = [{"bytes": png(i), "path": None} for i in range(4)]
    masks = [{"bytes": png(i, mask=True), "path": None} for i in range(4)]
    picture, text = datasets.Image(), datasets.Value("string")
    cases = [
        ({"label": ["cat"] * 4, "mask": masks}, {"label": text, "mask": picture}, "mask", "image"),
        ({"annotations": [[[1.0, 2.0]]] * 4, "mask": masks}, {"mask": picture}, "mask", "image"),
        ({"labels": [[1, 2]] * 4, "mask": masks}, {"mask": picture}, "mask", "image"),
        ({"pixel_values": cells, "image": ["a.jpg"] * 4, "label": masks},
         {"pixel_values": picture, "image": text, "label": picture}, "label", "pixel_values"),
        ({"ground": masks}, {"ground": picture}, "ground", "image"),
    ]  # fmt: skip
    for number, (columns, features, mask, image) in enumerate(cases):
        columns = {"image": cells} | columns
        features = {"image": picture} | features
        table = datasets.Dataset.from_dict(columns)
        for name, feature in features.items():
            table = table.cast_column(name, feature)
        table.save_to_disk(str(tmp_path / str(number)))
        semi = load_semi_dataset(str(tmp_path / str(number)), num_labels=4)
        assert check_dataset(semi, need_unlabeled=False)[: len(semi.notes)] == list(semi.notes)
        assert any(f"column {image!r} and the masks from {mask!r}" in note for note in semi.notes), (
            columns.keys()
        )


def test_a_saved_split_without_rows_does_not_stop_the_others(tmp_path):
    parts = {"train": rows(4), "validation": rows(2), "test": rows(2).select([])}
    # datasets 4.0 cannot estimate how many files a split without rows needs.
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"), num_shards=dict.fromkeys(parts, 1))
    semi = load_semi_dataset(str(tmp_path / "saved"))
    assert counts(semi) == (4, 0, 2) and any("'test' of" in note and "no rows" in note for note in semi.notes)


def test_bytes_are_opened_when_they_are_named(tmp_path):
    table = {"photo": [png(i) for i in range(3)], "drawn": [png(i, mask=True) for i in range(3)]}
    datasets.Dataset.from_dict(table).to_parquet(str(tmp_path / "train.parquet"))
    semi = load_semi_dataset(str(tmp_path), image_column="photo", label_column="drawn", num_labels=4)
    assert check_dataset(semi, need_unlabeled=False) == [] and len(semi.labeled) == 3


def test_rows_without_a_mask_and_a_split_called_unlabeled(tmp_path):
    some = datasets.concatenate_datasets([rows(3), rows(5, masks=False)])
    some.to_parquet(str(tmp_path / "train.parquet"))
    rows(4).remove_columns("label").to_parquet(str(tmp_path / "unlabeled.parquet"))
    saved = {"train": some, "unlabeled": rows(4, masks=False)}
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "saved"))
    semi = load_semi_dataset(str(tmp_path / "saved"))
    assert counts(semi) == (3, 5 + 4, 0)


def test_saved_to_disk(tmp_path):
    rows(5).save_to_disk(str(tmp_path / "saved"))
    assert counts(load_semi_dataset(str(tmp_path / "saved"), labeled_count=2)) == (2, 3, 0)


def test_a_test_split_without_masks_is_left_out(tmp_path):
    data = datasets.DatasetDict({"train": rows(4), "test": rows(2, masks=False)})
    data.save_to_disk(str(tmp_path / "saved"))
    semi = load_semi_dataset(str(tmp_path / "saved"))
    assert counts(semi) == (4, 0, 0) and "it has no masks" in semi.notes[-1]
    with pytest.raises(InputError, match="No image of the split 'test'"):
        load_semi_dataset(str(tmp_path / "saved"), validation_split="test")


def test_a_split_without_a_column_of_masks_does_not_stop_the_others(tmp_path):
    splits = {"train": rows(4), "validation": rows(2).remove_columns("label"), "test": rows(3)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    semi = load_semi_dataset(str(tmp_path / "saved"))
    assert counts(semi) == (4, 0, 3) and "'validation'" in semi.notes[-1]
    with pytest.raises(InputError, match="No column of masks"):
        load_semi_dataset(str(tmp_path / "saved"), validation_split="validation")


def test_a_training_split_without_rows_is_named(tmp_path):
    parts = {"train": rows(3).select([]), "validation": rows(3)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path), num_shards=dict.fromkeys(parts, 1))
    with pytest.raises(
        InputError, match=r"The split 'train' of .* has no rows: name another with --train_split"
    ):
        load_semi_dataset(str(tmp_path))


def test_polygons_are_not_masks(tmp_path):
    data = rows(3).remove_columns("label").add_column("segmentation", [[[0, 1, 2], [0, 1]]] * 3)
    data.save_to_disk(str(tmp_path))
    with pytest.raises(InputError, match=r"lists of different lengths.*--label_column"):
        load_semi_dataset(str(tmp_path))


def test_hundreds_of_columns_are_cut(tmp_path):
    data = datasets.Dataset.from_dict({f"column_{i}": [0] for i in range(200)})
    data.save_to_disk(str(tmp_path))
    with pytest.raises(InputError, match="and 188 more") as error:
        load_semi_dataset(str(tmp_path))
    assert len(str(error.value)) < 500


def test_imagefolder_with_metadata(tmp_path):
    write_split(tmp_path / "train" / "photos", tmp_path / "train" / "ids", 3)
    lines = [
        {"image_file_name": f"photos/{i:03d}.png", "label_file_name": f"ids/{i:03d}.png"} for i in range(3)
    ]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    for where in (
        {"dataset_name": str(tmp_path)},
        {"dataset_name": "imagefolder", "data_dir": str(tmp_path)},
    ):
        semi = load_semi_dataset(**where)
        assert counts(semi) == (3, 0, 0) and stems(semi.labeled) == ["000", "001", "002"]


def test_a_classification_dataset_is_rejected(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict({"image": rows(2)["image"], "label": [0, 1]}, features=features)
    data.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(InputError, match=r"'label' contains one class per image"):
        load_semi_dataset(str(tmp_path / "saved"))


def test_lists_of_a_repository_name_its_files(tmp_path):
    photos = [write_photo(tmp_path / "photos" / f"{i}.png", i) for i in range(4)]
    masks = [write_mask(tmp_path / "masks" / f"{i}.png", [0, 1]) for i in range(4)]
    columns = {"image": [str(p) for p in photos], "label": [str(p) for p in masks]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "labeled.txt").write_text("2.png\n0\n")
    semi = load_semi_dataset(str(tmp_path / "saved"), labeled_list=str(tmp_path / "labeled.txt"))
    assert stems(semi.labeled) == ["2", "0"] and stems(semi.unlabeled) == ["1", "3"]
    (tmp_path / "labeled.txt").write_text("2.png\n7.png\n")
    with pytest.raises(InputError, match=r"labeled.txt, line 2 \(--labeled_list\).*named '7.png'"):
        load_semi_dataset(str(tmp_path / "saved"), labeled_list=str(tmp_path / "labeled.txt"))


def test_a_dataset_that_is_not_there():
    with pytest.raises(InputError, match=r"The dataset 'nobody/nothing' cannot be loaded"):
        load_semi_dataset("nobody/nothing")


# ------------------------------------------------------------------------------------------------- streams


def test_streaming_a_repository(repository):
    with pytest.raises(InputError, match=r"--streaming .* give --labeled_count"):
        load_semi_dataset(str(repository), streaming=True)
    semi = load_semi_dataset(str(repository), streaming=True, labeled_count=3)
    assert len(semi.labeled) == 3 and len(semi.validation) == 3
    assert isinstance(semi.unlabeled, datasets.IterableDataset)
    pool = list(semi.unlabeled)
    assert len(pool) == 5 and set(pool[0]) == {"image", "file"}
    assert not {row["file"] for row in pool} & set(semi.labeled["file"])
    image, mask = semi.read_labeled(semi.labeled[0])
    assert image.size == (16, 12) and mask.shape == (12, 16)


def test_streaming_extra_images(folder, repository):
    semi = load_semi_dataset(
        data_dir=str(folder), labeled_count=6, streaming=True, extra_unlabeled=str(repository), num_labels=4
    )
    assert isinstance(semi.unlabeled, datasets.IterableDataset)
    assert len(list(semi.unlabeled)) == 2 + 8
    assert semi.describe().startswith(
        "set: 6 labelled, a stream of unlabelled images, 3 validation; 4 classes"
    )


# ----------------------------------------------------------------------------------------------- synthetic


def test_nothing_is_the_synthetic_set():
    semi = load_semi_dataset(labeled_count=5)
    assert counts(semi) == (5, 400, 100) and semi.name == "synthetic"
    assert semi.describe() == (
        "synthetic: 5 labelled, 400 unlabelled, 100 validation; 5 classes (water, field, house, road, tree)"
    )


@pytest.mark.parametrize("options", [{"id2label": ["sky"]}, {"hold_out": 0.2}, {"data_dir": "photos"}])
def test_options_that_would_do_nothing_for_the_synthetic_set_are_refused(options):
    with pytest.raises(InputError, match=f"does not accept --{next(iter(options))}"):
        load_semi_dataset("synthetic", **options)


# ---------------------------------------------------------------------------------------------- evaluation


def test_evaluation_set(folder):
    semi = load_semi_dataset(data_dir=str(folder), id2label=["a", "b", "c", "d"], ignore_index=255)
    samples = EvaluationSet(semi.validation, semi)
    assert len(samples) == 3
    for i, stem in enumerate(stems(semi.validation)):
        sample = samples[i]
        assert sample["image"].shape == (3, 36, 48) and str(sample["image"].dtype) == "torch.uint8"
        assert sample["label"].shape == (36, 48) and str(sample["label"].dtype) == "torch.int64"
        mask = np.array(Image.open(folder / "validation" / "masks" / f"{stem}.png"))
        assert np.array_equal(sample["label"].numpy(), mask)
        photo = np.array(Image.open(folder / "validation" / "images" / f"{stem}.png"))
        assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), photo)
    assert EvaluationSet(semi.validation.remove_columns("label"), semi)[0]["label"] is None


# ------------------------------------------------------------------------------- choosing the labelled images


def draw(count, classes, seed=0, num_labels=None):
    asked = []

    def present(i):
        asked.append(i)
        return frozenset(classes[i])

    return draw_labeled(count, len(classes), present, num_labels, seed), asked


def test_every_class_appears_where_it_can():
    rng = np.random.default_rng(0)
    for seed in range(20):
        classes = [{int(rng.integers(0, 3))} for _ in range(60)]
        classes[7], classes[30] = {0, 8}, {9}  # rare
        drawn, _ = draw(5, classes, seed)
        assert len(drawn) == 5 and drawn == sorted(set(drawn))
        assert {7, 30} <= set(drawn)
        assert set().union(*(classes[i] for i in drawn)) == set().union(*classes)
        assert draw(5, classes, seed)[0] == drawn


def test_with_too_few_images_the_richest_are_taken():
    drawn, _ = draw(1, [{0}, {0, 1, 2}, {1}, {2, 3}])
    assert drawn == [1]


def test_masks_are_looked_at_no_more_than_needed():
    classes = [{0, 1, 2}] * 1000
    drawn, asked = draw(10, classes, num_labels=3)
    assert len(drawn) == 10 and len(asked) == 40
    _, asked = draw(10, classes)  # without knowing how many classes there are
    assert len(asked) == 1000


def test_all_of_them():
    assert draw(4, [{0}, {1}, {0}, {0}])[0] == [0, 1, 2, 3]
