"""Run the fast tests with the lowest versions of all packages that pyproject.toml allows.

    python scripts/lowest_versions.py                       # builds .venv-lowest, or uses it again
    python scripts/lowest_versions.py --python ~/.pyenv/versions/3.10.13/bin/python tests/model

Every bound `name>=version` of the dependencies and of the extra "test" is installed as `name==version`, on the lowest
Python that is found. The first run downloads about 3 GB, since PyPI has no CPU builds of older releases of PyTorch, so
this is not part of every CI run: run it after a bound in pyproject.toml has changed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FAST_TESTS = (
    *("tests/model", "tests/methods", "tests/ops", "tests/data", "tests/evaluation", "tests/training"),
    "tests/commands/test_export.py",
)
TRAINING = """
from corrmatch_hf import SemiSupervisedTrainer, TrainingConfig, load_semi_dataset
from corrmatch_hf import CorrMatch, CorrMatchConfig, CorrMatchForSegmentation

data = load_semi_dataset("synthetic")
model = CorrMatchForSegmentation(CorrMatchConfig(encoder_name="convnext_atto", id2label=data.id2label))
config = TrainingConfig(output_dir={output_dir!r}, max_steps=3, crop_size=64, per_device_batch_size=2, overwrite=True)
SemiSupervisedTrainer(CorrMatch(model), data, config).train()
CorrMatchForSegmentation.from_pretrained({output_dir!r})
"""


def lowest_python(oldest: str) -> str:
    """The first command of python3.MINOR, from `oldest` ("3.10") upwards, that runs."""
    first = int(oldest.split(".")[1])
    for command in (f"python3.{minor}" for minor in range(first, sys.version_info.minor + 1)):
        if (path := shutil.which(command)) and subprocess.run(
            [path, "-V"], capture_output=True
        ).returncode == 0:
            return path
    return sys.executable


def lowest_pins(pyproject: str) -> list[str]:
    """`name==version` for every `"name>=version"` of the dependencies and of the extra "test"."""
    blocks = re.findall(r"^(?:dependencies|test) = \[\n(.*?)^\]", pyproject, re.M | re.S)
    return [f"{name}=={version}" for name, version in re.findall(r'"([\w-]+)>=([\w.]+)', "".join(blocks))]


def run(*command: str | Path) -> None:
    print("+", *command, flush=True)
    # Without PYTHONPATH, which could name another checkout.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    if (code := subprocess.run(command, cwd=ROOT, env=environment).returncode) != 0:
        sys.exit(code)


def main() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest = re.search(r'requires-python = ">=([\d.]+)"', pyproject)[1]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--python", default=lowest_python(oldest), help="the Python to use (default: the lowest found)"
    )
    parser.add_argument("--venv", default=ROOT / ".venv-lowest", type=Path, help="folder of the environment")
    parser.add_argument("tests", nargs="*", default=FAST_TESTS, help="tests to run")
    arguments = parser.parse_args()

    python = arguments.venv.resolve() / "bin" / "python"
    if not python.exists():
        run(arguments.python, "-m", "venv", arguments.venv)
    pins = lowest_pins(pyproject)
    run(python, "-m", "pip", "install", "--quiet", *pins)
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", ".")
    run(python, "-m", "pip", "check")
    run(python, "-c", TRAINING.format(output_dir=str(arguments.venv.resolve() / "trained")))
    run(python, "-m", "pytest", "-n", "0", *arguments.tests)


if __name__ == "__main__":
    main()
