"""Options that matter only with others."""

import copy
from dataclasses import dataclass, fields
from typing import get_type_hints

import pytest

from corrmatch_hf.commands.train import GROUPS
from corrmatch_hf.data.load import load_semi_dataset
from corrmatch_hf.data.options import DataOptions
from corrmatch_hf.methods import METHODS
from corrmatch_hf.options import Options, choices_of, option
from corrmatch_hf.training import TrainingConfig

from .methods.tiny import batch_for, tiny_method, tiny_model

CLASSES = [*GROUPS, *(method.Options for method in METHODS.values())]


def dependent(classes):
    for cls in classes:
        for spec in fields(cls):
            if spec.metadata["only_with"]:
                yield pytest.param(cls, spec, id=f"{cls.__name__}-{spec.name}")


@pytest.mark.parametrize("cls, spec", dependent(CLASSES))
def test_what_an_option_needs_exists(cls, spec):
    hints = get_type_hints(cls)
    for condition in spec.metadata["only_with"]:
        name, _, value = condition.partition("=")
        assert value in choices_of(hints[name]) if value else name in hints


@dataclass
class Some(Options):
    way: str = option("short", "")
    more: float = option(0.0, "")
    length: int = option(3, "", only_with="way=long")
    depth: float = option(1.0, "", only_with=("way=deep", "more"))


def test_changed_options_without_effect_are_named():
    assert Some().idle() == Some(way="long", length=4).idle() == Some(more=0.1, depth=2.0).idle() == []
    assert Some(way="deep", depth=2.0).idle() == []
    assert Some(length=4, depth=2.0).idle() == [
        "--length is 4, which does nothing without --way long.",
        "--depth is 2.0, which does nothing without --way deep or --more.",
    ]


def another_value(spec, hint):
    return next(
        (value for value in choices_of(hint) if value != spec.default),
        max(spec.default // 2, 1) if type(spec.default) is int else 0.25,
    )


def idle_by_default():
    for name, method in METHODS.items():
        hints = get_type_hints(method.Options)
        for spec in fields(method.Options):
            changed = {spec.name: another_value(spec, hints[spec.name])}
            if spec.metadata["only_with"] and method.Options(**changed).idle():
                yield pytest.param(name, changed, id=f"{name}-{spec.name}")


@pytest.mark.parametrize("name, changed", idle_by_default())
def test_an_option_said_to_do_nothing_does_nothing(name, changed):

    model = tiny_model()

    def losses(**options):
        method = tiny_method(name, copy.deepcopy(model), **options)
        method.plan(3)
        return [method(batch_for(name, step, seed=step))[0] for step in range(3)]

    assert losses(**changed) == losses()


def test_those_of_the_data_are_told(tmp_path):
    assert DataOptions(split_seed=3, labeled_count=12).idle() == []
    assert DataOptions(split_seed=3).idle() == []  # the built-in pictures are drawn from it
    told = DataOptions(data_dir="photos", split_seed=3, dataset_revision="v1").idle()
    assert [text.split()[0] for text in told] == ["--dataset_revision", "--split_seed"]
    assert load_semi_dataset(dataset_revision="v1").notes[0].startswith("--dataset_revision is 'v1'")


def test_training_options():
    told = TrainingConfig(max_checkpoints=1, hub_strategy="every_save").idle()
    assert [text.split(", which ")[1] for text in told] == [
        "does nothing without --save_steps.",
        "does nothing without --push_to_hub.",
    ]
