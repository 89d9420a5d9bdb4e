"""Importing the package is fast, commands import what they use and nothing that takes seconds beyond it, and
transformers knows the model once something of the package has been used.

One new process answers all of it, since it spends its time importing: its steps follow one another from what imports
least to what imports most.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

PROBE = """
import json, sys

model, found = sys.argv[1], {}

def note(step):
    found[step] = sorted(sys.modules)

import corrmatch_hf.methods
from corrmatch_hf.commands import main

main(["--help"])
assert "UniMatchV2" in dir(corrmatch_hf.methods)
note("help")

# What loading a model of transformers imports by itself. Without trust_remote_code: the code that is saved beside the
# weights must not be loaded.
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
from corrmatch_hf import CorrMatchForSegmentation

loaded = [
    AutoConfig.for_model("corrmatch"),
    AutoConfig.from_pretrained(model),
    AutoModelForSemanticSegmentation.from_pretrained(model),
    AutoImageProcessor.from_pretrained(model),
]
note("load")

assert main(["predict", "photo.png", "--model", model]) == 0
note("predict")

from corrmatch_hf.training.trainer import SemiSupervisedTrainer

def stop(*_):
    note("first step")
    raise KeyboardInterrupt

SemiSupervisedTrainer._loop = stop
try:
    main(["train", "--max_steps", "1", "--labeled_count", "2"])
except (KeyboardInterrupt, SystemExit):
    pass

from transformers import pipeline

loaded.append(pipeline("image-segmentation", model=model).model)
found["types"] = [type(each).__module__ for each in loaded]
json.dump(found, open("found.json", "w"))
"""


@pytest.fixture(scope="module")
def found(saved_model, tmp_path_factory) -> dict[str, set[str]]:
    """The modules in use after each step of `PROBE`."""
    assert (saved_model / "modeling_corrmatch.py").exists()
    folder = tmp_path_factory.mktemp("imports")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "photo.png")
    command = [sys.executable, "-c", PROBE, str(saved_model)]
    result = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    steps = json.loads((folder / "found.json").read_text())
    return {step: names if step == "types" else set(names) for step, names in steps.items()}


def test_the_package_its_help_and_the_names_of_its_methods_import_nothing_heavy(found):
    heavy = {"torch", "torchvision", "timm", "transformers", "numpy", "PIL", "datasets", "accelerate"}
    assert not heavy & found["help"]


def test_transformers_finds_the_package(found):
    assert len(found["types"]) == 5
    assert all(name.startswith("corrmatch_hf.model.") for name in found["types"])


def test_predict_imports_no_more_than_loading_a_model_does(found):
    assert not {"datasets", "matplotlib", "evaluate", "contourpy"} & found["predict"]
    more = found["predict"] - found["load"]
    assert not {"accelerate", "sklearn", "torch._dynamo", "pandas", "peft"} & more


def test_training_starts_without_plots_and_metrics(found):
    assert not {"matplotlib", "evaluate"} & found["first step"]
    # accelerate, datasets and pandas are needed; peft (if it is installed) comes with transformers' schedules.
    more = found["first step"] - found["load"]
    assert not {"sklearn", "torch._dynamo", "contourpy"} & more
