"""A local folder becomes a dataset on the Hub, and trains from there as it did from the folder."""

import json
import re

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image

from corrmatch_hf.commands import run
from corrmatch_hf.commands.push_dataset import main
from corrmatch_hf.data import load_semi_dataset
from corrmatch_hf.errors import InputError
from corrmatch_hf.hub.upload import UploadError

from ..data.pictures_on_disk import write_photo, write_split
from .loopback_hub import TOKEN

NAMES = {"0": "sky", "1": "road", "2": "car", "3": "träd"}


pytestmark = pytest.mark.usefixtures("online_datasets")


@pytest.fixture
def folder(tmp_path):
    """Training and validation pairs, training images without masks, a split "unlabeled"."""
    root = tmp_path / "streets"
    write_split(root / "train" / "images", root / "train" / "masks", 8)
    write_split(root / "val" / "images", root / "val" / "masks", 3, first=100)
    write_photo(root / "train" / "images" / "900.png", 900)
    write_split(root / "unlabeled", None, 2, first=700)
    (root / "id2label.json").write_text(json.dumps(NAMES))
    return root


def published(hub, revision="main", repo_id="user/streets") -> dict[str, bytes]:
    return hub.files(repo_id, revision, "dataset")


def front_matter(files: dict[str, bytes]) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", files["README.md"].decode(), re.S)[1])


def same(ours, theirs):
    """Two SemiDatasets hold the same pictures and ids, in the same order."""
    assert ours.id2label == theirs.id2label
    for part in ("labeled", "validation"):
        for one, other in zip(getattr(ours, part), getattr(theirs, part), strict=True):
            (image, mask), (image2, mask2) = ours.read_labeled(one), theirs.read_labeled(other)
            assert image == image2
            np.testing.assert_array_equal(mask, mask2)
    for one, other in zip(ours.unlabeled, theirs.unlabeled, strict=True):
        assert one["image"] == other["image"]


def test_a_folder_comes_back_from_the_hub_as_it_was(hub, folder, capsys):
    main([str(folder), "user/streets"])
    same(load_semi_dataset("user/streets"), load_semi_dataset(data_dir=str(folder)))
    drawn = {"labeled_fraction": 0.5, "split_seed": 1}
    same(load_semi_dataset("user/streets", **drawn), load_semi_dataset(data_dir=str(folder), **drawn))
    assert json.loads(published(hub)["id2label.json"]) == NAMES

    rows = datasets.load_dataset("user/streets", split="train").cast_column(
        "label", datasets.Image(decode=False)
    )
    for row in rows.select(range(8)):  # not decoded and written again
        assert row["label"]["bytes"] == (folder / "train" / "masks" / row["label"]["path"]).read_bytes()
    assert rows[8]["label"] is None

    printed = capsys.readouterr()
    assert "train: 9 images, 8 of them with a mask" in printed.out
    assert printed.out.endswith(f"published: {hub.url}/datasets/user/streets\n")
    assert TOKEN not in printed.out + printed.err


def test_a_folder_is_published_and_trained_on_by_its_id(folder, tmp_path, capfd):
    assert run("push-dataset", [str(folder), "user/streets"]) == 0
    output = tmp_path / "run"
    options = {
        "dataset_name": "user/streets", "labeled_fraction": 0.5, "output_dir": output, "max_steps": 1,
        "encoder_name": "test_resnet", "encoder_weights": "none", "aspp_channels": 16, "decoder_channels": 16,
        "correlation_channels": 16, "crop_size": 33, "per_device_batch_size": 2,
    }  # fmt: skip
    assert run("train", [text for name, value in options.items() for text in (f"--{name}", str(value))]) == 0
    # unlabelled: four drawn, one that never had a mask, two of their own split
    assert "user/streets: 4 labelled, 7 unlabelled, 3 validation; 4 classes" in capfd.readouterr().out
    assert json.loads((output / "config.json").read_text())["id2label"] == NAMES


def test_masks_in_another_form_come_back_as_ids(hub, folder, tmp_path):
    for path in folder.glob("*/masks/*.png"):
        ids = np.array(Image.open(path))
        Image.fromarray(np.where(ids == 255, 0, ids + 1).astype(np.uint8)).save(path)
    (folder / "id2label.json").unlink()
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    names = str(tmp_path / "names.json")
    main([str(folder), "user/streets", "--reduce_labels", "--id2label", names])
    theirs = load_semi_dataset(data_dir=str(folder), reduce_labels=True, id2label=names)
    same(load_semi_dataset("user/streets"), theirs)


def test_the_card_keeps_what_datasets_wrote_and_adds_what_is_known(hub, folder):
    main([str(folder), "streets", "--license", "cc-by-4.0"])
    files = published(hub)
    data = front_matter(files)
    splits = data["dataset_info"]["splits"]
    assert {split["name"]: split["num_examples"] for split in splits} == {
        "train": 9,
        "validation": 3,
        "unlabeled": 2,
    }
    assert data["configs"][0]["config_name"] == "default"
    assert (data["license"], data["task_categories"]) == ("cc-by-4.0", ["image-segmentation"])
    text = files["README.md"].decode()
    assert "| train | 9 | 8 |" in text
    assert "--dataset_name user/streets" in text, "the full id, though a name alone was given"
    assert hub.messages("user/streets", "dataset")[1:] == ["Upload dataset", "Describe the dataset"]


def test_pushing_again_replaces_the_dataset_and_keeps_additions_to_the_front_matter(hub, api, folder):
    main([str(folder), "user/streets"])
    readme = published(hub)["README.md"].replace(b"---\n", b"---\nlanguage: sv\n", 1)
    api.upload_file(
        path_or_fileobj=readme, path_in_repo="README.md", repo_id="user/streets", repo_type="dataset"
    )
    for path in (folder / "unlabeled").iterdir():
        path.unlink()
    (folder / "unlabeled").rmdir()
    (folder / "train" / "images" / "900.png").unlink()
    main([str(folder), "user/streets"])
    files = published(hub)
    assert sorted(name for name in files if name.startswith("data/")) == [
        "data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"
    ]  # fmt: skip
    data = front_matter(files)
    assert [split["name"] for split in data["dataset_info"]["splits"]] == ["train", "validation"]
    assert data["language"] == "sv"
    assert "unlabeled" not in files["README.md"].decode()


def test_a_branch_and_privacy_are_as_asked(hub, folder, capsys):
    main([str(folder), "user/streets", "--private", "--revision", "small"])
    assert hub.repositories["dataset", "user/streets"].private
    assert list(published(hub)) == [".gitattributes"]
    assert "id2label.json" in published(hub, "small")
    assert capsys.readouterr().out.endswith("/datasets/user/streets/tree/small\n")
    same(load_semi_dataset("user/streets", dataset_revision="small"), load_semi_dataset(data_dir=str(folder)))


def test_a_public_dataset_is_not_taken_for_private(hub, folder):
    hub.add("user/streets", {}, "dataset")
    with pytest.raises(InputError, match="exists on the Hub and is public, but --private is set"):
        main([str(folder), "user/streets", "--private"])
    assert published(hub) == {}


def test_nothing_is_uploaded_of_a_folder_with_a_bad_mask(hub, folder):
    (folder / "val" / "masks" / "101.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 of 14 images cannot be published:\n.*101\.png"):
        main([str(folder), "user/streets"])
    assert not any(method != "GET" for method, _ in hub.requests)


@pytest.mark.parametrize("trouble", ["lfs", "commit"])
def test_a_failed_upload_names_the_command_and_repeating_it_works(hub, folder, trouble):
    hub.fail = {"/lfs/" if trouble == "lfs" else "/commit/": 403}
    with pytest.raises(UploadError) as error:
        main([str(folder), "user/streets", "--revision", "a b"])
    message = str(error.value)
    assert message.endswith(f"Try again: corrmatch push-dataset {folder} user/streets --revision 'a b'")
    assert TOKEN not in message and "\n" not in message
    hub.fail = {}
    hub.requests.clear()
    main([str(folder), "user/streets", "--revision", "a b"])
    if trouble == "commit":
        assert not any(method == "PUT" for method, _ in hub.requests), "what was uploaded is uploaded again"
    same(load_semi_dataset("user/streets", dataset_revision="a b"), load_semi_dataset(data_dir=str(folder)))


def test_a_card_that_the_hub_refuses_is_refused_before_the_pictures_are_uploaded(hub, folder):
    hub.fail = {"/validate-yaml": 400}
    with pytest.raises(UploadError, match="made to fail"):
        main([str(folder), "user/streets", "--license", "my own"])
    assert not any(method == "PUT" for method, _ in hub.requests)


def test_an_impossible_id_is_refused_before_the_folder_is_read(hub, tmp_path):
    with pytest.raises(InputError, match=r"'user/a/b' is not a valid repository id: Repo id must be"):
        main([str(tmp_path / "nowhere"), "user/a/b"])
