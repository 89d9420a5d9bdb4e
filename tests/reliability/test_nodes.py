"""Two machines, here two launchers on the loopback device, train as one process does."""

import os
import subprocess
import sys

import pytest

from ..conftest import ROOT
from ..ports import free_port
from .small_run import finish, left_by, said_by

SCRIPT = """
import sys
from pathlib import Path
from tests.reliability.small_run import train

train(Path(sys.argv[1]), per_device_batch_size=1, freeze_batch_norm=True)
"""


def test_two_nodes_that_meet_by_c10d_have_the_losses_of_one_process(tmp_path):
    script, folder = tmp_path / "script.py", tmp_path / "runs" / "nodes"
    script.write_text(SCRIPT)
    folder.parent.mkdir()
    launch = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_id", "test",
        "--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{free_port()}", "--local_addr", "127.0.0.1",
        str(script), str(folder),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    nodes = [
        subprocess.Popen(launch, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    try:
        said = [node.communicate(timeout=500)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    printed = said_by(folder).read_text() if said_by(folder).exists() else ""
    assert [node.returncode for node in nodes] == [0, 0], printed[-2000:] + said[0][-2000:]

    one = tmp_path / "runs" / "one"
    assert finish(one, per_device_batch_size=2, freeze_batch_norm=True) == 0
    for ours, theirs in zip(left_by(folder)["log"], left_by(one)["log"], strict=True):
        assert ours["step"] == theirs["step"]
        for name in ours.keys() & {"loss", "threshold", *(k for k in ours if k.startswith("loss/"))}:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5), (ours["step"], name)
