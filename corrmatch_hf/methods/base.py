"""What a method is: a module that owns the model and all training state, and whose forward is one training step.

State lives in buffers and parameters, so that data-parallel wrapping, saving, resuming, moving and mixed precision work
for every method without code of its own. Nothing in a step is read back to the host (except by fp16's gradient scaler).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ..data.batch import SemiBatch
from ..errors import InputError
from ..ops.losses import cross_entropy, ohem_cross_entropy
from ..options import Options, option
from .citations import Citation
from .class_statistics import ClassStatistics
from .teacher import Teacher

Logs = dict[str, Tensor]  # name -> detached scalar on the device; loss terms are called "loss/..."


@dataclass
class MethodOptions(Options):
    """Options of every method: the loss on labelled images.

    Options of a single method name no group; `--help` lists them under the method's name.
    """

    labeled_loss: Literal["ce", "ohem"] = option(
        "ce",
        "Loss on labelled images: cross-entropy, or over the hardest pixels (Cityscapes).",
        group="Method",
    )
    ohem_threshold: float = option(
        0.7,
        "ohem: keep pixels whose true class has at most this probability.",
        group="Method",
        at_least=0,
        at_most=1,
        only_with="labeled_loss=ohem",
    )
    ohem_min_kept: int = option(
        100_000,
        "ohem: keep at least this many pixels of a forward pass over all processes.",
        group="Method",
        at_least=1,
        only_with="labeled_loss=ohem",
    )


class Method(nn.Module):
    """Base of the methods.

    Args:
        model: the `CorrMatchForSegmentation` to train.
        options: an instance of the class's `Options`; None for the defaults.
        seed: of all randomness inside a step (together with the step's number).

    Attributes:
        teacher: set it in `__init__` to a `Teacher` to train with a moving average of the model: it then follows
            after every step, and is what is evaluated and saved.
        class_statistics: counts what becomes of each class's pseudo-labels; a method with pseudo-labels calls its
            `observe` in `forward`, and the trainer logs it.
    """

    name: ClassVar[str]
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    citation: ClassVar[Citation | None] = None
    uses_unlabeled: ClassVar[bool] = True
    uses_correlation_head: ClassVar[bool] = False
    # What to try where unlabelled images made the model worse: options, as one phrase.
    advice: str = ""
    # What to try for a class that the pseudo-labels nearly lack.
    advice_for_starving: str = "more labelled photos that show it (corrmatch suggest finds some)"
    strong_views: int = 1  # of each unlabelled image in a batch
    # First parts of the names of buffers that `forward` renews as a whole: they stay where a step is skipped.
    renewed: ClassVar[tuple[str, ...]] = ()

    options: Any  # an instance of `Options`
    teacher: Teacher | None

    def __init__(self, model: nn.Module, options: MethodOptions | None = None, seed: int = 0):
        super().__init__()
        self.options = options if options is not None else self.Options()
        self.options.check()
        trains_head = self.needs_correlation_head(self.options)
        if trains_head and not model.config.correlation_head:
            raise InputError(
                f"Method {self.name!r} trains the correlation head, but the model has none; "
                "build it with CorrMatchConfig(correlation_head=True)."
            )
        if getattr(model, "correlation", None) is not None:
            # Data-parallel training waits for every gradient. (Another method may have frozen it before.)
            model.correlation.requires_grad_(trains_head)
        self.model = model
        self.teacher = None
        self.seed = seed
        self.class_statistics = ClassStatistics(model.config.num_labels)

    @classmethod
    def needs_correlation_head(cls, options: Any) -> bool:
        """Whether the correlation head is trained with these options."""
        return cls.uses_correlation_head

    @property
    def segmentation_model(self) -> nn.Module:
        """The model that is evaluated and saved: the teacher's if there is one."""
        return self.model if self.teacher is None else self.teacher.network

    def forward(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        """One training step: the total loss, with gradient, and detached scalars to log."""
        raise NotImplementedError

    @property
    def supervised_passes(self) -> int:
        """How many forward passes at the start of the run see labelled images alone; known after `plan`."""
        return 0

    @property
    def rate_restarts(self) -> set[int]:
        """Forward passes before which the learning rate starts anew, with `lr_restart`; known after `plan`."""
        return {self.supervised_passes}

    def check_batch(self, unlabeled: int) -> None:
        """Raise `InputError` if `unlabeled` images, those of one forward pass over all processes, are too few."""

    def plan(self, total_steps: int) -> None:
        """Called before the first step with the number of forward passes to come, for schedules inside a step."""

    def after_step(self) -> None:
        """Called after every optimiser step on every process."""
        if self.teacher is not None:
            self.teacher.update(self.model)

    def labeled_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The labelled loss chosen by the options, on logits (N, K, H, W) and labels (N, H, W)."""
        ignore_index = self.model.config.ignore_index
        if self.options.labeled_loss == "ohem":
            return ohem_cross_entropy(
                logits, labels, self.options.ohem_threshold, self.options.ohem_min_kept, ignore_index
            )
        return cross_entropy(logits, labels, ignore_index)


def loss_logs(terms: Mapping[str, Tensor]) -> Logs:
    """The terms of a loss as they are logged: {"x": ...} -> {"loss/x": ...}, detached."""
    return {f"loss/{name}": term.detach() for name, term in terms.items()}
