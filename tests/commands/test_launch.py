"""`corrmatch train` with flags of `accelerate launch`."""

import pytest

from corrmatch_hf.commands.arguments import option_names
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
