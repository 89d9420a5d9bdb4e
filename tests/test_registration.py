"""`import corrmatch_hf` imports nothing heavy, and yet transformers knows the model, in whatever order they come."""

import subprocess
import sys

import pytest

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor

HEAVY = ("torch", "torchvision", "timm", "transformers", "numpy", "PIL", "datasets", "accelerate")


def run(code: str, *arguments: str) -> str:
    """What `code` prints in a process of its own, which cannot answer a question at the keyboard."""
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model with its processor and, as `save_pretrained` leaves it, the code that loads it without the package."""
    folder = tmp_path_factory.mktemp("model")
    config = CorrMatchConfig(
        encoder_name="test_resnet", num_labels=3, aspp_channels=8, low_level_channels=8, decoder_channels=8
    )
    CorrMatchForSegmentation(config).save_pretrained(folder)
    CorrMatchImageProcessor().save_pretrained(folder)
    assert (folder / "modeling_corrmatch.py").exists()
    return str(folder)


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, corrmatch_hf; print([m for m in {HEAVY} if m in sys.modules])"
    assert run(code) == "[]"


ORDERS = {
    "package first": "import corrmatch_hf\n",
    "transformers first": "from transformers import AutoConfig, AutoModel\nimport corrmatch_hf\n",
    "everything of transformers first": "from transformers import AutoImageProcessor, pipeline\nimport corrmatch_hf\n",
}
# Without trust_remote_code: the code in the folder must not be what is loaded.
USES = {
    "model": "from transformers import AutoModelForSemanticSegmentation as A\n"
    "found = A.from_pretrained(sys.argv[1])",
    "config": "from transformers import AutoConfig as A\nfound = A.from_pretrained(sys.argv[1])",
    "config by name": "from transformers import AutoConfig as A\nfound = A.for_model('corrmatch')",
    "processor": "from transformers import AutoImageProcessor as A\nfound = A.from_pretrained(sys.argv[1])",
    "pipeline": "from transformers import pipeline\n"
    "found = pipeline('image-segmentation', model=sys.argv[1]).model",
}
# Each in a process of its own, or after another that leaves it to be found.
CASES = [
    ("package first", ("config by name", "config")),
    ("package first", ("model",)),
    ("package first", ("processor",)),
    ("package first", ("pipeline",)),
    ("transformers first", ("model", "processor")),
    ("everything of transformers first", ("processor", "model")),
]


@pytest.mark.parametrize(("order", "uses"), CASES)
def test_transformers_finds_the_package(saved, order, uses):
    code = "import sys\n" + ORDERS[order]
    code += "\n".join(f"{USES[use]}\nprint(type(found).__module__)" for use in uses)
    found = run(code, saved).splitlines()
    assert len(found) == len(uses) and all(each.startswith("corrmatch_hf.model.") for each in found)


def test_a_transformers_with_other_lists_gets_the_classes(saved):
    code = (
        "import sys, corrmatch_hf.registration as r\n"
        "name = 'transformers.models.auto.configuration_auto'\n"
        "r.NAMES[name] = ('A_LIST_THAT_IS_NOT_THERE', 'x')\n"
        "from transformers import AutoConfig\n"
        "print(type(AutoConfig.from_pretrained(sys.argv[1])).__module__)"
    )
    assert run(code, saved).startswith("corrmatch_hf.model.")


def test_looking_through_all_modules_imports_nothing():
    code = (
        "import inspect, sys, corrmatch_hf\n"
        "for module in list(sys.modules.values()):\n"
        "    hasattr(module, '__file__') and hasattr(module, '__warningregistry__')\n"
        "inspect.stack()\n"
        "print('torch' in sys.modules)"
    )
    assert run(code) == "False"


def test_the_rooms_of_the_package_are_there():
    assert run("import corrmatch_hf; print(corrmatch_hf.errors.InputError.__name__)") == "InputError"


def test_what_is_put_into_transformers_can_be_copied_and_found():
    code = (
        "import copy, importlib.util, corrmatch_hf\n"
        "from transformers.models.auto import configuration_auto\n"
        "copy.deepcopy(configuration_auto.__loader__)\n"
        "print(importlib.util.find_spec('transformers.models.corrmatch').name)"
    )
    assert run(code) == "transformers.models.corrmatch"
