"""What the Hub reads of the Space: README.md, requirements.txt, and what the scripts import."""

import ast
import re
import sys

import pytest
import yaml

from .conftest import SPACE

COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


@pytest.fixture(scope="module")
def front_matter():
    _, text, rest = SPACE.joinpath("README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert rest.strip()
    return yaml.safe_load(text)


@pytest.fixture(scope="module")
def project():
    """pyproject.toml, as text: Python 3.10 cannot parse it."""
    return SPACE.parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8")


def test_the_front_matter_is_what_the_hub_takes(front_matter, project):
    assert front_matter["title"] and len(front_matter["emoji"]) == 1
    assert {front_matter["colorFrom"], front_matter["colorTo"]} <= COLORS
    assert front_matter["sdk"] == "gradio"
    assert SPACE.joinpath(front_matter["app_file"]).is_file()
    assert f'license = "{front_matter["license"]}"' in project.lower()
    assert "semantic-segmentation" in front_matter["tags"]
    assert front_matter["models"] and all(re.fullmatch(r"[\w.-]+/[\w.-]+", m) for m in front_matter["models"])


def test_the_python_of_the_space_is_one_of_the_project(front_matter, project):
    assert isinstance(front_matter["python_version"], str)  # 3.10 without quotes would be 3.1
    smallest = re.search(r'requires-python = ">=3\.(\d+)"', project)[1]
    assert re.fullmatch(r"3\.\d+", front_matter["python_version"])
    assert int(front_matter["python_version"][2:]) >= int(smallest)


def test_the_gradio_of_the_space_is_the_one_the_page_is_tested_with(front_matter):
    gradio = pytest.importorskip("gradio", reason="gradio is not installed")
    assert re.fullmatch(r"\d+\.\d+\.\d+", front_matter["sdk_version"])
    if gradio.__version__.split(".")[0] != front_matter["sdk_version"].split(".")[0]:
        pytest.skip(f"gradio {gradio.__version__} is installed, the Space has {front_matter['sdk_version']}")
    assert f"gradio=={front_matter['sdk_version']}" in SPACE.joinpath("README.md").read_text(encoding="utf-8")


def test_the_requirements_are_the_minimum_versions_of_the_project(project):
    requirements = SPACE.joinpath("requirements.txt").read_text(encoding="utf-8").split()
    assert [re.split("[>=]", line)[0] for line in requirements] == [
        "torch",
        "torchvision",
        "timm",
        "transformers",
    ]
    assert all(f'"{line}"' in project for line in requirements)


def test_the_scripts_import_nothing_that_a_space_lacks():
    installed = {"gradio", "huggingface_hub", "numpy", "PIL", "torch", "transformers"}
    for file in SPACE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                assert top in {*installed, *sys.stdlib_module_names, "analysis"}, f"{file.name}: {name}"
