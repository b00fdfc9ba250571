"""Pictures: everything that should be in them is, and nothing is cut off."""

import itertools

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402

from routerjax.evaluation.frontier import accuracy_at_cost, hull  # noqa: E402
from routerjax.evaluation.metrics import evaluate_predictions  # noqa: E402
from routerjax.report.cost_picture import accuracy_against_cost  # noqa: E402
from routerjax.report.pictures import (  # noqa: E402
    auc_bars,
    reliability_curves,
    routed_share,
    training_curves,
)
from routerjax.report.shown import shown_targets  # noqa: E402
from routerjax.report.style import GREY  # noqa: E402
from routerjax.routing.judged import Judged  # noqa: E402
from routerjax.routing.policies import Argmax, Tolerance  # noqa: E402

LONG = "organisation/a-model-with-a-very-long-name-of-many-parts-instruct-v0.{}"


def _metrics(make_pool, m=12, policy=None, cost=True, n=300):
    data, p_NM, cost_NM = make_pool(n=n, m=m)
    object.__setattr__(data, "targets", tuple(LONG.format(j) for j in range(m)))
    return evaluate_predictions(
        p_NM,
        Judged(data, paid_NM=cost_NM if cost else None, basis="assumed"),
        policy=policy or Tolerance(0.1),
        best_single=m - 1,
    )


@pytest.mark.parametrize("before", [True, False])
def test_reliability_shows_each_bin_of_each_target(make_pool, before):
    data, p_NM, _ = make_pool(n=300, m=12)
    object.__setattr__(data, "targets", tuple(LONG.format(j) for j in range(12)))
    metrics = evaluate_predictions(
        p_NM, Judged(data), policy=Argmax(), best_single=0, before_NM=p_NM**2 if before else None
    )
    figure = reliability_curves(metrics)
    _assert_nothing_is_cut(figure)
    titles = [box for text, box in _texts(figure) if " calibration" in text]
    assert len(titles) == len(figure.axes) == 1 + before
    assert not any(a.overlaps(b) for i, a in enumerate(titles) for b in titles[:i])
    after = figure.axes[-1]
    lines = [line for line in after.lines if len(line.get_xdata())]  # One is for the legend alone.
    assert len(lines) == 13  # The diagonal is one.
    bins_B3 = np.array(metrics["calibration"]["after"]["reliability"][data.targets[4]])
    np.testing.assert_array_equal(lines[5].get_xydata(), bins_B3[:, :2])
    assert f"{metrics['calibration']['after']['mean_ece']:.3f}" in after.get_title()
    # Twelve colours could not be told apart: seven targets have one, the others are grey.
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 8 and legend.get_texts()[-1].get_text() == "5 others"
    colours = [line.get_color() for line in lines[1:]]
    assert colours.count(GREY) == 5 and len({*colours}) == 8
    named = shown_targets(metrics, 7)
    assert [c != GREY for c in colours] == [target in named for target in data.targets]


def _history(epochs=12, members=4):
    rng = np.random.default_rng(0)
    loss_EK = np.linspace(0.7, 0.5, epochs)[:, None] + 0.01 * rng.random((epochs, members))
    loss_EK[epochs - 2 :, 1] = np.nan
    best_K = np.nanargmin(loss_EK, axis=0)
    return {"train_loss_EK": loss_EK, "val_loss_EK": loss_EK + 0.02, "best_epoch_K": best_K,
            "kept": [0, 1]}  # fmt: skip


def _texts(figure):
    """(text, its box in pixels) of everything written, after drawing."""
    FigureCanvasAgg(figure).draw()
    # Ticks beyond the limits have a place, but are not drawn.
    undrawn = {
        label
        for axes in figure.axes
        for labels, i, limits in ((axes.get_xticklabels(which="both"), 0, axes.get_xlim()),
                                  (axes.get_yticklabels(which="both"), 1, axes.get_ylim()))
        for label in labels
        if not min(limits) <= label.get_position()[i] <= max(limits)
    }  # fmt: skip
    renderer = figure.canvas.get_renderer()
    return [
        (text.get_text(), text.get_window_extent(renderer))
        for text in figure.findobj(matplotlib.text.Text)
        if text.get_text() and text.get_visible() and text not in undrawn
    ]


def _assert_nothing_is_cut(figure):
    width, height = figure.canvas.get_width_height()
    for text, box in _texts(figure):
        assert box.x0 >= -1 and box.y0 >= -1, text
        assert box.x1 <= width + 1 and box.y1 <= height + 1, text


@pytest.mark.parametrize("m", [1, 2, 12])
@pytest.mark.parametrize("draw", [auc_bars, routed_share, accuracy_against_cost])
def test_every_target_is_named_and_nothing_is_cut(make_pool, draw, m):
    figure = draw(_metrics(make_pool, m))
    _assert_nothing_is_cut(figure)
    written = [text for text, _ in _texts(figure)]
    assert sum(text.startswith("organisation/a-model") for text in written) == m
    axes = figure.axes[0]
    assert axes.get_xlabel()


def test_mixtures_are_straight_by_cost_on_either_axis(make_pool):
    """The zero router and the router's line, between settings: what a coin reaches there."""
    metrics = _metrics(make_pool)
    frontier = metrics["frontier"]
    lines = {line.get_label(): line for line in accuracy_against_cost(metrics).axes[0].lines}
    for label, entries in (("zero router", frontier["zero_router"]),
                           ("router, by the value", frontier["value"]),
                           ("router, tolerance:0 to 1", frontier["router"])):  # fmt: skip
        (line,) = [line for name, line in lines.items() if name.startswith(label)]
        at_S2 = line.get_xydata()
        for (cost, accuracy), (next_cost, next_accuracy) in itertools.pairwise(
            (1000 * entry["cost_per_query"], entry["accuracy"]) for entry in entries
        ):
            middle = cost + 0.25 * (next_cost - cost)
            expected = accuracy + 0.25 * (next_accuracy - accuracy)
            # Samples are close enough to read the line between two of them.
            near_S = np.hypot((at_S2[:, 0] - middle) / middle, at_S2[:, 1] - expected)
            assert near_S.min() < 0.1
    # And the line by value lies above that by tolerance at the cheap end.
    cheap = 2 * frontier["value"][0]["cost_per_query"]
    best, other = (
        accuracy_at_cost(
            hull([[e["cost_per_query"], e["accuracy"]] for e in frontier[name]]), cheap
        )
        for name in ("value", "router")
    )
    assert best >= other


def test_names_beside_points_do_not_overlap(make_pool):
    boxes = [
        box
        for text, box in _texts(accuracy_against_cost(_metrics(make_pool)))
        if text.startswith("organisation/")
    ]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_training_curves_end_where_members_stopped():
    figure = training_curves(_history())
    _assert_nothing_is_cut(figure)
    lines = {line.get_label(): line for line in figure.axes[1].lines}
    assert {"member 0", "member 1", "not kept"} <= set(lines)
    assert np.isfinite(lines["member 1"].get_ydata()).sum() == 10
    assert np.isfinite(lines["member 0"].get_ydata()).sum() == 12


def test_history_may_come_from_json():
    """Arrays are lists there, and NaN is None."""
    history = _history()
    lists = {
        name: [[None if v != v else v for v in row] for row in history[name].tolist()]
        for name in ("train_loss_EK", "val_loss_EK")
    }
    figure = training_curves(history | lists | {"best_epoch_K": history["best_epoch_K"].tolist()})
    line = figure.axes[0].lines[0]
    assert np.isfinite(line.get_ydata()).any()


def test_missing_numbers_are_dashes(make_pool):
    metrics = _metrics(make_pool, m=3)
    metrics["auc"][LONG.format(0)] = None
    metrics["within_dataset_auc"] = None
    metrics["oracle_share"] = None
    assert "–" in [text for text, _ in _texts(auc_bars(metrics))]
    assert len(routed_share(metrics).axes[0].patches) == 3


def test_free_targets_have_a_linear_cost_axis(make_pool):
    data, p_NM, cost_NM = make_pool(m=3)
    cost_NM[:, 0] = 0
    metrics = evaluate_predictions(
        p_NM, Judged(data, paid_NM=cost_NM, basis="assumed"), policy=Argmax(), best_single=2
    )
    figure = accuracy_against_cost(metrics)
    assert figure.axes[0].get_xscale() == "linear"
    _assert_nothing_is_cut(figure)
    all_free = evaluate_predictions(
        p_NM, Judged(data, paid_NM=0 * cost_NM, basis="assumed"), policy=Argmax(), best_single=2
    )
    _assert_nothing_is_cut(accuracy_against_cost(all_free))


def test_a_name_is_never_read_as_a_formula(make_pool):
    data, p_NM, cost_NM = make_pool(m=2)
    object.__setattr__(data, "targets", (r"$\frac{$", "costs $5, or $6"))
    metrics = evaluate_predictions(
        p_NM, Judged(data, paid_NM=cost_NM, basis="assumed"), policy=Argmax(), best_single=1
    )
    for draw in (auc_bars, routed_share, accuracy_against_cost):
        FigureCanvasAgg(draw(metrics)).draw()


def test_a_name_with_an_underscore_before_it_is_in_the_legend(make_pool):
    data, p_NM, cost_NM = make_pool(m=2)
    object.__setattr__(data, "targets", ("_first", "second"))
    metrics = evaluate_predictions(
        p_NM, Judged(data, paid_NM=cost_NM, basis="assumed"), policy=Argmax(), best_single=1
    )
    (legend,) = reliability_curves(metrics).legends
    assert [text.get_text().strip("\u200b") for text in legend.get_texts()] == ["_first", "second"]
