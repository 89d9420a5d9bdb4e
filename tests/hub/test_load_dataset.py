"""Datasets of the Hub, listed and streamed."""

import json

import pytest

from ..data.pictures_on_disk import write_split

LOAD = """
import hashlib, json, sys
from corrmatch_hf.data import Augmentation, load_semi_dataset, training_batches
from corrmatch_hf.data.semi_dataset import undecoded
from corrmatch_hf.errors import InputError

def digest(cell):
    return hashlib.sha256(cell["bytes"]).hexdigest()

result = {}
for streaming in (False, True):
    semi = load_semi_dataset("user/streets", labeled_count=3, streaming=streaming)
    batches = training_batches(semi, Augmentation(crop_size=9), labeled_batch=2, unlabeled_batch=2, seed=0)
    batch = next(batches)
    result[f"streaming {streaming}"] = {
        "hub_id": semi.hub_id,
        "classes": semi.id2label,
        "counts": [len(semi.labeled), len(semi.validation)],
        "unlabeled files": list(batch.unlabeled_files),
        "unlabeled": sorted(digest(row["image"]) for row in undecoded(semi.unlabeled)),
        "masks": sorted(digest(row["label"]) for row in undecoded(semi.validation)),
    }
try:
    load_semi_dataset("user/strets")
except InputError as error:
    result["error"] = str(error)
print("RESULT", json.dumps(result))
"""


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "streets"
    write_split(root / "train" / "images", root / "train" / "masks", 8)
    write_split(root / "validation" / "images", root / "validation" / "masks", 3, first=100)
    return root


def test_listed_and_streamed_pictures_are_those_that_were_uploaded(hub, folder, run_client):
    import hashlib
    import io

    from datasets import Dataset, Features, Image

    uploaded = {}
    for split in ("train", "validation"):
        images = sorted((folder / split / "images").iterdir())
        masks = sorted((folder / split / "masks").iterdir())
        cells = [[{"bytes": p.read_bytes(), "path": p.name} for p in paths] for paths in (images, masks)]
        buffer = io.BytesIO()
        features = Features({"image": Image(), "label": Image()})
        Dataset.from_dict({"image": cells[0], "label": cells[1]}, features=features).to_parquet(buffer)
        uploaded[f"data/{split}-00000-of-00001.parquet"] = buffer.getvalue()
    uploaded["id2label.json"] = json.dumps({str(i): f"class {i}" for i in range(4)}).encode()
    hub.add("user/streets", uploaded, "dataset")

    result = json.loads(run_client(LOAD).stdout.split("RESULT")[1])
    photos = {hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "train" / "images").iterdir()}
    names = {p.name for p in (folder / "train" / "images").iterdir()}
    masks = {hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "validation" / "masks").iterdir()}
    for streaming in (False, True):
        loaded = result[f"streaming {streaming}"]
        assert loaded["hub_id"] == "user/streets" and loaded["classes"]["3"] == "class 3"
        assert loaded["counts"] == [3, 3]
        assert len(loaded["unlabeled"]) == 5 and set(loaded["unlabeled"]) <= photos
        assert set(loaded["masks"]) == masks
        assert set(loaded["unlabeled files"]) <= names
    assert "user/strets" in result["error"]
