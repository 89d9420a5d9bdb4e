"""`import corrmatch_hf` is fast, and transformers knows the model once something of the package has been used."""

import subprocess
import sys

HEAVY = ("torch", "torchvision", "timm", "transformers", "numpy", "PIL", "datasets", "accelerate")


def run(code: str, *arguments: str) -> str:
    """The output of `code` in a process of its own, which cannot answer a question at the keyboard."""
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_package_its_help_and_the_names_of_its_methods_import_nothing_heavy():
    code = "import sys, corrmatch_hf.methods; from corrmatch_hf.commands import main; main(['--help']);"
    code += (
        f"assert 'UniMatchV2' in dir(corrmatch_hf.methods); print([m for m in {HEAVY} if m in sys.modules])"
    )
    assert run(code).endswith("\n[]")


# Without trust_remote_code: the code that is saved beside the weights must not be loaded.
FIND = """
import sys
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
from corrmatch_hf import CorrMatchForSegmentation

for found in (
    AutoConfig.for_model("corrmatch"),
    AutoConfig.from_pretrained(sys.argv[1]),
    AutoModelForSemanticSegmentation.from_pretrained(sys.argv[1]),
    AutoImageProcessor.from_pretrained(sys.argv[1]),
    pipeline("image-segmentation", model=sys.argv[1]).model,
):
    print(type(found).__module__)
"""


def test_transformers_finds_the_package(saved_model):
    assert (saved_model / "modeling_corrmatch.py").exists()
    found = run(FIND, str(saved_model)).splitlines()
    assert len(found) == 5 and all(each.startswith("corrmatch_hf.model.") for each in found)
