"""The commands import what they use, and nothing that takes seconds beyond it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

HEAVY = (
    "datasets",
    "matplotlib",
    "accelerate",
    "evaluate",
    "sklearn",
    "torch._dynamo",
    "pandas",
    "peft",
    "contourpy",
)
LIST_MODULES = """
import atexit, json, pathlib, sys
atexit.register(lambda: pathlib.Path(sys.argv[1]).write_text(json.dumps(sorted(sys.modules))))
"""
# What loading a model of transformers imports by itself.
BARE = """
import timm, torch, transformers
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
import corrmatch_hf.model
corrmatch_hf.model.register()
AutoModelForSemanticSegmentation.from_pretrained(sys.argv[2])
AutoImageProcessor.from_pretrained(sys.argv[2])
"""
COMMAND = "from corrmatch_hf.commands import main; assert main(sys.argv[2:]) == 0"
# The modules in use when the first step begins.
FIRST_STEP = """
import json, os, pathlib
from corrmatch_hf.training.trainer import SemiSupervisedTrainer

def stop(*_):
    pathlib.Path(sys.argv[1]).write_text(json.dumps(sorted(sys.modules)))
    os._exit(0)

SemiSupervisedTrainer._loop = stop
"""


def heavy_modules(folder, code, *arguments) -> set[str]:
    """Which of `HEAVY` a new process has imported at the end of `code`."""
    found = folder / "modules.json"
    command = [sys.executable, "-c", code, str(found), *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return set(HEAVY) & set(json.loads(found.read_text()))


@pytest.fixture(scope="module")
def bare(saved_model, tmp_path_factory):
    return heavy_modules(tmp_path_factory.mktemp("bare"), LIST_MODULES + BARE, saved_model)


def test_predict_imports_no_more_than_loading_a_model_does(saved_model, tmp_path, bare):
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "photo.png")
    arguments = ("predict", "photo.png", "--model", saved_model)
    found = heavy_modules(tmp_path, LIST_MODULES + COMMAND, *arguments)
    assert not found - bare and not found & {"datasets", "matplotlib", "evaluate", "contourpy"}


def test_training_starts_without_plots_and_metrics(tmp_path, bare):
    arguments = ("train", "--max_steps", "1", "--labeled_count", "2")
    found = heavy_modules(tmp_path, "import sys\n" + FIRST_STEP + COMMAND, *arguments)
    assert not found & {"matplotlib", "evaluate"}
    # pandas comes with datasets, peft (if it is installed) with transformers' schedules.
    assert found <= bare | {"accelerate", "datasets", "pandas", "peft"}
