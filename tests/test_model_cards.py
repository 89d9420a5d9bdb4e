"""The cards of the recipes say what the recipes do, and claim nothing."""

import re
import shlex
from pathlib import Path

import pytest
import timm
import yaml
from huggingface_hub import ModelCard

import corrmatch_hf.pictures
from corrmatch_hf.commands.arguments import RECIPES, parse
from corrmatch_hf.commands.train import GROUPS
from corrmatch_hf.methods import METHODS, method_class
from corrmatch_hf.methods.citations import citation_of

ROOT = Path(__file__).parents[1]
HOUSEKEEPING = {"output_dir", "num_workers", "eval_steps", "save_steps"}  # no part of the recipe

both = pytest.mark.parametrize("name", ["pascal", "cityscapes"])


def card(name):
    return ModelCard.load(ROOT / "model_cards" / f"{name}.md")


def recipe(name):
    """The options of a recipe file, without those of other methods than the one it names."""
    values = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    own = method_class(values.get("method", "corrmatch")).Options.__dataclass_fields__
    others = {option for cls in METHODS.values() for option in cls.Options.__dataclass_fields__} - set(own)
    return {option: value for option, value in values.items() if option not in others}


@both
def test_front_matter_is_valid_and_claims_no_results(name):
    data = card(name).data
    assert data.library_name == "transformers" and data.pipeline_tag == "image-segmentation"
    assert {"semi-supervised", "corrmatch", "timm", "custom_code"} <= set(data.tags)
    for claim in ("model-index", "eval_results", "metrics", "license", "base_model"):
        assert data.get(claim) is None, claim


@both
def test_it_says_first_that_there_are_no_weights(name):
    first, *_ = card(name).text.split("\n## ")
    assert "No weights trained with this package exist yet" in first
    assert f"--recipe {name}`" in first and "non-commercial" in first
    assert "These are the authors' numbers" in card(name).text


@both
def test_its_options_are_those_of_the_recipe(name):
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", card(name).text, re.M)
    named = {option: yaml.safe_load(value) for option, value in rows}
    values = recipe(name)
    assert named == {option: value for option, value in values.items() if option not in HOUSEKEEPING}
    origin = timm.get_pretrained_cfg(values["encoder_name"]).hf_hub_id
    assert f"`{origin}`" in card(name).text


@both
def test_its_command_runs_the_recipe_with_the_papers_batch(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    block = re.search(r"```bash\n(.*?)```", card(name).text, re.S).group(1).replace("\\\n", "")
    launcher, arguments = block.split("examples/train_semi.py")
    _, data, _, config, method, _ = parse("train", *GROUPS, args=shlex.split(arguments))
    config.check()
    processes = int(re.search(r"--num_processes (\d+)", launcher).group(1))
    assert config.per_device_batch_size * processes == 16
    assert data.labeled_list.startswith("splits/") and method.name == "corrmatch"


@both
def test_its_numbers_are_those_that_the_recipe_quotes(name):
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    quoted = re.search(r"Published mean IoU .*: ([\d. ]+)\.", text).group(1).split()
    assert f"| {' | '.join(quoted)} |" in card(name).text


@both
def test_it_cites_the_paper(name):
    assert citation_of("corrmatch").bibtex in card(name).text


def test_the_template_is_the_one_the_package_fills():
    packaged = Path(corrmatch_hf.hub.__file__).with_name("model_card.md")
    assert (ROOT / "model_cards" / "template.md").read_bytes() == packaged.read_bytes()
