import sys

import numpy as np
import pytest

from corrmatch_hf.errors import InputError
from corrmatch_hf.pictures import training_curves


def panel(figure, title):
    return next(axes for axes in figure.axes if axes.get_title() == title)


def long_log(steps=400):
    rng = np.random.default_rng(0)
    for step in range(1, steps):
        row = {
            "step": step,
            "loss": 2 / step + rng.random(),
            "loss/x": 1.0,
            "loss/kl": 0.5,
            "images_per_second": 3.0,
        }
        yield row | {"learning_rate": 0.1, "threshold": 0.9, "kept_ratio": 0.4, "propagated_ratio": 0.5}
    yield {"step": 200, "mean_iou": 0.31, "pixel_accuracy": 0.7}
    yield {"step": 300, "mean_iou": 0.42}
    yield {"step": 399, "mean_iou": 0.40}


def test_every_quantity_has_its_panel(tmp_path):
    figure = training_curves(long_log(), title="a run")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["Loss", "Loss terms", "Pseudo-labels", "Mean IoU", "Learning rate"]
    assert {t.get_text() for t in panel(figure, "Loss terms").get_legend().get_texts()} == {
        "soft labels",
        "labelled",
    }
    assert "42.0%" in [t.get_text() for t in panel(figure, "Mean IoU").texts]
    figure.savefig(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_only_what_was_logged_is_drawn():
    figure = training_curves([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5, "loss/x": 0.5}])
    assert [axes.get_title() for axes in figure.axes] == ["Loss", "Loss terms"]


def test_points_are_in_order_and_the_last_of_a_step_counts():
    rows = [
        {"step": 5, "loss": 9.0},
        {"step": 1, "loss": 3.0},
        {"step": 5, "loss": 1.0},
        {"step": 3, "loss": 2.0},
    ]
    line = panel(training_curves(rows), "Loss").lines[0]
    assert line.get_xdata().tolist() == [1, 3, 5] and line.get_ydata().tolist() == [3, 2, 1]


def test_values_that_are_none_or_not_finite_are_passed_over():
    rows = [
        {"step": 1, "loss": 1.0, "mean_iou": None},
        {"step": 2, "loss": float("nan")},
        {"step": 3, "loss": float("inf"), "note": "text"},
    ]
    figure = training_curves(rows)
    assert [axes.get_title() for axes in figure.axes] == ["Loss"]
    assert panel(figure, "Loss").lines[0].get_xdata().tolist() == [1]


def test_any_class_name_is_shown_as_it_is():
    """Beginning with "_", with what matplotlib takes for mathematics, equal, and too long."""
    names = dict(enumerate(["_sky", "$\\foo{$", "a", "a", "long " * 60]))
    rows = [{"step": i, "loss": 1.0, "per_class": {"kept_ratio": [0.1 * i] * 5}} for i in (1, 2)]
    figure = training_curves(rows, "$\\foo{$", classes=(names, np.zeros((5, 3), np.uint8)))
    figure.canvas.draw()
    shown = panel(figure, "Pseudo-labels that count, by class").get_legend().get_texts()
    assert [text.get_text() for text in shown[:4]] == ["_sky", "$\\foo{$", "a", "a"]
    assert shown[4].get_text().endswith("…") and len(shown[4].get_text()) < 30


def test_a_spike_does_not_flatten_the_loss():
    rows = [{"step": i, "loss": 1000.0 if i == 0 else 1.0} for i in range(500)]
    axes = panel(training_curves(rows), "Loss")
    assert axes.get_ylim()[1] < 2
    assert axes.lines[-1].get_ydata().max() == 1.0  # nor does it bend the running median


def test_losses_below_zero_are_seen():
    axes = panel(training_curves([{"step": i, "loss": -1.0 - i} for i in range(3)]), "Loss")
    assert axes.get_ylim()[0] <= -3


@pytest.mark.parametrize("rows", [[], [{"step": 1}], [{"loss": 1.0}], [{"step": 1, "loss": float("nan")}]])
def test_a_log_with_nothing_to_plot_is_rejected(rows):
    with pytest.raises(InputError, match="nothing to plot"):
        training_curves(rows)


def test_no_global_pyplot_state_is_touched():
    pyplot = sys.modules.get("matplotlib.pyplot")
    training_curves([{"step": 1, "loss": 1.0}])
    if pyplot is None:
        assert "matplotlib.pyplot" not in sys.modules
    else:
        assert not pyplot.get_fignums()
