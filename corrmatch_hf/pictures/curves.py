"""Training curves: losses, pseudo-label selection, mean IoU and learning rate over the steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..errors import InputError
from .legend import shortened

BY_CLASS = "Pseudo-labels that count, by class"
MOST_CLASSES = 10  # lines in one panel
SELECTION = (
    "threshold", "kept_ratio", "propagated_ratio", "pseudo_label_accuracy", "propagated_accuracy",
)  # fmt: skip
# What a line is called in a legend; others are shown as they are logged. The losses are explained in docs/methods.
WORDS = {
    "threshold": "confidence threshold",
    "kept_ratio": "share that is confident",
    "propagated_ratio": "share after propagation",
    "pseudo_label_accuracy": "accuracy of these labels",
    "propagated_accuracy": "accuracy after propagation",
    "loss/x": "labelled",
    "loss/x1": "labelled, network 1",
    "loss/x2": "labelled, network 2",
    "loss/x_corr": "labelled, propagated",
    "loss/u": "unlabelled",
    "loss/s": "strong views",
    "loss/s1": "strong views 1",
    "loss/s2": "strong views 2",
    "loss/fp": "perturbed features",
    "loss/kl": "soft labels",
    "loss/corr_s": "strong views, propagated",
    "loss/corr_w": "weak views, propagated",
    "loss/cps": "cross supervision",
    "loss/c": "contrast",
    "loss/inter_pixel": "between pixels",
}


def training_curves(
    rows: Iterable[Mapping[str, object]],
    title: str | None = None,
    *,
    classes: tuple[Mapping[int, str], np.ndarray] | None = None,
    columns: int = 3,
) -> Figure:
    """One panel each for the loss, its terms, pseudo-labels, mean IoU and learning rate, as far as they are logged.

    Args:
        rows: log rows with "step" and any of "loss", "loss/NAME", "threshold", "kept_ratio",
            "propagated_ratio", "learning_rate", and rows of evaluations with "mean_iou".
            Other keys, None and values that are not finite are ignored.
        classes: names and uint8 (K, 3) colours, for a panel of the pseudo-labels of each class ("per_class").
        columns: of panels, at most.

    Returns:
        A matplotlib Figure outside of pyplot's global state: `figure.savefig("curves.png")`.

    Raises:
        InputError: no row has both a step and one of these values.
    """
    rows = list(rows)
    series = _series(rows)
    of_classes = _class_series(rows, *classes) if classes is not None else {}
    panels = {
        "Loss": ["loss"],
        "Loss terms": sorted(key for key in series if key.startswith("loss/")),
        "Pseudo-labels": SELECTION,
        "Mean IoU": ["mean_iou"],
        "Learning rate": ["learning_rate"],
    }
    panels = {name: {key: series[key] for key in keys if key in series} for name, keys in panels.items()}
    panels = {name: lines for name, lines in panels.items() if lines}
    if not panels:
        raise InputError(
            "The training log has nothing to plot: its rows need 'step' and one of 'loss', 'loss/NAME', "
            f"{', '.join(map(repr, SELECTION))}, 'mean_iou', 'learning_rate'."
        )

    if of_classes:
        place = list(panels).index("Mean IoU") if "Mean IoU" in panels else len(panels)
        ordered = list(panels.items())
        ordered.insert(place, (BY_CLASS, {key: line for key, (line, *_) in of_classes.items()}))
        panels = dict(ordered)
    columns = min(len(panels), columns)
    rows_of_panels = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.3 * rows_of_panels), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for i, (name, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(rows_of_panels, columns, i + 1)
        axes.set_title(name, fontsize=11)
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        _draw(axes, lines, {key: look for key, (_, *look) in of_classes.items()} if name == BY_CLASS else {})
        if name.startswith("Loss"):
            _fit_height(axes, [values for _, values in lines.values()])
        elif name in ("Pseudo-labels", BY_CLASS):
            axes.set_ylim(-0.02, 1.02)
        elif name == "Mean IoU":
            _mark_best(axes, *lines["mean_iou"])
        else:
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
            axes.set_ylim(bottom=0)
    if title:
        figure.suptitle(title, fontsize=12, parse_math=False)
    return figure


def _class_series(
    rows: Iterable[Mapping[str, Any]], id2label: Mapping[int, str], palette: np.ndarray
) -> dict[str, tuple[tuple[np.ndarray, np.ndarray], tuple[float, ...], str]]:
    """{key: ((steps, share of its pseudo-labels that count), colour, name)} of the classes where fewest count."""
    counted: dict[int, dict[int, float]] = {}
    for row in rows:
        figures = row.get("per_class") or {}
        for number, value in enumerate(figures.get("propagated_ratio") or figures.get("kept_ratio") or ()):
            if value is not None:
                counted.setdefault(number, {})[row["step"]] = value
    fewest = sorted(counted, key=lambda number: np.mean(list(counted[number].values())))[:MOST_CLASSES]
    return {
        f"class {number}": (  # names may be equal
            tuple(np.array(sorted(counted[number].items()), dtype=float).T),
            tuple(palette[number] / 255),
            shortened(id2label[number]),
        )
        for number in sorted(fewest)
    }


def _series(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{key: (steps, values)}, by step; of a step logged twice, as by a resumed run, the last values count."""
    points: dict[str, dict[int, float]] = {}
    wanted = {"loss", "learning_rate", "mean_iou", *SELECTION}
    for row in rows:
        if row.get("step") is None:
            continue
        for key, value in row.items():
            if (key in wanted or key.startswith("loss/")) and value is not None and isfinite(value):
                points.setdefault(key, {})[row["step"]] = value
    return {key: tuple(np.array(sorted(p.items()), dtype=float).T) for key, p in points.items()}


def _draw(
    axes: Axes, lines: Mapping[str, tuple[np.ndarray, np.ndarray]], looks: Mapping[str, Any] | None = None
) -> None:
    """The lines with their names; long noisy ones faint, with their running median. `looks`: colour and name."""
    names = []
    for number, (key, (steps, values)) in enumerate(lines.items()):
        color, name = f"C{number % 10}", WORDS.get(key, key.removeprefix("loss/").replace("_", " "))
        if looks:
            color, name = looks[key]
        names.append(name)
        noisy = bool(looks) or key.startswith("loss") or key.endswith("ratio")
        if noisy and len(steps) >= 60:
            axes.plot(steps, values, color=color, alpha=0.22, linewidth=0.8)
            half = len(values) // 40
            around = np.lib.stride_tricks.sliding_window_view(np.pad(values, half, "reflect"), 2 * half + 1)
            axes.plot(steps, np.median(around, axis=1), color=color, label=str(number), linewidth=1.6)
        else:
            marker = "." if len(steps) < 25 else None
            axes.plot(steps, values, color=color, label=str(number), linewidth=1.4, marker=marker)
    if len(lines) > 1:
        legend = axes.legend(fontsize=8, framealpha=0.8, ncols=2 if len(lines) > 4 else 1)
        # Named here, since matplotlib leaves out a label that begins with "_" and reads "$" as mathematics.
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set(parse_math=False, text=name)
    axes.locator_params(axis="x", integer=True, nbins=6)
    steps = np.concatenate([steps for steps, _ in lines.values()])
    if steps.min() == steps.max():  # else the axis of a single step has fractional ticks
        axes.set_xlim(steps[0] - 1, steps[0] + 1)


def _fit_height(axes: Axes, values: Sequence[np.ndarray]) -> None:
    """Scale from 0 to the lines' 99 % quantiles, so that a single spike does not flatten the rest."""
    top = max(np.quantile(line, 0.99) if len(line) >= 100 else line.max() for line in values)
    if min(line.min() for line in values) >= 0 and top > 0:
        axes.set_ylim(0, 1.08 * top)


def _mark_best(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    best = int(values.argmax())
    align = "center" if 0 < best < len(steps) - 1 or len(steps) == 1 else "left" if best == 0 else "right"
    axes.margins(y=0.2)
    axes.annotate(
        f"{values[best]:.1%}",
        (steps[best], values[best]),
        xytext=(0, 6),
        textcoords="offset points",
        ha=align,
        fontsize=9,
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
