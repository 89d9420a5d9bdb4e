"""`corrmatch import`: every format gives the same masks; nothing is lost in silence; nothing outside is read."""

import base64
import json
import os
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from corrmatch_hf import load_semi_dataset
from corrmatch_hf.commands import run
from corrmatch_hf.data.annotations import FORMATS, detect
from corrmatch_hf.errors import InputError

from ..data.exports import (
    DOG,
    EXPORTS,
    HEIGHT,
    SIZE,
    SQUARE,
    WIDTH,
    coco_content,
    flat,
    labelme_file,
    png,
    runs,
    scene,
    write_json,
    write_photos,
)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "the export"
    folder.mkdir()
    return folder


@pytest.fixture
def imported(tmp_path, source, capsys):
    """Runs the command: (the folder, what was printed)."""

    def call(*options):
        destination = tmp_path / "photos"
        status = run("import", [str(source), str(destination), *options])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return destination, printed.out

    return call


def refused(source, tmp_path, capsys, *options):
    """The error of the command, which leaves nothing behind."""
    before = sorted(tmp_path.rglob("*"))
    assert run("import", [str(source), str(tmp_path / "photos"), *options]) == 1
    assert sorted(tmp_path.rglob("*")) == before
    return capsys.readouterr().err


def mask_of(folder, name, split="train"):
    return np.array(Image.open((folder / split / "masks" / name).with_suffix(".png")))


def photo_names(folder, split):
    images = folder / split / "images"
    return {path.relative_to(images).as_posix() for path in images.rglob("*.*")}


@pytest.mark.parametrize("name", EXPORTS)
def test_every_format_gives_the_same_masks_and_unchanged_photos(name, source, imported):
    EXPORTS[name](source)
    assert detect(source) == name
    folder, out = imported()

    assert FORMATS[name] in out and "train: 2 photos with masks" in out
    assert "unlabeled: 1 photos" in out and "0 background, 1 cat, 2 dog" in out
    assert out.endswith(f"corrmatch train --data_dir {folder}\n"), "no quotes needed here"
    assert "not used" not in out
    assert json.loads((folder / "id2label.json").read_text()) == {"0": "background", "1": "cat", "2": "dog"}
    found = sorted((folder / "train" / "images").rglob("*.jpg"))
    assert [path.name for path in found] == ["a.jpg", "ü b.jpg"]
    for path in found:
        (original,) = source.rglob(path.name)
        assert path.read_bytes() == original.read_bytes()
        inner = path.relative_to(folder / "train" / "images")
        np.testing.assert_array_equal(mask_of(folder, inner), scene())
    assert photo_names(folder, "unlabeled") == {"c.jpg"}


def test_the_result_is_a_dataset_that_trains(source, imported):
    EXPORTS["coco"](source)
    folder, out = imported("--validation_fraction", "0.5")
    assert "validation: 1 photos with masks, chosen at random (--seed 0)" in out
    data = load_semi_dataset(data_dir=str(folder))
    assert data.id2label == {0: "background", 1: "cat", 2: "dog"}
    assert len(data.labeled) == 1 and len(data.unlabeled) == 1 and len(data.validation) == 1


def test_without_unlabelled_photos_the_next_command_trains_on_the_labels_alone(source, imported):
    write_photos(source, ["a.jpg"])
    labelme_file(source / "a.json", "a.jpg", [("cat", SQUARE)])
    folder, out = imported()
    assert out.endswith(f"corrmatch train --data_dir {folder} --method supervised\n")
    assert "no unlabelled photos; name a folder of them as --extra_unlabeled" in out


@pytest.mark.parametrize("name", [name for name in FORMATS if not name.endswith("_masks")])
def test_an_export_as_data_dir_is_answered_with_the_command(name, source):
    EXPORTS[name](source)
    with pytest.raises(InputError, match=repr(name)) as error:
        load_semi_dataset(data_dir=str(source))
    command, after = str(error.value).split("Run: corrmatch ")[1].split(", then give ")
    assert run("import", shlex.split(command)[1:]) == 0
    assert len(load_semi_dataset(data_dir=shlex.split(after[: -len(".")])[1]).labeled) > 0


def test_roboflows_splits_and_its_heading_among_the_classes(source, imported):
    for split in ("train", "valid", "test"):
        content = coco_content(names=[f"{split}_a.jpg", f"{split}_b.jpg"])
        content["categories"] = [
            {"id": 0, "name": "animals", "supercategory": "none"},
            {"id": 3, "name": "cat", "supercategory": "animals"},
            {"id": 8, "name": "dog", "supercategory": "animals"},
        ]
        write_photos(source / split, [f"{split}_a.jpg", f"{split}_b.jpg"])
        write_json(source / split / "_annotations.coco.json", content)
    folder, out = imported()
    assert [photo_names(folder, split) for split in ("train", "validation", "test")] == [
        {"train_a.jpg"},
        {"valid_a.jpg"},
        {"test_a.jpg"},
    ]
    assert "0 background, 1 cat, 2 dog" in out and "only uses as heading: animals" in out


def test_compressed_run_lengths_and_crowds(source, imported):
    from pycocotools import mask as coco_masks

    write_photos(source, ["a.jpg"])
    encoded = coco_masks.encode(np.asfortranarray(scene(1, 1)))
    crowd = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    crowd[:, 30:] = 1
    common = {"image_id": 1, "category_id": 3}
    shape = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    group = {"size": [HEIGHT, WIDTH], "counts": runs(crowd)}
    annotations = [
        {**common, "id": 1, "iscrowd": 0, "segmentation": shape},
        {**common, "id": 2, "iscrowd": 1, "segmentation": group},
    ]
    write_json(source / "instances.json", coco_content(annotations, ["a.jpg"]))
    folder, _ = imported()
    expected = scene(1, 1)
    expected[(crowd == 1) & (expected == 0)] = 255
    np.testing.assert_array_equal(mask_of(folder, "a.jpg"), expected)


def test_cvat_marks_masks_as_crowds(source, imported):
    EXPORTS["coco"](source)
    path = source / "annotations" / "instances_default.json"
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        entry["iscrowd"] = int(isinstance(entry["segmentation"], dict))
    empty = ("contributor", "date_created", "description", "url", "version", "year")
    content["info"], content["licenses"] = dict.fromkeys(empty, ""), [{"name": "", "id": 0, "url": ""}]
    write_json(path, content)
    folder, _ = imported()
    np.testing.assert_array_equal(mask_of(folder, "a.jpg"), scene())


def test_everything_that_cannot_be_used_is_told(source, imported):
    bad = [
        {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [flat(SQUARE), [1, 1, 2, 2]]},
        {"id": 2, "image_id": 1, "category_id": 3, "segmentation": [[float("nan"), 1, 2, 2, 5, 9]]},
        {"id": 3, "image_id": 1, "category_id": 3, "segmentation": [[1e12, 1, 2, 2, 5, 9]]},
        {"id": 4, "image_id": 1, "category_id": 3, "segmentation": {"size": [9, 9], "counts": [81]}},
        {"id": 5, "image_id": 1, "category_id": 3, "segmentation": {"size": list(SIZE[::-1]), "counts": [9]}},
        {"id": 6, "image_id": 77, "category_id": 3, "segmentation": [flat(DOG)]},
        {"id": 7, "image_id": 1, "category_id": 99, "segmentation": [flat(DOG)]},
        {"id": 8, "image_id": 1, "category_id": 3, "segmentation": [], "bbox": [40, 0, 10, 10]},
        {"id": 8, "image_id": 1, "category_id": 3, "segmentation": [flat(np.array(DOG) + 70)]},
        "nonsense",
    ]
    content = coco_content(bad, ["a.jpg", "gone.jpg", "../outside.jpg", "b.jpg", "c.jpg", "d.jpg"])
    content["images"][4]["id"] = 4
    content["images"][5]["width"] = 10**12
    content["categories"].append({"id": 8, "name": "another"})
    write_json(source / "instances.json", content)
    write_photos(source, ["a.jpg", "b.jpg", "c.jpg"])
    write_photos(source.parent, ["outside.jpg"])
    (source / "broken.json").write_text("{")
    (source / "d.jpg").write_bytes(b"no picture")
    folder, out = imported()
    for reason in (
        "1 polygons with fewer than 3 points: a.jpg",
        "1 polygons with points that are not finite numbers: a.jpg",
        "1 polygons that reach far beyond their photo: a.jpg",
        "1 masks of another size than their photo: a.jpg",
        "1 masks whose run lengths do not fill their image: a.jpg",
        "1 annotations of photos that are not listed: instances.json",
        "1 annotations of an unknown class, whose pixels are ignored (255): a.jpg",
        "1 boxes without an outline, whose pixels are ignored (255): a.jpg",
        "1 annotation ids that occur twice; both are used: instances.json",
        "1 annotations that cover no pixel of their photo: a.jpg",
        "1 annotations that do not have the form that the format prescribes: instances.json",
        "1 category ids that stand for two names; their pixels are ignored: instances.json",
        "1 photos that are named in the annotations but not in the folder: gone.jpg",
        "1 photos whose path leads out of the folder (refused): ../outside.jpg",
        "1 photos whose id belongs to two photos; both are left without annotations: c.jpg",
        "1 annotations whose image size is not two positive numbers: d.jpg",
        "1 photos that cannot be read: d.jpg",
        "1 files that are not valid JSON: broken.json",
    ):
        assert f"  {reason}\n" in out
    expected = np.zeros((HEIGHT, WIDTH))
    expected[:10, 40:50] = 255
    expected[5:35, 5:35] = 1
    expected[28:34, 28:34] = 255
    np.testing.assert_array_equal(mask_of(folder, "a.jpg"), expected)
    assert photo_names(folder, "unlabeled") == {"b.jpg", "c.jpg"}


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (HEIGHT, WIDTH)], ids=["displayed", "stored"])
def test_mask_and_photo_agree_if_the_camera_was_turned(size, source, imported):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.fromarray(np.zeros((WIDTH, HEIGHT, 3), np.uint8)).save(source / "a.jpg", exif=exif)
    shapes = [("cat", SQUARE if size == SIZE else [[0, 0], [10, 0], [10, 20], [0, 20]])]
    labelme_file(source / "a.json", "a.jpg", shapes, size)
    folder, out = imported()
    mask = mask_of(folder, "a.jpg")
    assert mask.shape == (HEIGHT, WIDTH)
    if size == SIZE:
        assert (mask[5:35, 5:35] == 1).all() and mask.sum() == 900
    else:  # turned clockwise by 90 degrees
        assert (mask[:10, -20:] == 1).all() and mask.sum() == 200
        assert "turned by their camera" in out


def test_names_that_clash_are_kept_apart(source, imported):
    for inner, suffix in (("one", "jpg"), ("two", "jpg"), ("two", "png")):
        write_photos(source / inner, [f"a.{suffix}"])
        labelme_file(source / inner / f"{suffix}.json", f"a.{suffix}", [("cat", SQUARE)])
    folder, out = imported()
    assert photo_names(folder, "train") == {"one/a.jpg", "two/a.jpg", "two/a_2.png"}
    assert "1 photos renamed, since another has the same name: two/a.png -> two/a_2.png" in out


def test_the_order_of_shapes_and_names_with_a_meaning(source, imported):
    write_photos(source, ["a.jpg", "empty.jpg"])
    shapes = [("dog", DOG), ("cat", SQUARE), ("__ignore__", DOG), ("_background_", [[5, 5], [9, 5], [9, 9]])]
    labelme_file(source / "a.json", "a.jpg", shapes)
    labelme_file(source / "empty.json", "empty.jpg", [])
    (source / "labels.txt").write_text("__ignore__\n_background_\ndog\ncat\nbird\n")
    folder, out = imported()
    mask = mask_of(folder, "a.jpg")
    assert (mask[28:34, 28:34] == 255).all() and mask[30, 10] == 2 and mask[5, 8] == 0
    assert json.loads((folder / "id2label.json").read_text()) == {
        "0": "background",
        "1": "dog",
        "2": "cat",
        "3": "bird",
    }
    assert "1 classes without annotation: bird" in out
    assert "all of them is background: empty.jpg" in out and mask_of(folder, "empty.jpg").max() == 0


def test_the_class_numbers_of_other_photos(source, imported, tmp_path, capsys):
    write_photos(source, ["a.jpg", "empty.jpg"])
    labelme_file(
        source / "a.json", "a.jpg", [("cat", SQUARE), ("dog", DOG), ("__ignore__", [[5, 5], [9, 5], [9, 9]])]
    )
    labelme_file(source / "empty.json", "empty.jpg", [])
    names = tmp_path / "id2label.json"
    without = {"4": "bird", "7": "cat", "9": "dog"}
    names.write_text(json.dumps(without))
    folder, out = imported("--id2label", str(names))
    assert set(np.unique(mask_of(folder, "a.jpg"))) == {7, 9, 255} and mask_of(folder, "a.jpg")[0, 0] == 255
    assert json.loads((folder / "id2label.json").read_text()) == without
    assert "where nothing is annotated is ignored (255)" in out
    assert "photos whose annotation is empty, kept as unlabelled: empty.jpg" in out

    names.write_text(json.dumps(without | {"2": "Background"}))
    shutil.rmtree(folder)
    folder, out = imported("--id2label", str(names))
    assert (
        set(np.unique(mask_of(folder, "a.jpg"))) == {2, 7, 9, 255} and mask_of(folder, "empty.jpg").min() == 2
    )

    for wrong, message in (
        ({"0": "cat"}, "does not name dog, which is annotated; it names cat"),
        ({"0": "cat", "1": "dog", "2": "cat"}, "two classes the same name"),
        ({"0": "cat", "300": "dog"}, "class 300, but masks hold 0 to 254"),
        ({"-1": "cat", "1": "dog"}, "class -1, but masks hold 0 to 254"),
    ):
        names.write_text(json.dumps(wrong))
        assert run("import", [str(source), str(tmp_path / "new"), "--id2label", str(names)]) == 1
        assert message in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_tools_background_and_unused_classes_need_no_number(source, imported, tmp_path):
    write_photos(source / "JPEGImages", ["a.png", "b.png"])
    (source / "SegmentationClass").mkdir()
    colors = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(colors).save(source / "SegmentationClass" / "b.png")
    colors[:3] = 250, 0, 0
    Image.fromarray(colors).save(source / "SegmentationClass" / "a.png")
    (source / "labelmap.txt").write_text("background:0,0,0::\nroad:250,0,0::\nunused:0,9,0::\n")
    names = tmp_path / "id2label.json"
    names.write_text(json.dumps({"0": "car", "1": "road"}))
    folder, out = imported("--id2label", str(names))
    mask = mask_of(folder, "a.png")
    assert (mask[:3] == 1).all() and (mask[3:] == 255).all()
    assert photo_names(folder, "unlabeled") == {"b.png"}
    assert "photos without any usable annotation, kept as unlabelled: JPEGImages/b.png" in out


def test_shapes_other_than_polygons(source, imported):
    write_photos(source, ["a.jpg"])
    shapes = [
        {"label": "cat", "points": [[20, 15], [10, 5]], "shape_type": "rectangle"},
        {"label": "dog", "points": [[30, 20], [35, 20]], "shape_type": "circle"},
        {"label": "cat", "points": [[40, 10], [43, 13]], "shape_type": "mask"},
        {"label": "cat", "points": [[1, 1]], "shape_type": "point"},
    ]
    shapes[2]["mask"] = base64.b64encode(png(np.tri(4, dtype=np.uint8))).decode()
    write_json(
        source / "a.json", {"shapes": shapes, "imagePath": "..\\the export\\a.jpg", "imageHeight": HEIGHT}
    )
    folder, out = imported()
    expected = np.zeros((HEIGHT, WIDTH))
    expected[5:15, 10:20] = 1
    expected[10:14, 40:44] = np.tri(4)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    expected[(x - 30) ** 2 + (y - 20) ** 2 < 25] = 2
    assert (mask_of(folder, "a.jpg") != expected).sum() <= 4, "a circle is drawn as polygon"
    assert "1 shapes that have no area (points and lines): a.json" in out


@pytest.mark.parametrize("name", ["cvat", "label_studio"])
def test_turned_boxes(name, source, imported):
    write_photos(source, ["a.jpg"])
    if name == "cvat":  # around the middle
        box = '<box label="cat" xtl="10" ytl="15" xbr="30" ybr="25" rotation="90.0"/>'
        image = f'<image id="0" name="a.jpg" width="{WIDTH}" height="{HEIGHT}">{box}</image>'
        (source / "annotations.xml").write_text(f"<annotations>{image}</annotations>")
    else:  # around the upper left corner, in percent, clockwise
        value = {"x": 100 * 25 / WIDTH, "y": 25, "width": 100 * 20 / WIDTH, "height": 25, "rotation": 90}
        result = {"original_width": WIDTH, "original_height": HEIGHT, "value": {**value, "labels": ["cat"]}}
        task = {"data": {"image": "s3://bucket/a.jpg"}, "annotations": [{"result": [result]}]}
        write_json(source / "tasks.json", [task])
    folder, _ = imported()
    expected = np.zeros((HEIGHT, WIDTH))
    expected[10:30, 15:25] = 1
    np.testing.assert_array_equal(mask_of(folder, "a.jpg"), expected)


def test_nothing_is_overwritten_or_left_behind(source, tmp_path, capsys):
    EXPORTS["coco"](source)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("mine")
    assert "is not empty" in refused(source, tmp_path, capsys)
    (tmp_path / "photos" / "mine.txt").unlink()
    assert "leaves none for training" in refused(source, tmp_path, capsys, "--validation_fraction", "0.9")
    assert run("import", [str(source), str(source / "inside")]) == 1
    assert "lies inside" in capsys.readouterr().err
    assert run("import", [str(source), str(tmp_path / "photos")]) == 0, "an empty folder is fine"


def test_what_is_no_export_is_told(source, tmp_path, capsys):
    write_photos(source, ["a.jpg"])
    assert "Name their format as --format" in refused(source, tmp_path, capsys)
    assert "No photo" in refused(source, tmp_path, capsys, "--format", "coco")
    assert "no data.yaml" in refused(source, tmp_path, capsys, "--format", "yolo")
    (tmp_path / "export.zip").write_bytes(b"")
    assert "unpack it first" in refused(tmp_path / "export.zip", tmp_path, capsys)
    assert "does not exist" in refused(tmp_path / "gone", tmp_path, capsys)


def test_detection_survives_anything(source, tmp_path):
    assert detect(tmp_path / "gone") is None and detect(source) is None
    (source / "a.json").write_bytes(b'\xff\x00{"images": "annotations"')
    (source / "link.json").symlink_to(source / "gone.json")
    (source / "loop").symlink_to(source)
    (source / "labelmap.txt").mkdir()
    os.mkfifo(source / "pipe.json")
    (source / "b.xml").write_bytes(b"<image ")
    assert detect(source) is None


def test_packed_masks_cannot_fill_the_memory():
    from corrmatch_hf.data.annotations import bitmaps
    from corrmatch_hf.data.annotations.form import Unusable

    header = f"{2**32 - 1:032b}" + "0" * 24
    bomb = [int(header[i : i + 8], 2) for i in range(0, 56, 8)]
    for decode in (
        lambda: bitmaps.from_runs([0, 10**12], HEIGHT, WIDTH),
        lambda: bitmaps.from_runs([-5, 5 + HEIGHT * WIDTH], HEIGHT, WIDTH),
        lambda: bitmaps.from_coco_string("oooooooooooooooooooo0", HEIGHT, WIDTH),
        lambda: bitmaps.from_coco_string("0", HEIGHT, WIDTH),
        lambda: bitmaps.from_coco_string("o", HEIGHT, WIDTH),
        lambda: bitmaps.from_coco_string("", HEIGHT, WIDTH),
        lambda: bitmaps.from_label_studio(bomb, HEIGHT, WIDTH),
        lambda: bitmaps.from_label_studio([0], HEIGHT, WIDTH),
        lambda: bitmaps.from_picture("x", SIZE),
    ):
        with pytest.raises(Unusable):
            decode()


def test_a_hole_far_away_is_refused(source, imported):
    EXPORTS["supervisely"](source)
    path = source / "ds0" / "ann" / "a.jpg.json"
    content = json.loads(path.read_text())
    content["objects"][0]["points"]["interior"][0][1] = [25, 1.6e21]
    write_json(path, content)
    _, out = imported()
    assert "1 polygons that reach far beyond their photo: ds0/img/a.jpg" in out


def test_without_pycocotools_the_command_says_how_to_get_it(source, tmp_path, capsys, monkeypatch):
    EXPORTS["coco"](source)
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.mask", None)
    assert 'pip install "corrmatch-hf[formats]"' in refused(source, tmp_path, capsys)


def test_a_photo_beside_its_labelme_file_is_found_whatever_folder_the_file_names(source, imported):
    """LabelMe writes the path from where the file was made; the photos may have been moved since."""
    write_photos(source, ["a.jpg"])
    labelme_file(source / "a.json", "..\\..\\photos\\a.jpg", [("cat", SQUARE)])
    _, out = imported()
    assert "train: 1 photos with masks" in out
