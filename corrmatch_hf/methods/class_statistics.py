"""What becomes of each class's pseudo-labels, counted while a method trains and read at logging steps.

Of the pixels of unlabelled images that are not padding, on every fourth row and column, for each class c that they are
predicted as:

    share             of all these pixels
    confidence        mean
    kept_ratio        share of c's pixels whose pseudo-label counts
    propagated_ratio  the same after region propagation
    threshold         of the method, where it has one for each class
    labeled_share     share of c in the labelled pixels
    taught            1, or 0 where unlabelled images do not teach c (GateMatch's `teacher_recall`)

and, where the true class is known (`--diagnose_with_masks`), how many of the pseudo-labels that count are right:
`accuracy` by the predicted class, `propagated_accuracy` by the class after propagation. None where a class has no
pixel.

Everything is a sum of integers: the same in any order, over processes and after a resumed run. Nothing is read back to
the host before `read`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..distributed import all_reduce
from ..ops.per_class import sums_per_class

STEP = 4  # every fourth row and column: a sixteenth of the time, and the same ratios
UNIT = 2**16  # confidences are counted in multiples of 1 / UNIT
COLUMNS = (
    "labeled", "seen", "confidence", "kept", "propagated", "known", "right", "known_after", "right_after",
)  # fmt: skip


class ClassStatistics:
    """Counters of a method with K classes; see the head of this file.

    Attributes:
        threshold: (K,) the newest thresholds of the classes; None where the method has one for all.
        taught: (K,) bool, the classes that unlabelled images teach at present; None where they teach all.
    """

    def __init__(self, num_labels: int):
        self.num_labels = num_labels
        self.threshold: Tensor | None = None
        self.taught: Tensor | None = None
        self._counts: Tensor | None = None  # (K, columns) int64, on the device of what is observed
        self._propagates = self._knows = False

    def observe_labeled(self, labels: Tensor) -> None:
        """Count labels (N, H, W) int64; ids that are no class are ignored."""
        labels = labels[:, ::STEP, ::STEP]
        self._add(labels, None, {"labeled": torch.ones_like(labels)})

    @torch.no_grad()
    def observe(
        self,
        labels: Tensor,
        confidence: Tensor,
        kept: Tensor,
        valid: Tensor,
        propagated: tuple[Tensor, Tensor] | None = None,
        truth: Tensor | None = None,
        thinned: bool = False,
    ) -> None:
        """Count the pseudo-labels of N unlabelled images.

        Args:
            labels: (N, H, W) int64.
            confidence: (N, H, W) float in 0..1.
            kept: (N, H, W) bool, those that count.
            valid: (N, H, W) bool, the pixels to look at.
            propagated: labels (N, H, W) int64 after region propagation, and which of them count (N, H, W) bool.
            truth: (N, H, W) int64, the true classes; ids that are no class are unknown.
            thinned: the maps have every `STEP`-th row and column alone.
        """
        step = 1 if thinned else STEP
        self._propagates = self._propagates or propagated is not None
        labels, confidence, kept, valid = (m[:, ::step, ::step] for m in (labels, confidence, kept, valid))
        after, counts_after = labels, kept
        if propagated is not None:
            after, counts_after = (m[:, ::step, ::step] for m in propagated)
        values = {
            "seen": valid,
            "confidence": (confidence.float().clamp(0, 1) * UNIT).round().long() * valid,
            "kept": kept & valid,
            "propagated": counts_after & valid,
        }
        if truth is not None:
            self._knows = True
            truth = truth[:, ::step, ::step]
            known = kept & valid & (truth >= 0) & (truth < self.num_labels)
            values |= {"known": known, "right": known & (truth == labels)}
        self._add(labels, valid, values)
        if truth is not None and propagated is not None:
            known = counts_after & valid & (truth >= 0) & (truth < self.num_labels)
            self._add(after, valid, {"known_after": known, "right_after": known & (truth == after)})

    def _add(self, labels: Tensor, inside: Tensor | None, values: dict[str, Tensor]) -> None:
        rows = torch.stack(
            [values[name].long() if name in values else torch.zeros_like(labels) for name in COLUMNS],
            dim=-1,
        )
        added = sums_per_class(rows, labels, self.num_labels, inside)
        self._counts = added if self._counts is None else self._counts.to(added.device).add_(added)

    def read(self) -> tuple[dict[str, list[float | None]], dict[str, float]]:
        """The figures since the last call, over all processes.

        Returns:
            Lists by class id; and, where true classes are known, the accuracies over all classes. Empty without
            pseudo-labels.
        """
        counts = self.counts()
        self._counts = None
        if counts is None:
            return {}, {}
        column = dict(zip(COLUMNS, zip(*counts, strict=True), strict=True))
        if not sum(column["seen"]):
            return {}, {}

        def ratio(part: str, whole: str, unit: int = 1) -> list[float | None]:
            return [
                _rounded(a / (b * unit)) if b else None
                for a, b in zip(column[part], column[whole], strict=True)
            ]

        pixels, labeled = sum(column["seen"]), max(sum(column["labeled"]), 1)
        found = {
            "labeled_share": [_rounded(n / labeled) for n in column["labeled"]],
            "share": [_rounded(n / pixels) for n in column["seen"]],
            "confidence": ratio("confidence", "seen", UNIT),
            "kept_ratio": ratio("kept", "seen"),
        }
        if self._propagates:
            found["propagated_ratio"] = ratio("propagated", "seen")
        if self.threshold is not None:
            found["threshold"] = [_rounded(value) for value in self.threshold.tolist()]
        if self.taught is not None:
            found["taught"] = [int(value) for value in self.taught.tolist()]
        if self._knows:
            found["accuracy"] = ratio("right", "known")
            if self._propagates:
                found["propagated_accuracy"] = ratio("right_after", "known_after")
        parts = {
            "pseudo_label_accuracy": ("right", "known"),
            "propagated_accuracy": ("right_after", "known_after"),
        }
        totals = {name: (sum(column[a]), sum(column[b])) for name, (a, b) in parts.items()}
        return found, {name: _rounded(right / known) for name, (right, known) in totals.items() if known}

    def counts(self) -> list[list[int]] | None:
        """The counters of all processes, for a checkpoint; None before the first observation."""
        return None if self._counts is None else all_reduce(self._counts).tolist()

    def restore(self, counts: list[list[int]] | None, device: torch.device) -> None:
        """Go on from the counters of a checkpoint; on one process alone, as they are those of all."""
        fits = counts and len(counts) == self.num_labels and len(counts[0]) == len(COLUMNS)
        self._counts = torch.tensor(counts, device=device) if fits else None


def _rounded(value: float) -> float:
    return round(value, 4)


def starving_classes(
    rows: list[dict[str, Any]], least_labeled: float = 0.002, least: float = 0.05
) -> dict[int, tuple[float, float]]:
    """Classes that the pseudo-labels nearly lack: id -> share of the labelled pixels, and of those that count.
    Those that are not taught are left out.

    Args:
        rows: "per_class" of some newest rows of the log.
        least_labeled: a class with a smaller share of the labelled pixels is too rare to judge.
        least: below this part of its share of the labelled pixels, a class starves.
    """
    if not rows:
        return {}
    count = len(rows[0]["share"])
    labeled = [sum(row["labeled_share"][c] for row in rows) / len(rows) for c in range(count)]
    ratio = "propagated_ratio" if "propagated_ratio" in rows[0] else "kept_ratio"
    kept = [sum(row["share"][c] * (row[ratio][c] or 0) for row in rows) for c in range(count)]
    if not (total := sum(kept)):
        return {}
    shares = {c: (labeled[c], kept[c] / total) for c in range(count)}
    left = untaught_classes(rows)
    return {
        c: two
        for c, two in shares.items()
        if two[0] >= least_labeled and two[1] < least * two[0] and c not in left
    }


def untaught_classes(rows: list[dict[str, Any]]) -> list[int]:
    """Ids of the classes that unlabelled images do not teach, by the newest of some rows of the log ("per_class")."""
    return [c for c, taught in enumerate(rows[-1].get("taught", ())) if not taught] if rows else []
