"""What a training log looks like: losses, threshold and selected shares, mean IoU, learning rate over the steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from corrmatch_hf.errors import InputError

SELECTION = ("threshold", "kept_ratio", "propagated_ratio")


def training_curves(rows: Iterable[Mapping[str, object]], title: str | None = None) -> Figure:
    """A panel for each thing the log tells of: total loss, its terms, pseudo-label selection, mean IoU, learning rate.

    Args:
        rows: log rows with "step" and any of "loss", "loss/NAME", "threshold", "kept_ratio", "propagated_ratio",
            "learning_rate", and rows of evaluations with "mean_iou". Other keys, None and values that are not finite
            are passed over.

    Returns:
        A matplotlib Figure that no global state holds: `figure.savefig("curves.png")`.

    Raises:
        InputError: no row has both a step and one of these values.
    """
    series = _series(rows)
    terms = sorted(key for key in series if key.startswith("loss/"))
    selection = [key for key in SELECTION if key in series]
    panels = [
        ("Loss", ["loss"] if "loss" in series else []),
        ("Loss terms", terms),
        ("Pseudo-labels", selection),
        ("Mean IoU", ["mean_iou"] if "mean_iou" in series else []),
        ("Learning rate", ["learning_rate"] if "learning_rate" in series else []),
    ]
    panels = [(name, keys) for name, keys in panels if keys]
    if not panels:
        raise InputError(
            "The training log has nothing to plot: its rows need 'step' and one of 'loss', 'loss/NAME', "
            f"{', '.join(map(repr, SELECTION))}, 'mean_iou', 'learning_rate'."
        )

    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.3 * lines), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for i, (name, keys) in enumerate(panels):
        axes = figure.add_subplot(lines, columns, i + 1)
        axes.set_title(name, fontsize=11)
        for number, key in enumerate(keys):
            _draw(axes, *series[key], **_style(key, number))
        if name in ("Loss", "Loss terms"):
            _fit_height(axes, [series[key][1] for key in keys])
        elif name == "Pseudo-labels":
            axes.set_ylim(-0.02, 1.02)
        elif name == "Mean IoU":
            _mark_best(axes, *series["mean_iou"])
        else:
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
            axes.set_ylim(bottom=0)
        if len(keys) > 1:
            axes.legend(fontsize=8, framealpha=0.8, ncols=2 if len(keys) > 4 else 1)
        if len({step for key in keys for step in series[key][0]}) == 1:
            axes.set_xlim(
                series[keys[0]][0][0] - 1, series[keys[0]][0][0] + 1
            )  # else the axis would count in hundredths
        axes.set_xlabel("step", fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _style(key: str, number: int) -> dict[str, object]:
    noisy = key.startswith("loss") or key.endswith("ratio")
    return {"label": key.removeprefix("loss/").replace("_", " "), "color": f"C{number % 10}", "noisy": noisy}


def _series(rows: Iterable[Mapping[str, object]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{key: (steps, values)}, by step; a step logged twice, as after a resumed run, counts as logged last."""
    points: dict[str, dict[float, float]] = {}
    wanted = {"loss", "learning_rate", "mean_iou", *SELECTION}
    for row in rows:
        for key, value in row.items():
            if (
                (key in wanted or key.startswith("loss/"))
                and row.get("step") is not None
                and value is not None
            ):
                value = float(value)
                if isfinite(value):
                    points.setdefault(key, {})[float(row["step"])] = value
    return {key: tuple(np.array(sorted(p.items())).T) for key, p in points.items()}


def _draw(axes: Axes, steps: np.ndarray, values: np.ndarray, label: str, color: str, noisy: bool) -> None:
    """A line; a long noisy one faintly, with its running median on it. Few points are marked."""
    if not noisy or len(steps) < 60:
        axes.plot(
            steps, values, color=color, label=label, linewidth=1.4, marker="." if len(steps) < 25 else None
        )
        return
    half = len(values) // 40
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, half, mode="edge"), 2 * half + 1)
    axes.plot(steps, values, color=color, alpha=0.22, linewidth=0.8)
    axes.plot(steps, np.median(windows, axis=1), color=color, label=label, linewidth=1.6)


def _fit_height(axes: Axes, series: Sequence[np.ndarray]) -> None:
    """From 0 to what each line reaches in all but 1 % of its points, so that one early spike does not flatten the rest."""
    top = max(np.quantile(values, 0.99) if len(values) >= 100 else values.max() for values in series)
    if min(values.min() for values in series) >= 0 and top > 0:
        axes.set_ylim(0, 1.08 * top)


def _mark_best(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    best = int(values.argmax())
    axes.margins(y=0.2)
    axes.annotate(
        f"{values[best]:.1%}",
        (steps[best], values[best]),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center" if 0 < best < len(steps) - 1 or len(steps) == 1 else "left" if best == 0 else "right",
        fontsize=9,
    )
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
