import numpy as np
import pytest

from corrmatch_hf.errors import InputError
from corrmatch_hf.pictures import class_palette


def names(count):
    return {i: f"class {i}" for i in range(count)}


@pytest.mark.parametrize("count", [1, 2, 21, 150, 256])
def test_every_class_has_its_own_colour_and_none_is_white(count):
    palette = class_palette(names(count))
    assert palette.shape == (count, 3) and palette.dtype == np.uint8
    colors = {tuple(color) for color in palette.tolist()}
    assert len(colors) == count and (255, 255, 255) not in colors


def test_colours_of_few_classes_are_far_apart():
    palette = class_palette(names(20)).astype(int)
    distance = np.abs(palette[:, None] - palette[None]).sum(-1) + 1000 * np.eye(20, dtype=int)
    assert distance.min() > 60


def test_the_colours_stay_when_classes_are_added():
    np.testing.assert_array_equal(class_palette(names(30))[:11], class_palette(names(11)))


def test_background_is_black_and_the_others_keep_their_colours():
    palette = class_palette({0: "Background", 1: "class 1", 2: "class 2"})
    assert palette[0].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(palette[1:], class_palette(names(3))[1:])


def test_what_one_caller_changes_does_not_reach_the_next():
    class_palette(names(5))[:] = 0
    assert class_palette(names(5)).any()


def test_given_colours_are_taken():
    palette = class_palette(names(2), [(0, 128, 255), (1, 2, 3)])
    assert palette.dtype == np.uint8 and palette.tolist() == [[0, 128, 255], [1, 2, 3]]


@pytest.mark.parametrize(
    "colors", [[(0, 0, 0)], [(0, 0), (1, 1)], [(0, 0, 256), (0, 0, 0)], [(0, 0, -1)] * 2]
)
def test_given_colours_that_do_not_fit_are_refused(colors):
    with pytest.raises(InputError, match="2 classes"):
        class_palette(names(2), colors)
