"""Small datasets on disk, in the layouts people have."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from corrmatch_hf.data import synthetic_semi_dataset

from .pictures_on_disk import write_split


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """What `datasets` prepares stays out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path) -> Path:
    """train: 8 pairs, validation: 3 pairs, in split/{images,masks}."""
    root = tmp_path / "set"
    write_split(root / "train" / "images", root / "train" / "masks", 8)
    write_split(root / "validation" / "images", root / "validation" / "masks", 3, first=100)
    return root


@pytest.fixture(scope="session")
def synthetic():
    """5 labelled, 11 unlabelled, 2 validation images of 40 pixels."""
    return synthetic_semi_dataset(labeled=5, unlabeled=11, validation=2, image_size=40)
