"""How an option is declared: once, as a dataclass field with type, default, help, choices and range.

The command line, YAML files, Python and the documentation all read that one declaration:

    crop_size: int = option(321, "Side of the square training crops in pixels.", group="Augmentation", at_least=1)
    optimizer: Literal["sgd", "adamw"] = option("sgd", "Optimiser.", group="Optimiser", common=True)
"""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import refuse
from .text import short

LARGEST_SEED = 2**32 - 1  # that NumPy accepts
LARGEST_CROP = 2**15
MOST_WORKERS = 256  # processes that load images
LARGEST = 2**53  # whole numbers above are not exact as floating-point numbers

# The order of the headings in --help. A method's own options come after "Method", under the method's name.
GROUPS = (
    "Data", "Model", "Method", "Schedule", "Batch", "Augmentation", "Optimiser", "Evaluation", "Saving", "Hub",
    "Hardware", "Reliability",
)  # fmt: skip


def option(
    default: Any = None,
    help: str = "",
    *,
    group: str = "",
    common: bool = False,
    positional: bool = False,
    metavar: str = "",
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    only_with: str | tuple[str, ...] = (),
    default_factory: Any = MISSING,
) -> Any:
    """A dataclass field. Choices are the field's `Literal` type; None is accepted where the default is None.

    Args:
        default: `MISSING` makes it a required option.
        group: the heading under which `--help` lists the option.
        common: list it in the short `--help`; the others appear under `--help-all`.
        positional: the value is given without the option's name.
        metavar: what stands for the value in `--help`; by default it follows from the type.
        at_least, above, at_most, below: the range of a number; NaN and infinity are never accepted.
        only_with: conditions, one of which must hold for the option to matter: "name" of another option (or property)
            of the class that must be on, or "name=value".
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    metadata = {"help": help, "group": group, "common": common, "positional": positional, "metavar": metavar}
    metadata["only_with"] = (only_with,) if isinstance(only_with, str) else only_with
    metadata |= {"bounds": {name: bound for name, bound in bounds.items() if bound is not None}}
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def plain_type(hint: Any) -> Any:
    """The type without its None: int for `int | None`."""
    if get_origin(hint) in (Union, UnionType):
        return next(part for part in get_args(hint) if part is not NoneType)
    return hint


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The values of a `Literal`, also inside `Literal[...] | None`; () for other types."""
    plain = plain_type(hint)
    return get_args(plain) if get_origin(plain) is Literal else ()


@dataclass
class Options:
    """Base of all option classes."""

    def problems(self) -> list[str]:
        """What cannot be used, one sentence each without the full stop. Subclasses add contradictions of options."""
        hints = get_type_hints(type(self))
        return [
            text
            for spec in fields(self)
            if (text := _problem(spec, hints[spec.name], getattr(self, spec.name)))
        ]

    def idle(self) -> list[str]:
        """Options that were changed and do nothing, because of others: a sentence each."""
        found = []
        for spec in fields(self):
            needed = spec.metadata.get("only_with", ())
            default = spec.default if spec.default_factory is MISSING else spec.default_factory()
            value = getattr(self, spec.name)
            if needed and value != default and not any(self._holds(other) for other in needed):
                found.append(f"--{spec.name} is {short(value)}, which does nothing {self._state(needed)}.")
        return found

    def _holds(self, condition: str) -> bool:
        """Whether "name" is on, or "name=value" is so; the name of an option or a property."""
        name, _, value = condition.partition("=")
        found = getattr(self, name)
        return str(found) == value if value else bool(found)

    def _state(self, conditions: tuple[str, ...]) -> str:
        """How the options of conditions are: "with --optimizer adamw", "without --hold_out"."""
        names = {condition.partition("=")[0] for condition in conditions}
        values = {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.name in names}
        return " and ".join(
            f"without --{name}" if value is None else f"with --{name} {value}"
            for name, value in values.items()
        )

    def check(self) -> None:
        """Raise one `InputError` that lists all problems, if there are any."""
        refuse(self.problems())


def _problem(spec: Field, hint: Any, value: Any) -> str | None:
    if value is None and spec.default is None:
        return None
    choices, bounds, plain = choices_of(hint), spec.metadata.get("bounds", {}), plain_type(hint)
    if choices and value not in choices:
        return f"--{spec.name} is {short(value)}; choose one of {', '.join(map(str, choices))}"
    if get_origin(plain) is list:
        numbers, plain = value, get_args(plain)[0]
    else:
        numbers = [value]
    if not (bounds or plain in (int, float)):
        return None
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            return f"--{spec.name} is {short(value)}; give a number"
        if isinstance(number, int) and abs(number) > LARGEST:
            return f"--{spec.name} is {short(number, 20)}; it must be {describe_bounds(bounds | {'at_most': LARGEST})}"
        if not math.isfinite(number) or not _inside(number, bounds):
            return f"--{spec.name} is {value}; it must be {describe_bounds(bounds)}"
    return None


def _inside(value: float, bounds: dict[str, float]) -> bool:
    return (
        value >= bounds.get("at_least", -math.inf)
        and value > bounds.get("above", -math.inf)
        and value <= bounds.get("at_most", math.inf)
        and value < bounds.get("below", math.inf)
    )


def describe_bounds(bounds: dict[str, float]) -> str:
    """Such as "at least 0 and below 1"; "finite" where there is no bound."""
    return (
        " and ".join(f"{name.replace('_', ' ')} {_plain(bound)}" for name, bound in bounds.items())
        or "finite"
    )


def _plain(bound: float) -> str:
    """A number as it can be typed: 4294967295, where `:g` gives 4.29497e+09."""
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
