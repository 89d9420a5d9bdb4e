"""The script for several GPUs works before there are any: two processes on the CPU."""

import subprocess
import sys

from ..conftest import ROOT


def test_a_dry_run_compares_two_processes_with_one(tmp_path):
    output = tmp_path / "gpus.md"
    command = [sys.executable, "benchmarks/gpus.py", "--dry_run", "--output", str(output)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    *_, one, two = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in output.read_text().splitlines()
    ]
    assert (one[0], two[0]) == ("1", "2")
    assert float(two[1]) < 1e-5, "the losses of one process"
    assert int(one[5]) == 0 < int(two[5]) and float(two[7]) > 0
