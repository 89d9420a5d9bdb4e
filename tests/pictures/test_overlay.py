import numpy as np
import pytest
from PIL import Image

from corrmatch_hf.errors import InputError
from corrmatch_hf.pictures import class_palette, mask_image, overlay
from corrmatch_hf.pictures.overlay import class_shares

ID2LABEL = {0: "sky", 1: "road", 2: "car"}
PALETTE = class_palette(ID2LABEL)


def test_mask_image_keeps_the_ids_and_shows_the_colours(tmp_path):
    label_map = np.array([[0, 1, 2], [2, 255, 0]])
    mask_image(label_map, PALETTE).save(tmp_path / "mask.png")
    image = Image.open(tmp_path / "mask.png")
    assert image.mode == "P"
    np.testing.assert_array_equal(np.array(image), label_map)
    shown = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(shown[0], PALETTE)
    assert shown[1, 1].tolist() == [255, 255, 255]


def test_mask_image_of_very_many_classes_is_sixteen_bit(tmp_path):
    label_map = np.array([[0, 299], [700, 255]])
    mask_image(label_map, np.zeros((847, 3), np.uint8)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "mask.png")), label_map)


@pytest.mark.parametrize("bad", [-1, 256])
def test_mask_image_refuses_ids_a_byte_does_not_hold(bad):
    with pytest.raises(InputError, match="0 to 255"):
        mask_image(np.array([[0, bad]]), PALETTE)


def test_overlay_blends_classes_and_leaves_ignored_pixels():
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    label_map = np.zeros((40, 60), int)
    label_map[:, 30:] = 255
    picture = np.array(overlay(photo, label_map, ID2LABEL, PALETTE, alpha=0.25))
    blended = (0.75 * photo + 0.25 * PALETTE[0]).round()
    np.testing.assert_allclose(picture[:40, :29], blended[:, :29], atol=1)
    np.testing.assert_array_equal(picture[:40, 29], np.tile(PALETTE[0], (40, 1)))  # the border, opaque
    np.testing.assert_array_equal(picture[:40, 30:60], photo[:, 30:])


def test_overlay_without_colours_is_the_photo():
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    label_map = np.random.default_rng(1).integers(0, 3, (40, 60))
    picture = overlay(Image.fromarray(photo), label_map, ID2LABEL, PALETTE, alpha=0)
    np.testing.assert_array_equal(np.array(picture)[:40, :60], photo)


def test_the_legend_lists_the_classes_present_by_share():
    label_map = np.array([[2, 2, 2, 2, 2, 2], [0, 0, 0, 255, 255, 255]])
    entries = class_shares(label_map, ID2LABEL, PALETTE)
    assert [(e.name, e.note) for e in entries] == [("car", "50.0%"), ("sky", "25.0%"), ("ignored", "25.0%")]
    assert entries[0].color == tuple(PALETTE[2].tolist())


@pytest.mark.parametrize("size", [(16, 16), (360, 480), (90, 700)])
@pytest.mark.parametrize("count", [1, 3, 60])
def test_the_legend_is_drawn_whole_beside_the_photo(size, count):
    """Every colour present has its patch beside the photo, and the outermost pixels are white."""
    id2label = {i: f"a class with a rather long name, the {i}th" for i in range(count)}
    palette = class_palette(id2label)
    label_map = np.arange(size[0] * size[1]).reshape(size) % count
    picture = np.array(overlay(np.zeros((*size, 3), np.uint8), label_map, id2label, palette))
    legend = picture[:, size[1] :]
    assert picture.shape[0] >= size[0] and legend.shape[1] > 50
    for color in palette:
        assert (legend == color).all(-1).sum() >= 64
    for edge in (legend[0], legend[-1], legend[:, 0], legend[:, -1]):
        assert (edge == 255).all()


def test_a_photo_of_another_size_or_a_wrong_alpha_is_refused():
    photo = np.zeros((4, 6, 3), np.uint8)
    with pytest.raises(InputError, match=r"\(6, 4\).*\(4, 6\)"):
        overlay(photo, np.zeros((6, 4), int), ID2LABEL, PALETTE)
    with pytest.raises(InputError, match="alpha is 2"):
        overlay(photo, np.zeros((4, 6), int), ID2LABEL, PALETTE, alpha=2)
