"""A dataset that `datasets` itself published, read by `datasets` and by this package."""

import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Image, load_dataset
from PIL import Image as PIL

from corrmatch_hf.data import load_semi_dataset
from corrmatch_hf.data.images import read_photo
from corrmatch_hf.errors import InputError

from .loopback_hub import OTHER_TOKEN

pytestmark = pytest.mark.usefixtures("online_datasets")

NAMES = {"0": "sky", "1": "road", "2": "car"}
PALETTE = [70, 130, 180, 128, 64, 128, 0, 0, 142]


def pair(seed: int) -> dict:
    """A photo, and a mask with a palette as of VOC, where 255 is no class."""
    rng = np.random.default_rng(seed)
    mask = PIL.fromarray(rng.choice([0, 1, 2, 255], (36, 48)).astype(np.uint8)).convert("P")
    mask.putpalette(PALETTE)
    return {"image": PIL.fromarray(rng.integers(0, 256, (36, 48, 3), dtype=np.uint8)), "label": mask}


@pytest.fixture
def splits():
    features = Features({"image": Image(), "label": Image()})
    counts = {"train": range(6), "validation": range(10, 13)}
    return DatasetDict(
        {n: Dataset.from_list([pair(i) for i in r], features=features) for n, r in counts.items()}
    )


@pytest.fixture
def published(splits, api):
    splits.push_to_hub("user/scenes")
    api.upload_file(
        path_or_fileobj=json.dumps(NAMES).encode(), path_in_repo="id2label.json", repo_id="user/scenes",
        repo_type="dataset",
    )  # fmt: skip
    return splits


def arrays(rows) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.array(row["image"]), np.array(row["label"])) for row in rows]


def assert_same(ours, theirs):
    for (image, mask), (image2, mask2) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(image, image2)
        np.testing.assert_array_equal(mask, mask2)


def test_it_comes_back_bit_for_bit_whole_and_as_a_stream(published):
    expected = arrays(published["train"])
    assert_same(arrays(load_dataset("user/scenes", split="train")), expected)
    assert_same(arrays(load_dataset("user/scenes", split="train", streaming=True)), expected)
    assert {255, 0, 1, 2} == set(np.unique(expected[0][1])), "palette indices, not colours"


@pytest.mark.parametrize("streaming", [False, True])
def test_the_images_masks_and_class_names_arrive_here(published, streaming):
    semi = load_semi_dataset("user/scenes", labeled_count=4, streaming=streaming)
    assert semi.id2label == {0: "sky", 1: "road", 2: "car"} and semi.hub_id == "user/scenes"
    train = arrays(published["train"])
    labeled = [semi.read_labeled(row) for row in semi.labeled]
    rest = [np.array(read_photo(row["image"], row["file"])) for row in semi.unlabeled]
    assert len(labeled) == 4 and len(rest) == 2
    rows = {image.tobytes(): mask for image, mask in train}
    assert len({np.array(image).tobytes() for image, _ in labeled} | {image.tobytes() for image in rest}) == 6
    assert all(image.tobytes() in rows for image in rest)
    for image, mask in labeled:
        np.testing.assert_array_equal(mask, rows[np.array(image).tobytes()])
    assert_same([semi.read_labeled(row) for row in semi.validation], arrays(published["validation"]))


def test_a_branch_holds_another_dataset(published, api):
    api.create_branch("user/scenes", branch="fewer", repo_type="dataset")
    published["train"].select([5, 2]).push_to_hub("user/scenes", split="train", revision="fewer")
    assert len(load_semi_dataset("user/scenes").labeled) == 6
    fewer = load_semi_dataset("user/scenes", dataset_revision="fewer")
    train = arrays(published["train"])
    assert_same([fewer.read_labeled(row) for row in fewer.labeled], [train[5], train[2]])


def test_what_is_missing_or_private_is_named(splits, monkeypatch):
    with pytest.raises(InputError, match="user/nothing"):
        load_semi_dataset("user/nothing")
    splits.push_to_hub("user/secret", private=True)
    with monkeypatch.context() as stranger:
        stranger.setenv("HF_TOKEN", OTHER_TOKEN)
        with pytest.raises(InputError, match="user/secret") as raised:
            load_semi_dataset("user/secret")
        assert OTHER_TOKEN not in str(raised.value)
    assert len(load_semi_dataset("user/secret").labeled) == 6
