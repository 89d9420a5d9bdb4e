"""Shared fixtures. Nothing in the tests touches the network."""

import functools
import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
# Tests run side by side; with several threads each they would wait for one another, several times as long. Said before
# torch is loaded, and to the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
ID2LABEL = {0: "sky", 1: "road", 2: "car"}  # of `saved_model`


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Reference tensors, CamVid and encoder weights; tests that need them are skipped where they are missing."""
    path = Path(os.environ.get("CORRMATCH_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no shared material at {path} (set CORRMATCH_SHARED)")
    return path


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory) -> Path:
    """The folder of a small model, which no test changes."""
    from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor

    torch.manual_seed(1)
    config = CorrMatchConfig(
        encoder_name="test_resnet",
        id2label=ID2LABEL,
        aspp_channels=16,
        decoder_channels=16,
        correlation_head=False,
    )
    folder = tmp_path_factory.mktemp("saved") / "model"
    CorrMatchForSegmentation(config).save_pretrained(folder)
    CorrMatchImageProcessor().save_pretrained(folder)
    return folder


def write_synthetic(root: Path, labeled: int, validation: int) -> None:
    """Pictures of the built-in set, 48 pixels wide, as train and validation folders of images and masks."""
    import numpy as np
    from PIL import Image

    from corrmatch_hf.data.sources.synthetic import synthetic_image

    for split, source, count in (("train", "labeled", labeled), ("validation", "validation", validation)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            image, mask = synthetic_image(source, i, 48)
            Image.fromarray(image).save(root / split / "images" / f"{i}.png")
            Image.fromarray(mask.astype(np.uint8)).save(root / split / "masks" / f"{i}.png")


@pytest.fixture(scope="session")
def browser():
    from .browser import chromium

    with chromium() as opened:
        yield opened


def pytest_collection_finish():
    """Half a million objects of imported modules stay until the end: collecting garbage need not look at them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _empty_curves():
    """A report has three pictures of curves, which take longer than all else of a small training."""
    from matplotlib.figure import Figure

    from corrmatch_hf import pictures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "training_curves", lambda rows, title=None, **options: Figure(figsize=(1, 1)))
        yield


@pytest.fixture
def drawn_curves(monkeypatch):
    """Reports have their curves, for a test that looks at them."""
    from corrmatch_hf import pictures
    from corrmatch_hf.pictures.curves import training_curves

    monkeypatch.setattr(pictures, "training_curves", training_curves)


@pytest.fixture(scope="session", autouse=True)
def _one_synthetic_set():
    """The five hundred pictures of the built-in set are painted once."""
    from corrmatch_hf.data.sources import synthetic

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "_dataset", functools.cache(synthetic._dataset))
        yield
