"""`import corrmatch_hf` is fast, and transformers knows the model once something of the package has been used."""

import subprocess
import sys

import pytest

import corrmatch_hf
from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor

HEAVY = ("torch", "torchvision", "timm", "transformers", "numpy", "PIL", "datasets", "accelerate")


def run(code: str, *arguments: str) -> str:
    """The output of `code` in a process of its own, which cannot answer a question at the keyboard."""
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    assert run(f"import sys, corrmatch_hf; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_every_public_name_is_there():
    assert all(getattr(corrmatch_hf, name) is not None for name in dir(corrmatch_hf))
    assert corrmatch_hf.UniMatchV2.__name__ == "UniMatchV2"
    with pytest.raises(AttributeError, match="no attribute 'UniMatchV3'"):
        _ = corrmatch_hf.UniMatchV3


# Without trust_remote_code: the code that is saved beside the weights must not be loaded.
FIND = """
import sys
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
from corrmatch_hf import {name}

for found in (
    AutoConfig.for_model("corrmatch"),
    AutoConfig.from_pretrained(sys.argv[1]),
    AutoModelForSemanticSegmentation.from_pretrained(sys.argv[1]),
    AutoImageProcessor.from_pretrained(sys.argv[1]),
    pipeline("image-segmentation", model=sys.argv[1]).model,
):
    print(type(found).__module__)
"""


@pytest.mark.parametrize("name", ["CorrMatchForSegmentation", "SemiSupervisedTrainer"])
def test_transformers_finds_the_package(name, tmp_path):
    config = CorrMatchConfig(
        encoder_name="test_resnet", num_labels=3, aspp_channels=8, low_level_channels=8, decoder_channels=8
    )
    CorrMatchForSegmentation(config).save_pretrained(tmp_path)
    CorrMatchImageProcessor().save_pretrained(tmp_path)
    assert (tmp_path / "modeling_corrmatch.py").exists()
    found = run(FIND.format(name=name), str(tmp_path)).splitlines()
    assert len(found) == 5 and all(each.startswith("corrmatch_hf.model.") for each in found)
