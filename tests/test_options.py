"""Options that matter only with others."""

import copy
from dataclasses import dataclass, fields
from typing import get_type_hints

import pytest
import torch

from corrmatch_hf.commands.arguments import parse
from corrmatch_hf.commands.demo import DemoOptions
from corrmatch_hf.commands.import_ import ImportOptions
from corrmatch_hf.commands.train import GROUPS
from corrmatch_hf.data.load import load_semi_dataset
from corrmatch_hf.data.options import DataOptions
from corrmatch_hf.methods import METHODS
from corrmatch_hf.options import Options, choices_of, option
from corrmatch_hf.training import TrainingConfig

from .conftest import write_synthetic
from .methods.tiny import batch_for, tiny_method, tiny_model

CLASSES = [*GROUPS, DemoOptions, ImportOptions, *(method.Options for method in METHODS.values())]


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
        assert value in choices_of(hints[name]) if value else hasattr(cls, name)


@dataclass
class Some(Options):
    way: str = option("short", "")
    more: float = option(0.0, "")
    length: int = option(3, "", only_with="way=long")
    depth: float = option(1.0, "", only_with=("way=deep", "more"))
    place: str | None = option(None, "")
    sides: list = option(default_factory=lambda: [2], only_with=("place", "everywhere"))

    @property
    def everywhere(self) -> bool:
        return self.sides == [3]


def test_changed_options_without_effect_are_named():
    assert Some().idle() == Some(way="long", length=4).idle() == Some(more=0.1, depth=2.0).idle() == []
    assert Some(way="deep", depth=2.0).idle() == []
    assert Some(length=4, depth=2.0, sides=[1]).idle() == [
        "--length is 4, which does nothing with --way short.",
        "--depth is 2.0, which does nothing with --way short and with --more 0.0.",
        "--sides is [1], which does nothing without --place.",
    ]
    assert Some(place="here", sides=[1]).idle() == []


def another_value(spec, hint):
    return next(
        (value for value in choices_of(hint) if value != spec.default),
        max(spec.default // 64, 1) if type(spec.default) is int else 0.25,
    )


# With pseudo-labels that count on networks without training, and what the method needs to go on.
OHEM = {"ohem_threshold": 0.15, "ohem_min_kept": 9}
BASE = dict.fromkeys(METHODS, OHEM) | {
    "corrmatch": OHEM | {"threshold_initial": 0.21},
    "gatematch": OHEM | {"confidence_threshold": 0.23, "burn_in": 0.0, "correlation_weight": 0.5},
}
for name in ("fixmatch", "ipixmatch", "unimatch", "unimatch_v2"):
    BASE[name] = OHEM | {"confidence_threshold": 0.21}


def contexts(method, idle, first):
    """Changed options with others that make them idle, or not: (method's name, those others, the change)."""
    hints = get_type_hints(method.Options)
    for spec in (spec for spec in fields(method.Options) if first[spec] is method):
        change = {spec.name: another_value(spec, hints[spec.name])}
        names = dict.fromkeys(condition.partition("=")[0] for condition in spec.metadata["only_with"])
        for name in names:
            for value in choices_of(hints[name]) or (False, True):
                others = BASE[method.name] | {name: value if hints[name] is not float else value / 2}
                options = method.Options(**others | change)
                told = any(text.startswith(f"--{spec.name} is ") for text in options.idle())
                if not options.problems() and idle == told:
                    text = f"{method.name}-{spec.name}-{name}-{value}"
                    yield pytest.param(method.name, others, change, id=text)


def of_methods(idle):
    """The contexts of each option, for the first method that has it."""
    first = {spec: method for method in reversed(METHODS.values()) for spec in fields(method.Options)}
    return [case for method in METHODS.values() for case in contexts(method, idle, first)]


def losses(name, model, options):
    method = tiny_method(name, copy.deepcopy(model), **options)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    found = []
    for step in range(3):
        loss, _ = method(batch_for(name, step, seed=step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("name, others, change", of_methods(idle=True))
def test_an_option_said_to_do_nothing_does_nothing(name, others, change):
    model = tiny_model()
    assert losses(name, model, others | change) == losses(name, model, others)


@pytest.mark.parametrize("name, others, change", of_methods(idle=False))
def test_an_option_does_something_where_its_condition_holds(name, others, change):
    if "gate_interval" in change:
        pytest.skip("it shows after many steps")
    model = tiny_model()
    assert losses(name, model, others | change) != losses(name, model, others)


def test_those_of_the_data_are_told(tmp_path):
    assert DataOptions(split_seed=3, labeled_count=12).idle() == []
    assert DataOptions(split_seed=3).idle() == []  # the built-in pictures are drawn from it
    notes = load_semi_dataset(dataset_revision="v1").notes
    assert notes == ("--dataset_revision is 'v1', which does nothing with the built-in pictures.",)
    write_synthetic(tmp_path, labeled=3, validation=2)
    notes = load_semi_dataset(data_dir=str(tmp_path), dataset_config_name="a", split_seed=3).notes
    assert [note.split(", which ")[1] for note in notes] == [
        "does nothing without --labeled_fraction and without --labeled_count and without --hold_out.",
        "does nothing with folders of photos.",
    ]


def test_other_commands_tell_theirs(capsys):
    parse("import", ImportOptions, args=["export", "photos", "--seed", "3"])
    told = "note: --seed is 3, which does nothing without --validation_fraction."
    assert capsys.readouterr().err.splitlines() == [told]
    parse("import", ImportOptions, args=["export", "photos", "--seed", "3", "--validation_fraction", "0.2"])
    parse("demo", DemoOptions, args=["run", "--photos", "photos", "--precision", "int8"])
    assert not capsys.readouterr().err


def test_training_options():
    assert TrainingConfig(hub_strategy="every_save", momentum=0.8).idle() == [
        "--hub_strategy is 'every_save', which does nothing with --push_to_hub False."
    ]
