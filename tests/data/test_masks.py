import numpy as np
import pytest
from PIL import Image

from corrmatch_hf.data.masks import MaskFormat, voc_colors
from corrmatch_hf.errors import InputError

IDS = np.array([[0, 1, 2], [3, 255, 4]], dtype=np.uint8)


def test_voc_colors():
    """The first colours of PASCAL VOC's table, and the border's."""
    colors = voc_colors()
    assert colors[:5] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert colors[20] == (0, 64, 128) and colors[255] == (224, 224, 192)
    assert len(set(colors)) == 256


def palette_mask() -> Image.Image:
    """Ids behind colours whose brightness has nothing to do with them."""
    mask = Image.fromarray(IDS)
    mask.putpalette([value for color in reversed(voc_colors()) for value in color])
    assert mask.mode == "P"
    return mask


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "I", "F", "array", "list", "channel", "LA", "RGB"])
def test_every_kind_of_mask_gives_the_same_ids(tmp_path, mode):
    if mode == "P":
        value = palette_mask()
    elif mode in ("I;16", "I", "F"):
        value = Image.fromarray(IDS.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
        assert value.mode == mode
    elif mode == "array":
        value = IDS.astype(np.int64)
    elif mode == "list":
        value = IDS.tolist()
    elif mode == "channel":
        value = IDS[None]
    elif mode == "LA":
        value = Image.fromarray(np.stack([IDS, np.full_like(IDS, 255)], 2))
    elif mode == "RGB":  # ids, three times
        value = Image.fromarray(np.repeat(IDS[..., None], 3, 2))
    else:
        value = Image.fromarray(IDS)
    if isinstance(value, Image.Image):
        path = tmp_path / ("mask.tif" if mode in ("F", "I") else "mask.png")
        value.save(path)
        value = str(path)
    assert np.array_equal(MaskFormat(5).read(value, "mask"), IDS)


def test_sixteen_bit_ids_above_255(tmp_path):
    ids = np.array([[0, 300], [999, 65535]], dtype=np.uint16)
    Image.fromarray(ids).save(tmp_path / "mask.png")
    found = MaskFormat(1000, ignore_index=65535).read(str(tmp_path / "mask.png"), "mask")
    assert np.array_equal(found, ids.astype(np.int32))


def test_black_and_white_pictures_are_two_classes(tmp_path):
    Image.fromarray(IDS > 0).save(tmp_path / "mask.png")  # mode "1"
    assert np.array_equal(MaskFormat(2).read(str(tmp_path / "mask.png"), "mask"), IDS > 0)
    gray = np.where(IDS > 0, 255, 0).astype(np.uint8)
    both = MaskFormat(2, label_colors=((0, 0, 0), (255, 255, 255)))
    assert np.array_equal(both.read(Image.fromarray(gray), "mask"), IDS > 0)
    assert np.array_equal(both.read(Image.fromarray((IDS > 0).astype(np.uint8)), "mask"), IDS > 0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_color_coded_masks(mode):
    table = {0: (10, 20, 30), 1: (30, 20, 10), 2: (0, 0, 0), 255: (255, 255, 255)}
    ids = np.array([[0, 1], [2, 255]])
    colors = np.array([[table[i] for i in row] for row in ids], dtype=np.uint8)
    form = MaskFormat(3, label_colors=(table[0], table[1], table[2]), ignore_colors=(table[255],))
    assert np.array_equal(form.read(Image.fromarray(colors).convert(mode), "mask"), ids)
    colors[1, 0] = (1, 2, 3)
    with pytest.raises(
        InputError, match=r"m.png has the colour \(1, 2, 3\) at row 1, column 0.*--label_colors"
    ):
        form.read(Image.fromarray(colors).convert(mode), "m.png")


def test_voc_colors_need_no_option():
    ids = np.array([[0, 20], [7, 255]])
    colors = np.array(voc_colors(), dtype=np.uint8)[ids]
    assert np.array_equal(MaskFormat(21).read(colors, "mask"), ids)
    assert np.array_equal(MaskFormat(None).read(colors, "mask"), ids)
    with pytest.raises(InputError, match=r"PASCAL VOC's colours do not name"):
        MaskFormat(7).read(colors, "mask")  # class 7 is not one of the first seven


@pytest.mark.parametrize("ignore_index", [255, -100, 0, 65535])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_reduce_labels(ignore_index, dtype):
    found = MaskFormat(4, ignore_index, reduce_labels=True).read(np.array([[0, 1, 4]], dtype=dtype), "mask")
    assert found.tolist() == [[ignore_index, 0, 3]]


def test_reduce_labels_keeps_the_ignore_value():
    assert MaskFormat(4, 255, True).read(np.array([[255, 1]], np.uint8), "m").tolist() == [[255, 0]]


def test_ignore_index_in_the_mask():
    assert MaskFormat(3, ignore_index=9).read(np.array([[0, 2, 9]], np.uint8), "m").tolist() == [[0, 2, 9]]


@pytest.mark.parametrize(
    "ids, listed", [([[0, 7]], "id 7"), ([[5, 9, 6]], "ids 5, 6, 9"), ([[-1, 0]], "id -1")]
)
def test_ids_without_a_class_are_named_with_the_remedy(ids, listed):
    with pytest.raises(InputError) as error:
        MaskFormat(5).read(np.array(ids), "masks/a.png")
    message = str(error.value)
    assert f"Mask masks/a.png holds the class {listed}" in message and "0 to 4" in message
    assert all(
        option in message for option in ("--num_labels", "--id2label", "--ignore_index", "--reduce_labels")
    )


def test_an_array_that_is_not_a_mask_is_named():
    for value in (np.zeros((2, 2, 5), np.uint8), np.array([[0.5]]), None, np.zeros((0, 3), np.uint8)):
        with pytest.raises(InputError, match=r"Mask masks/a\.png"):
            MaskFormat(5).read(value, "masks/a.png")


def test_the_classes_that_occur():
    assert MaskFormat(None).present(IDS, "mask") == {0, 1, 2, 3, 4}
