"""What a method is: a module that owns the model and all training state, and whose forward is one training step.

State lives in buffers and parameters, so that data-parallel wrapping, saving, resuming, moving and mixed precision work
for every method without code of its own. Nothing in a step is read back to the host (but fp16's gradient scaler does).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple, get_type_hints

from torch import Tensor, nn

from ..data.batch import SemiBatch
from ..errors import InputError, refuse
from ..ops.losses import cross_entropy, ohem_cross_entropy

Logs = dict[str, Tensor]  # name -> detached scalar on the device; loss terms are called "loss/..."


class Range(NamedTuple):
    """The numbers that an option may be; nan is in no range."""

    text: str
    holds: Callable[[float], bool]


# Types of options that are checked: `my_weight: Weight = field(...)`. To the command line they are floats.
Weight = Annotated[float, Range("a finite number of at least 0", lambda value: 0 <= value < math.inf)]
Positive = Annotated[float, Range("a finite number above 0", lambda value: 0 < value < math.inf)]
Share = Annotated[float, Range("a number in [0, 1]", lambda value: 0 <= value <= 1)]
BelowOne = Annotated[float, Range("a number in [0, 1)", lambda value: 0 <= value < 1)]


def choice(value: str, choices: tuple[str, ...], help: str) -> Any:
    """A dataclass field that the command line restricts to `choices`."""
    return field(default=value, metadata={"help": help, "choices": list(choices)})


@dataclass
class MethodOptions:
    """Options that every method has: how the labelled images are learnt."""

    labeled_loss: str = choice(
        "ce",
        ("ce", "ohem"),
        "Loss on labelled images: cross-entropy, or over the hardest pixels (Cityscapes).",
    )
    ohem_threshold: Share = field(
        default=0.7, metadata={"help": "ohem: pixels whose true class has at most this probability are kept."}
    )
    ohem_min_kept: int = field(
        default=100_000,
        metadata={"help": "ohem: pixels kept at least, of one forward pass over all processes."},
    )

    def problems(self) -> list[str]:
        """What cannot be used, a sentence each without its full stop. Classes of further options add theirs."""
        found = []
        types = get_type_hints(type(self), include_extras=True)
        for name, spec in type(self).__dataclass_fields__.items():
            value, choices = getattr(self, name), spec.metadata.get("choices")
            if choices and value not in choices:
                found.append(f"--{name} is {value!r}; choose one of {', '.join(map(str, choices))}")
            for allowed in getattr(types[name], "__metadata__", ()):
                if isinstance(allowed, Range) and not allowed.holds(value):
                    found.append(f"--{name} is {value}; {allowed.text} is needed")
        if self.ohem_min_kept < 1:
            found.append(f"--ohem_min_kept is {self.ohem_min_kept}; at least 1 pixel must be kept")
        return found

    def check(self) -> None:
        """Raise `InputError` with all problems, if there are any."""
        refuse(self.problems())


class Method(nn.Module):
    """Base of the methods.

    Args:
        model: the `CorrMatchForSegmentation` to train.
        options: an instance of the class's `Options`; None takes the defaults.
        seed: of all randomness inside a step (together with the step's number).
    """

    name: ClassVar[str]
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    uses_unlabeled: ClassVar[bool] = True
    uses_correlation_head: ClassVar[bool] = False
    strong_views: ClassVar[int] = 1

    def __init__(self, model: nn.Module, options: MethodOptions | None = None, seed: int = 0):
        super().__init__()
        self.options = options if options is not None else self.Options()
        self.options.check()
        if self.uses_correlation_head and not model.config.correlation_head:
            raise InputError(
                f"Method {self.name!r} trains the correlation head, but the model has none; "
                "build it with CorrMatchConfig(correlation_head=True)."
            )
        if getattr(model, "correlation", None) is not None:
            # Data-parallel training waits for every gradient. (Another method may have frozen it before.)
            model.correlation.requires_grad_(self.uses_correlation_head)
        self.model = model
        self.seed = seed

    @property
    def segmentation_model(self) -> nn.Module:
        """The model that is evaluated and saved."""
        return self.model

    def forward(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        """One training step: the total loss, with gradient, and detached scalars to log."""
        raise NotImplementedError

    def check_batch(self, unlabeled: int) -> None:
        """Raise `InputError` where so many unlabelled images, of one forward pass over all processes, are too few."""

    def plan(self, total_steps: int) -> None:
        """Called before the first step with the number of forward passes to come: what schedules inside a step need."""

    def after_step(self) -> None:
        """Called after every optimiser step, on every process: where a teacher follows its student."""

    def labeled_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The labelled loss chosen by the options, on logits (N, K, H, W) and labels (N, H, W)."""
        ignore_index = self.model.config.ignore_index
        if self.options.labeled_loss == "ohem":
            return ohem_cross_entropy(
                logits, labels, self.options.ohem_threshold, self.options.ohem_min_kept, ignore_index
            )
        return cross_entropy(logits, labels, ignore_index)
