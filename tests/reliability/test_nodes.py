"""Two machines, here two launchers on the loopback device, train as one process does."""

import os

import pytest
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from .. import fork_server
from ..ports import free_port
from .small_run import finish, left_by, said_by, statuses, train


def launch(port, folder):
    """One node, as `torchrun --nnodes 2 --nproc_per_node 1 --rdzv_backend c10d` starts it, but forked."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    config = LaunchConfig(
        2, 2, 1, run_id="test", rdzv_backend="c10d", rdzv_endpoint=f"127.0.0.1:{port}", local_addr="127.0.0.1",
        start_method="fork",
    )  # fmt: skip
    elastic_launch(config, train_half)(folder)


def train_half(folder):
    train(folder, per_device_batch_size=1, freeze_batch_norm=True)


def test_two_nodes_that_meet_by_c10d_have_the_losses_of_one_process(tmp_path):
    folder, port = tmp_path / "runs" / "nodes", free_port()
    folder.parent.mkdir()
    nodes = [fork_server.CONTEXT.Process(target=launch, args=(port, folder)) for _ in range(2)]
    for node in nodes:
        node.start()
    assert statuses(nodes) == [0, 0], said_by(folder).read_text()[-2000:]

    one = tmp_path / "runs" / "one"
    assert finish(one, per_device_batch_size=2, freeze_batch_norm=True) == 0
    for ours, theirs in zip(left_by(folder)["log"], left_by(one)["log"], strict=True):
        assert ours["step"] == theirs["step"]
        for name in ours.keys() & {"loss", "threshold", *(k for k in ours if k.startswith("loss/"))}:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5), (ours["step"], name)
