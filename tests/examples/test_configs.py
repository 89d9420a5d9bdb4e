"""Every recipe parses, and the ablations reach what the paper varies."""

from pathlib import Path

import pytest

from corrmatch_hf.errors import InputError
from corrmatch_hf.methods.corrmatch import SOFT_LOSSES
from corrmatch_hf.methods.dynamic_threshold import UPDATES
from corrmatch_hf.model.configuration_corrmatch import CORRELATION_POSITIONS
from corrmatch_hf.training import TrainingConfig
from corrmatch_hf.training.arguments import DataArguments, MethodArguments, ModelArguments, parse

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "configs"
ABLATIONS = sorted((CONFIGS / "ablations").glob("*.yaml"))


def read(path):
    groups = (MethodArguments, DataArguments, ModelArguments, TrainingConfig)
    _, _, model, training, _, options = parse(*groups, args=["--config", str(path)])
    training.check()
    options.check()
    return model, training, options


@pytest.mark.parametrize("path", [*sorted(CONFIGS.glob("*.yaml")), *ABLATIONS], ids=lambda path: path.stem)
def test_every_recipe_can_be_read(path):
    read(path)


def test_an_ablation_is_the_recipe_but_for_what_it_names():
    whole = read(CONFIGS / "pascal.yaml")
    for path in ABLATIONS:
        named = {line.split(":")[0] for line in path.read_text().splitlines() if line[0] != "#"} - {"base"}
        changed = {
            key for one, other in zip(whole, read(path), strict=True) for key, value in vars(one).items()
            if vars(other)[key] != value
        }  # fmt: skip
        assert changed and changed <= named, path


def test_the_ablations_cover_every_choice():
    found = [read(path) for path in ABLATIONS]
    assert {model.correlation_position for model, _, _ in found} == set(CORRELATION_POSITIONS)
    assert {options.threshold_update for *_, options in found} == set(UPDATES)
    assert {options.soft_loss for *_, options in found} == set(SOFT_LOSSES)
    assert {options.shape_sampling for *_, options in found} == {"random", "uniform"}
    assert {options.num_shapes for *_, options in found} == {16, 32, 64, 128, 256}


def test_a_base_that_leads_in_a_circle_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\nseed: 1\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(InputError, match="leads back"):
        read(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("base: none.yaml\n")
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        read(tmp_path / "a.yaml")
