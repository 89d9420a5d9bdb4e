import numpy as np
import pytest
from PIL import Image, ImageDraw

from corrmatch_hf.errors import InputError
from corrmatch_hf.pictures import class_palette, prediction_grid

ID2LABEL = {0: "sky", 1: "road", 2: "car"}
PALETTE = class_palette(ID2LABEL)


def count_of(picture, color):
    return int((np.array(picture) == color).all(-1).sum())


def row(height=30, width=40, **maps):
    photo = np.full((height, width, 3), (9, 8, 7), np.uint8)
    return {"image": photo} | {key: np.full((height, width), value) for key, value in maps.items()}


def test_columns_are_those_that_some_row_has():
    two = prediction_grid([row(prediction=1)], ID2LABEL, PALETTE, cell_width=120)
    three = prediction_grid([row(prediction=1, label=0)], ID2LABEL, PALETTE, cell_width=120)
    four = prediction_grid(
        [row(prediction=1, label=0, pseudo_label=255), row(prediction=1)], ID2LABEL, PALETTE, cell_width=120
    )
    five = prediction_grid(
        [row(prediction=1, label=0, pseudo_label=255, supervised=2)], ID2LABEL, PALETTE, cell_width=120
    )
    assert three.width - two.width == four.width - three.width == five.width - four.width > 120


def test_every_map_is_shown_in_its_colours_only():
    grid = prediction_grid([row(label=0, prediction=1)], ID2LABEL, PALETTE, cell_width=120)
    inside = 118 * 88  # without the frame
    assert count_of(grid, (9, 8, 7)) == 120 * 90
    assert count_of(grid, PALETTE[0]) >= inside and count_of(grid, PALETTE[1]) >= inside
    assert count_of(grid, PALETTE[2]) == 0  # neither in a map nor in the legend


def test_the_order_is_photo_truth_prediction_pseudo_label():
    grid = np.array(
        prediction_grid([row(label=0, prediction=1, pseudo_label=2)], ID2LABEL, PALETTE, cell_width=120)
    )
    middle = grid[24 + 45]  # title, then half a cell
    found = [np.nonzero((middle == color).all(-1))[0].mean() for color in ((9, 8, 7), *PALETTE)]
    assert found == sorted(found)


def test_each_prediction_has_its_iou_where_the_truth_is_known(monkeypatch):
    written = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, xy, words, **k: [written.append(words), text(self, xy, words, **k)],
    )
    truth = np.zeros((30, 40), int)
    truth[:15] = 1
    truth[0] = 255
    half = np.where(np.arange(40) < 20, truth, 2)  # half of both classes is right
    photo = row()["image"]
    rows = [{"image": photo, "label": truth, "supervised": half, "prediction": truth}, row(prediction=1)]
    prediction_grid(rows, ID2LABEL, PALETTE, titles={"supervised": "3 labelled photos alone"})
    assert [words for words in written if words.startswith("IoU")] == [
        "IoU 33 %",
        "IoU 100 %",
    ]  # 50, 50 and 0
    assert "3 labelled photos alone" in written and "prediction" in written


def test_ignored_pixels_are_white_and_in_the_legend():
    ignored = np.full((30, 40), 255)
    ignored[0, 0] = 1
    with_ignored = prediction_grid(
        [row(prediction=1) | {"label": ignored}], ID2LABEL, PALETTE, cell_width=120
    )
    without = prediction_grid([row(label=1, prediction=1)], ID2LABEL, PALETTE, cell_width=120)
    assert count_of(with_ignored, (255, 255, 255)) > count_of(without, (255, 255, 255)) + 118 * 88 - 2000
    assert count_of(with_ignored, PALETTE[1]) < count_of(without, PALETTE[1])


@pytest.mark.parametrize("size", [(10, 100), (100, 10), (500, 400)])
def test_pictures_of_any_shape_fit_their_cell(size):
    grid = prediction_grid([row(*size, prediction=1), row(prediction=2)], ID2LABEL, PALETTE, cell_width=120)
    assert grid.height < 2 * 160 + 120
    for edge in (np.array(grid)[0], np.array(grid)[-1], np.array(grid)[:, 0], np.array(grid)[:, -1]):
        assert (edge == 255).all()


def test_pil_photos_of_other_modes_are_shown():
    photo = Image.new("L", (40, 30), 77)
    grid = prediction_grid([{"image": photo, "prediction": np.zeros((30, 40), int)}], ID2LABEL, PALETTE)
    assert count_of(grid, (77, 77, 77)) > 1000


def test_no_rows_are_refused():
    with pytest.raises(InputError, match="no image"):
        prediction_grid([], ID2LABEL, PALETTE)
