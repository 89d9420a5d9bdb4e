"""The folder of the demonstration Space, and tiny saved models for it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor

SPACE = Path(__file__).resolve().parents[2] / "examples" / "space"
sys.path.append(str(SPACE))  # as where app.py runs

NAMES = ["background", "Geschwindigkeitsbeschränkungsschild", "Bäume & <b>Sträucher</b>", "road", "car_2"]


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coloured blotches."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def save_tiny_model(folder: Path, correlation_head: bool = True) -> Path:
    torch.manual_seed(1)
    config = CorrMatchConfig(
        encoder_name="test_resnet",
        id2label=dict(enumerate(NAMES)),
        aspp_channels=16,
        decoder_channels=16,
        correlation_channels=16,
        correlation_head=correlation_head,
    )
    CorrMatchForSegmentation(config).save_pretrained(folder)
    CorrMatchImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_with_head(tmp_path_factory) -> Path:
    folder = save_tiny_model(tmp_path_factory.mktemp("space") / "with_head")
    (folder / "samples").mkdir()
    photo(160, 120, seed=7).save(folder / "samples" / "1.jpg")
    photo(160, 120, seed=8).save(folder / "samples" / "1_overlay.png")
    return folder


@pytest.fixture(scope="session")
def model_without_head(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("space") / "without_head", correlation_head=False)
