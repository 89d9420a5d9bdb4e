"""`python -m benchmarks --gpu` works before a GPU is at hand: all of it on the CPU, as small as can be."""

import subprocess
import sys

from benchmarks.gpu import GROUPS

from ..conftest import ROOT

SOME_ROW = {  # of each group
    "kernels": "2 classes",
    "synchronisations": "host waits in a step of corrmatch",
    "losses": "losses of corrmatch, CPU and GPU",
    "step": "float32 step against its part: backward",
    "trainings": "weights of the resumed run equal",
    "fp16": "training in fp16",
    "loading": "with 1 processes",
    "evaluation": "channels_last, bfloat16",
    "dinov2": "with DPT",
    "compiled": "compiled, against not compiled",
    "inference": "| inference |",
    "promise": "short study of unlabelled photos",
}


def test_a_dry_run_fills_the_whole_table(tmp_path):
    assert {"machine", *SOME_ROW} == set(GROUPS)
    output = tmp_path / "gpu.md"
    command = [sys.executable, "-m", "benchmarks", "--gpu", "--dry_run", "--output", str(output)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    table = output.read_text()
    assert result.returncode == 0, table + result.stderr[-2000:]
    assert all(text in table for text in SOME_ROW.values()), table
    assert "`datasets` is not installed" in table, "it needs no more than a plain image has"
    assert not any(word in table for word in ("**error**", "**stopped**", "**ended**", "**no**", "Error"))


def test_an_error_is_a_row_and_the_rest_goes_on(tmp_path):
    output = tmp_path / "gpu.md"
    code = (
        "import pathlib, sys, benchmarks.gpu as gpu\n"
        "def broken(device, tiny): yield 'first'; raise ValueError('a | b')\n"
        "def slow(device, tiny): import time; time.sleep(60); yield 'never'\n"
        "gpu.GROUPS |= {'broken': gpu.Group(broken, 30), 'slow': gpu.Group(slow, 1)}\n"
        "gpu._import_everything = lambda: None\n"
        "sys.exit(gpu.main(['slow', 'broken', 'fp16'], pathlib.Path(sys.argv[1]), dry_run=True, total=100))"
    )
    result = subprocess.run([sys.executable, "-c", code, str(output)], cwd=ROOT, timeout=300, check=False)
    lines = output.read_text().splitlines()
    assert result.returncode == 2
    assert "| slow | | | | | **stopped** after 1 s |" in lines
    assert lines.index("first") + 1 == lines.index("| broken | | | | | **error**: ValueError: a \\| b |")
    assert "| training in fp16 | | | | | needs a GPU |" in lines
