import io

import numpy as np
import pytest
from PIL import Image

from corrmatch_hf.data.semi_dataset import undecoded
from corrmatch_hf.data.sources.synthetic import FIELD, synthetic_image, synthetic_semi_dataset
from corrmatch_hf.errors import InputError


def test_an_image_is_a_function_of_its_arguments():
    first = synthetic_image("unlabeled", 5, 64, seed=2)
    for a, b in zip(first, synthetic_image("unlabeled", 5, 64, seed=2), strict=True):
        assert np.array_equal(a, b)
    others = [("labeled", 5, 64, 2), ("unlabeled", 6, 64, 2), ("unlabeled", 5, 64, 3)]
    assert all(not np.array_equal(first[0], synthetic_image(*other)[0]) for other in others)
    assert first[0].shape == (64, 64, 3) and first[0].dtype == first[1].dtype == np.uint8


def test_the_set(synthetic):
    assert (len(synthetic.labeled), len(synthetic.unlabeled), len(synthetic.validation)) == (5, 11, 2)
    assert synthetic.unlabeled.column_names == ["image", "file"]
    image, mask = synthetic.read_labeled(undecoded(synthetic.labeled)[1])
    expected = synthetic_image("labeled", 1, 40)
    assert np.array_equal(np.array(image), expected[0]) and np.array_equal(mask, expected[1])


def test_validation_images_do_not_depend_on_the_seed():
    a, b = (synthetic_semi_dataset(4, 0, 3, 48, seed=seed) for seed in (0, 1))
    assert a.unlabeled is None
    for x, y in zip(undecoded(a.validation), undecoded(b.validation), strict=True):
        assert x["image"]["bytes"] == y["image"]["bytes"]
    assert a.labeled[0]["image"] != b.labeled[0]["image"]


@pytest.mark.parametrize("size", [32, 96])
def test_every_class_has_its_share(size):
    ids = np.concatenate([synthetic_image("unlabeled", i, size)[1].ravel() for i in range(60)])
    share = np.bincount(ids, minlength=5) / ids.size
    assert 0.5 < share[FIELD] < 0.85 and (share > 0.03).all() and len(share) == 5


@pytest.mark.parametrize("seed", range(5))
def test_four_labeled_images_show_every_class(seed):
    semi = synthetic_semi_dataset(4, 0, 0, seed=seed)
    seen = set().union(*(np.unique(semi.read_labeled(row)[1]).tolist() for row in undecoded(semi.labeled)))
    assert seen == {0, 1, 2, 3, 4}


def test_color_is_a_hint_and_no_more():
    """The class of a pixel, guessed from the nearest mean colour of a class: above chance and far from right."""
    pixels, ids = [], []
    for i in range(60):
        image, label = synthetic_image("unlabeled", i, 48)
        pixels.append(image.reshape(-1, 3)[::7].astype(float))
        ids.append(label.ravel()[::7])
    pixels, ids = np.concatenate(pixels), np.concatenate(ids)
    centers = np.array([pixels[ids == c].mean(0) for c in range(5)])
    guess = ((pixels[:, None] - centers) ** 2).sum(2).argmin(1)
    accuracy = np.mean([(guess[ids == c] == c).mean() for c in range(5)])
    assert 0.25 < accuracy < 0.75


def test_pictures_are_png(synthetic):
    picture = Image.open(io.BytesIO(undecoded(synthetic.labeled)[0]["image"]["bytes"]))
    assert picture.format == "PNG" and picture.size == (40, 40)


def test_impossible_sets_are_named():
    with pytest.raises(InputError, match=r"0 labelled"):
        synthetic_semi_dataset(labeled=0)
    with pytest.raises(InputError, match=r"8 pixels"):
        synthetic_semi_dataset(image_size=8)
