"""`corrmatch train` with flags of `accelerate launch`."""

import pytest

from corrmatch_hf.commands.arguments import option_names, typed_command
from corrmatch_hf.commands.launch import split_launcher_flags
from corrmatch_hf.commands.train import GROUPS


@pytest.mark.parametrize(
    ("args", "flags"),
    [
        (["--config", "x.yaml", "--streaming", "--num_shapes", "3"], []),
        (["--num_processes", "2", "--config", "x.yaml"], ["--num_processes", "2"]),
        (
            ["--max-steps", "5", "--multi_gpu", "--gpu_ids=0,1", "--seed", "1"],
            ["--multi_gpu", "--gpu_ids=0,1"],
        ),
        (["--mixed_precision", "bf16", "--main-process-port", "0"], ["--main-process-port", "0"]),
        (["--module", "--learning_rat", "1"], []),
    ],
)
def test_flags_of_the_launcher_are_told_from_options(args, flags):
    found, rest = split_launcher_flags(args, option_names(*GROUPS))
    assert found == flags
    assert rest == [arg for arg in args if arg not in flags]


@pytest.mark.parametrize(
    ("environment", "script", "typed"),
    [
        ({}, "corrmatch", "corrmatch train --seed 1"),
        (
            {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"},
            "/lib/corrmatch_hf/__main__.py",
            "torchrun --nnodes 2 --nproc_per_node 4 -m corrmatch_hf train --seed 1",
        ),
        (
            {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "1"},
            "examples/train.py",
            "torchrun --nproc_per_node 4 examples/train.py --seed 1",
        ),
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"},
            "examples/train.py",
            "accelerate launch --num_machines 2 --num_processes 8 examples/train.py --seed 1",
        ),
    ],
)
def test_the_recorded_command_starts_as_many_processes(environment, script, typed, monkeypatch):
    for name in ("CORRMATCH_COMMAND", "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", [script])
    assert typed_command("train", ["--seed", "1"]) == typed
