"""Classes are guessed only where that is plausible; everything else is told with an option that mends it."""

import json
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from corrmatch_hf.commands.arguments import parse
from corrmatch_hf.data import load_semi_dataset
from corrmatch_hf.data.check import check_dataset
from corrmatch_hf.data.options import DataOptions
from corrmatch_hf.errors import InputError

from .pictures_on_disk import write_photo

BANDS = np.repeat(np.arange(4), 10)[None].repeat(30, 0)  # (30, 40): four bands


def mask_folder(root, values, save=None, count=3, suffix=".png"):
    """Photos with masks whose bands hold `values`."""
    values = np.asarray(values)
    for i in range(count):
        write_photo(root / "images" / f"{i}.jpg", i, size=(40, 30))
        path = root / "masks" / f"{i}{suffix}"
        path.parent.mkdir(exist_ok=True)
        array = values[BANDS % len(values)]
        Image.fromarray(array).save(path) if save is None else save(array, path, i)
    return root


def load(root, **options):
    return load_semi_dataset(data_dir=str(root), **options)


def refusal(root, **options) -> str:
    with pytest.raises(InputError) as error:
        load(root, **options)
    assert len(str(error.value)) < 1000
    return str(error.value)


def mask_of(semi, row=0):
    from corrmatch_hf.data.semi_dataset import undecoded

    return semi.read_labeled(undecoded(semi.labeled)[row])[1]


@pytest.mark.parametrize(
    "values, says",
    [
        (np.array([0, 100, 200], np.uint8), ["0, 100, 200", "--id2label", "--num_labels 201"]),
        (np.array([7, 26], np.uint8), ["7, 26", "--id2label", "--num_labels 27"]),
        (np.array([0, 26001, 26002], np.uint16), ["instance ids", "26002"]),
        (np.arange(240, dtype=np.uint8), ["240 different values", "interpolation"]),
        (np.array([0], np.uint8), ["no class id but 0"]),
        (np.array([255], np.uint8), ["no class id"]),
    ],
)
def test_implausible_ids_are_refused(tmp_path, values, says):
    if len(values) > 4:

        def save(array, path, i):
            Image.fromarray(np.resize(values, (30, 40))).save(path)

        message = refusal(mask_folder(tmp_path, [0], save))
    else:
        message = refusal(mask_folder(tmp_path, values))
    assert all(text in message for text in says)


def test_the_printed_mapping_works_when_typed(tmp_path):
    message = refusal(mask_folder(tmp_path, np.array([0, 100, 200], np.uint8)))
    arguments = shlex.split(re.search(r"--id2label '.*?'", message)[0])
    (options,) = parse("check", DataOptions, args=[*arguments, "--data_dir", str(tmp_path)], description="")
    semi = load_semi_dataset(options)
    assert semi.num_labels == 3 and set(np.unique(mask_of(semi))) == {0, 1, 2}


@pytest.mark.parametrize(
    "number, labels",
    [(1, None), (2, {"7": "road", "26": "car"}), (3, {"7": "road", "26": "car", "0": None})],
)
def test_names_may_have_any_ids(tmp_path, number, labels):
    values = np.array([7, 26] if number < 3 else [0, 7, 26], np.uint8)
    root = mask_folder(tmp_path, values)
    if labels is None:
        (root / "id2label.json").write_text('{"7": "road", "26": "car"}')
    semi = load(root, id2label=labels)
    assert semi.id2label == {0: "road", 1: "car"}
    assert np.unique(mask_of(semi)).tolist() == ([0, 1] if number < 3 else [0, 1, 255])
    with pytest.raises(InputError, match="holds the class id 26, which id2label does not name"):
        check_dataset(load(root, id2label={"7": "road", "0": None, "1": "car"}), need_unlabeled=False)


def test_black_and_white(tmp_path):
    root = mask_folder(tmp_path, np.array([0, 255], np.uint8))
    for options in (
        {},
        {"num_labels": 2},
        {"id2label": ["road", "crack"]},
        {"id2label": {"0": "a", "255": "b"}},
    ):
        semi = load(root, **options)
        assert semi.num_labels == 2 and set(np.unique(mask_of(semi))) == {0, 1}
        assert options.get("id2label") or any("0 and 255 alone" in note for note in semi.notes)
    assert "no class id but 0" in refusal(root, ignore_index=255)
    assert load(root, label_colors="[[0, 0, 0], [255, 255, 255]]").num_labels == 2


def test_a_third_value_makes_255_the_ignored_one(tmp_path):
    semi = load(mask_folder(tmp_path, np.array([0, 1, 255], np.uint8)))
    assert semi.num_labels == 2 and set(np.unique(mask_of(semi))) == {0, 1, 255} and not semi.notes


def test_lossy_masks_are_refused_and_named(tmp_path):
    def save(array, path, i):
        Image.fromarray(array.astype(np.uint8)).resize((160, 120)).save(path, quality=50)

    message = refusal(mask_folder(tmp_path, [0, 255], save, suffix=".jpg"))
    assert "JPEG" in message and "0.jpg" in message


def test_a_key_that_stands_twice_is_refused(tmp_path):
    root = mask_folder(tmp_path, np.array([0, 1], np.uint8))
    (root / "id2label.json").write_text('{"0": "road", "0": "car"}')
    assert "a key stands there twice" in refusal(root)


def test_a_few_gaps_are_told(tmp_path):
    semi = load(mask_folder(tmp_path, np.array([0, 1, 3], np.uint8)))
    assert semi.num_labels == 4 and any("holds the ids 2" in note for note in semi.notes)


# ------------------------------------------------------------------------------------------------- colours

COLORS = [(70, 130, 180), (128, 64, 128), (220, 20, 60)]


def indexed(array, path, i, order=(2, 0, 1)):
    """An indexed mask whose palette is in another order than the classes."""
    picture = Image.fromarray(np.array([order.index(v) for v in range(3)], np.uint8)[array])
    picture.putpalette([c for v in order for c in COLORS[v]])
    picture.save(path)


def test_colors_win_over_indices(tmp_path):
    semi = load(mask_folder(tmp_path, np.arange(3), indexed), label_colors=COLORS)
    np.testing.assert_array_equal(mask_of(semi), BANDS % 3)
    assert not any("palettes" in note for note in semi.notes)


def test_palettes_that_differ_are_told(tmp_path):
    def save(array, path, i):
        indexed(array, path, i, [(2, 0, 1), (0, 1, 2), (0, 1, 2)][i])

    root = mask_folder(tmp_path, np.arange(3), save)
    assert any(
        "palettes of the masks differ" in text for text in check_dataset(load(root), need_unlabeled=False)
    )
    semi = load(root, label_colors=COLORS)
    np.testing.assert_array_equal(mask_of(semi, 0), mask_of(semi, 1))


def test_unknown_colors_are_listed_ready_to_paste(tmp_path):
    def save(array, path, i):
        Image.fromarray(np.array(COLORS, np.uint8)[array]).save(path)

    root = mask_folder(tmp_path, np.arange(3), save)
    colors = json.loads(re.search(r"--label_colors '(.*?)'", refusal(root))[1])
    assert sorted(map(tuple, colors)) == sorted(COLORS)
    assert load(root, label_colors=json.dumps(colors)).num_labels == 3


def test_cvat_names_its_colors_itself(tmp_path):
    def save(array, path, i):
        Image.fromarray(np.array(COLORS, np.uint8)[array]).save(path)

    mask_folder(tmp_path, np.arange(3), save)
    (tmp_path / "masks").rename(tmp_path / "SegmentationClass")
    (tmp_path / "images").rename(tmp_path / "JPEGImages")
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/default.txt").write_text("0\n1\n2\n")
    lines = [
        f"{name}:{','.join(map(str, c))}::"
        for name, c in zip(("sky", "road: left", "person"), COLORS, strict=True)
    ]
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines))
    semi = load(tmp_path)
    assert list(semi.id2label.values()) == ["sky", "road: left", "person"] and len(semi.labeled) == 3
    np.testing.assert_array_equal(mask_of(semi), BANDS % 3)


def test_roboflow_names_its_ids_itself(tmp_path):
    for split in ("train", "valid"):
        for i in range(2):
            write_photo(tmp_path / split / f"p{i}_jpg.rf.abc.jpg", i, size=(40, 30))
            Image.fromarray((BANDS % 3).astype(np.uint8)).save(tmp_path / split / f"p{i}_jpg.rf.abc_mask.png")
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, cat\n2, dog\n")
    semi = load(tmp_path)
    assert list(semi.id2label.values()) == ["background", "cat", "dog"]
    assert len(semi.labeled) == len(semi.validation) == 2


def test_an_array_file_is_a_mask(tmp_path):
    root = mask_folder(tmp_path, np.arange(3), lambda array, path, i: np.save(path, array), suffix=".npy")
    np.testing.assert_array_equal(mask_of(load(root)), BANDS % 3)
    np.save(root / "masks" / "1.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"Cannot read the mask .*1\.npy: .*objects"):
        check_dataset(load(root), need_unlabeled=False)


def test_white_of_sixteen_bits(tmp_path):
    semi = load(mask_folder(tmp_path, np.array([0, 65535], np.uint16)))
    assert semi.id2label == {0: "background", 1: "foreground"}
    assert set(np.unique(mask_of(semi))) == {0, 1} and "0 and 65535 alone" in semi.notes[0]


def test_two_ways_to_write_the_foreground_are_told(tmp_path):
    def save(array, path, i):
        Image.fromarray(array * np.uint8(1 if i else 255)).save(path)

    root = mask_folder(tmp_path, np.array([0, 1], np.uint8), save)
    (note,) = load(root).notes
    assert "0 and 1 alone" in note and "0.png" in note and "1.png" in note
    assert not load(root, ignore_index=255).notes


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_masks_drawn_in_transparency_are_refused(tmp_path, mode):
    def save(array, path, i):
        picture = Image.new(mode, (40, 30))
        picture.putalpha(Image.fromarray(array * np.uint8(255)))
        picture.save(path)

    root = mask_folder(tmp_path, np.array([0, 1], np.uint8), save)
    assert "transparency alone" in refusal(root) and "getchannel" in refusal(root)
    with pytest.raises(InputError, match="transparency alone"):
        check_dataset(load(root, id2label=["a", "b"]), need_unlabeled=False)


def test_masks_resized_with_interpolation_are_named_as_such(tmp_path):
    def save(array, path, i):
        Image.fromarray(array * np.uint8(255)).resize((13, 11), Image.BILINEAR).resize((40, 30), 2).save(path)

    assert "interpolation" in refusal(mask_folder(tmp_path, np.array([0, 1], np.uint8), save))


def test_named_gray_levels_are_not_taken_for_vocs_colors(tmp_path):
    levels = np.arange(0, 256, 32, dtype=np.uint8)

    def save(array, path, i):
        array = np.resize(levels, (30, 40)) if i else array  # the first one: 0 and 128, VOC's class 7
        Image.fromarray(array).convert("RGB").save(path)

    root = mask_folder(tmp_path, np.array([0, 128], np.uint8), save)
    semi = load(root, id2label={str(level): f"level {level}" for level in levels.tolist()})
    assert set(np.unique(mask_of(semi))) == {0, 4}


def test_descriptions_of_classes_are_not_names(tmp_path):
    message = refusal(
        mask_folder(tmp_path, np.array([0, 1], np.uint8)), id2label=[{"name": "sky"}, {"name": "road"}]
    )
    assert '{"0": "sky", "1": "road"}' in message


def test_many_ids_without_a_class_are_named_as_what_they_are(tmp_path):
    root = mask_folder(
        tmp_path,
        [0],
        lambda array, path, i: Image.fromarray(
            np.eye(30, 40, dtype=np.uint8) * np.arange(40, dtype=np.uint8)
        ).save(path),
    )
    with pytest.raises(InputError, match="interpolation"):
        check_dataset(load(root, num_labels=2), need_unlabeled=False)


def test_one_jpeg_among_black_and_white_masks_is_named(tmp_path):
    def save(array, path, i):
        Image.fromarray(array).save(path, "PNG" if i else "JPEG")

    semi = load(mask_folder(tmp_path, np.array([0, 255], np.uint8), save))
    assert semi.id2label == {0: "background", 1: "foreground"} and "1 masks are JPEGs" in semi.notes[0]
