"""Numbers that no method can use are refused before the first step, whatever the option."""

import dataclasses
import math
from dataclasses import dataclass
from typing import get_args, get_type_hints

import pytest

from corrmatch_hf.errors import InputError
from corrmatch_hf.methods import METHODS
from corrmatch_hf.methods.base import BelowOne, MethodOptions, Positive, Share, Weight


def float_options():
    for method, cls in METHODS.items():
        types = get_type_hints(cls.Options)
        for option in dataclasses.fields(cls.Options):
            if float in (types[option.name], *get_args(types[option.name])):
                yield pytest.param(cls.Options, option.name, id=f"{method}-{option.name}")


@pytest.mark.parametrize(("options", "name"), float_options())
def test_no_option_takes_a_number_that_is_negative_or_not_finite(options, name):
    options().check()
    for value in (math.nan, math.inf, -math.inf, -0.5, -1e-9):
        with pytest.raises(InputError) as error:
            options(**{name: value}).check()
        assert str(error.value).startswith(f"--{name} is {value}; a ")
        assert str(error.value).endswith(" is needed.") and ". " not in str(error.value), "one sentence"


def test_every_method_has_options_that_are_checked():
    assert {param.id.split("-")[0] for param in float_options()} == set(METHODS)
    assert {"dgcl-dgcl_contrast_weight", "corrmatch-soft_weight", "cps-cps_weight"} <= {
        param.id for param in float_options()
    }


@dataclass
class Ranges(MethodOptions):
    weight: Weight = 1.0
    positive: Positive = 1.0
    share: Share = 0.5
    below_one: BelowOne = 0.5


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("weight", (0.0, 100.0), (-0.1,)),
        ("positive", (1e-6, 100.0), (0.0,)),
        ("share", (0.0, 1.0), (1.001,)),
        ("below_one", (0.0, 0.999), (1.0,)),
    ],
)
def test_the_ends_of_the_ranges(name, taken, refused):
    for value in taken:
        Ranges(**{name: value}).check()
    for value in refused:
        with pytest.raises(InputError, match=f"--{name} is {value}; "):
            Ranges(**{name: value}).check()
