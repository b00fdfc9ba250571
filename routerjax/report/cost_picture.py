"""The picture of accuracy against cost, every single target named in it."""

import dataclasses
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from routerjax.evaluation.estimated import known_queries
from routerjax.report.label_layout import place_labels
from routerjax.report.shown import shown_targets
from routerjax.report.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PERCENT,
    WIDTH,
    clean,
    mixtures,
    short_name,
)
from routerjax.routing.costs import basis_in_words

# Inches. Fixed, so that the labels' places can be worked out before anything is drawn.
_HEIGHT, _LEFT, _RIGHT, _BOTTOM, _TOP = 5.2, 0.72, 0.15, 0.5, 0.58
_INNER_2 = np.array([WIDTH - _LEFT - _RIGHT, _HEIGHT - _BOTTOM - _TOP])


@dataclasses.dataclass(frozen=True)
class _Frame:
    """The range of the axes, and places in it.

    Attributes:
      logarithmic: Whether the cost axis is logarithmic.
      low_2: The lower left corner, with the logarithm of the cost where the axis is logarithmic.
      high_2: The upper right corner.
    """

    logarithmic: bool
    low_2: np.ndarray
    high_2: np.ndarray

    @classmethod
    def around(cls, points_P2: np.ndarray) -> "_Frame":
        logarithmic = bool(points_P2[:, 0].min() > 0)
        at_P2 = _across(points_P2, logarithmic)
        middle_2 = (at_P2.max(axis=0) + at_P2.min(axis=0)) / 2
        # A pool of one target is a single point, around which the axes still need some width.
        least_2 = [0.5, 0.1] if logarithmic else [max(1e-9, middle_2[0]), 0.1]
        span_2 = np.maximum(np.ptp(at_P2, axis=0), least_2)
        return cls(logarithmic, middle_2 - [0.57, 0.6] * span_2, middle_2 + 0.57 * span_2)

    def place(self, points_P2: np.ndarray) -> np.ndarray:
        """[P, 2] in 1/72 inch from the lower left corner of the axes."""
        from_corner_P2 = _across(points_P2, self.logarithmic) - self.low_2
        return from_corner_P2 / (self.high_2 - self.low_2) * _INNER_2 * 72

    def set(self, axes: Any) -> None:
        left, right = self.low_2[0], self.high_2[0]
        axes.set_ylim(self.low_2[1], self.high_2[1])
        axes.yaxis.set_major_formatter(PERCENT)
        if not self.logarithmic:
            axes.set_xlim(left, right)
        else:
            axes.set_xscale("log")
            axes.set_xlim(10**left, 10**right)
            decades = right - left
            subs = (1,) if decades > 4 else (1, 3) if decades > 2.2 else (1, 2, 5)
            axes.xaxis.set_major_locator(LogLocator(subs=subs))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"\\${cost:g}"))


def accuracy_against_cost(metrics: dict[str, Any]) -> Figure:
    """Single targets, their best mixtures, the oracle, and the router over values and tolerances.

    The router's line is that of the policy which is best at each cost, value (utility is the same);
    tolerance is drawn faintly beside it. The cost axis is logarithmic where no cost is 0; the
    straight lines between two points that a mixture of them reaches are curves there.

    Args:
      metrics: What `evaluate_predictions` returned; `frontier` must not be None.
    """
    frontier = metrics["frontier"]
    singles_P2 = _points(frontier["singles"])
    tolerance_P2 = _points(frontier["router"])
    # metrics.json had tolerances alone once.
    value_P2 = _points(frontier.get("value") or [])
    hull_P2 = _points(frontier["zero_router"])
    chosen, oracle = _points([frontier["chosen"]])[0], _points([frontier["oracle"]])[0]
    all_P2 = np.concatenate([singles_P2, tolerance_P2, value_P2, [chosen, oracle]])

    figure = Figure(figsize=(WIDTH, _HEIGHT))
    axes = figure.add_axes(
        (_LEFT / WIDTH, _BOTTOM / _HEIGHT, _INNER_2[0] / WIDTH, _INNER_2[1] / _HEIGHT)
    )
    frame = _Frame.around(all_P2)
    frame.set(axes)
    clean(axes)

    # Drawn up to the highest cost: beyond the most accurate single target the line is flat.
    flat_2 = [max(all_P2[:, 0].max(), hull_P2[-1, 0]), hull_P2[-1, 1]]
    zero_S2 = mixtures(np.concatenate([hull_P2, [flat_2]]), frame.logarithmic)
    tolerance_S2 = mixtures(tolerance_P2, frame.logarithmic)
    value_S2 = mixtures(value_P2, frame.logarithmic)
    axes.plot(*zero_S2.T, color=GREY, linestyle=(0, (4, 1.5)), linewidth=1.3,
              label="zero router: best mixture of single targets")  # fmt: skip
    taus = [point["tau"] for point in frontier["router"]]
    axes.plot(*tolerance_S2.T, color=BLUE, linewidth=1, alpha=0.8, linestyle=(0, (1, 1.2)),
              label=f"router, tolerance:{taus[0]:g} to {taus[-1]:g}")  # fmt: skip
    if len(value_P2):
        axes.plot(*value_S2.T, color=BLUE, linewidth=1.7, zorder=3,
                  label="router, by the value of a right answer")  # fmt: skip
        axes.plot(*value_P2.T, "o", color=BLUE, markersize=2.5, zorder=3)
    axes.plot(*chosen, "D", color=ORANGE, markersize=9, markeredgecolor="black", zorder=5,
              label=f"router as set ({frontier['chosen']['policy']})")  # fmt: skip
    axes.plot(*oracle, "*", color=GREEN, markersize=15, markeredgecolor="black", zorder=5,
              label="oracle: cheapest right target")  # fmt: skip
    shown = set(shown_targets(metrics))
    named = [i for i, single in enumerate(frontier["singles"]) if single["target"] in shown]
    names = [short_name(frontier["singles"][i]["target"]) for i in named]
    others_P2 = np.delete(singles_P2, named, axis=0)
    axes.plot(*others_P2.T, "o", color=GREY, markersize=3, zorder=3)
    axes.plot(*singles_P2[named].T, "o", color="black", markersize=6, zorder=4,
              label="single target")  # fmt: skip
    obstacle_O2 = np.concatenate([
        *(_along(frame.place(line_S2)) for line_S2 in (tolerance_S2, value_S2, zero_S2)
          if len(line_S2)),
        frame.place(others_P2),
        # Repeated, because these symbols are larger than a sample of a curve.
        np.repeat(frame.place(np.array([chosen, oracle])), 12, axis=0),
    ])  # fmt: skip
    _write_names(axes, names, frame.place(singles_P2[named]), obstacle_O2)

    basis = basis_in_words(metrics["cost_basis"], "output tokens {}")
    axes.set_xlabel(f"USD per 1,000 queries ({basis})", fontsize=9)
    axes.set_ylabel(f"accuracy on {known_queries(metrics, 'router')}", fontsize=9)
    handles, texts = axes.get_legend_handles_labels()
    figure.legend(handles, texts, loc="upper left", ncols=3, fontsize=8, frameon=False,
                  bbox_to_anchor=(_LEFT / WIDTH - 0.01, 1.0))  # fmt: skip
    return figure


def _write_names(axes: Any, names: list[str], spot_P2: np.ndarray, obstacle_O2: np.ndarray) -> None:
    """Each name near its spot, and a line to the spot where the name is far; in 1/72 inch."""
    box_2 = _INNER_2 * 72
    size_P2 = np.array([[TextPath((0, 0), n, size=8).get_extents().width + 2, 9] for n in names])
    corner_P2 = place_labels(spot_P2, size_P2, (box_2[0], box_2[1]), obstacle_O2)
    for name, spot, corner, size in zip(names, spot_P2, corner_P2, size_P2, strict=True):
        nearest = np.clip(spot, corner, corner + size)
        if np.linalg.norm(nearest - spot) > 9:
            axes.plot(*(np.array([spot, nearest]) / box_2).T, color=GREY, linewidth=0.7,
                      transform=axes.transAxes, zorder=2)  # fmt: skip
        x, y = (corner + [1, 1.5]) / box_2
        axes.text(x, y, name, fontsize=8, transform=axes.transAxes, zorder=6,
                  bbox={"facecolor": "white", "alpha": 0.7, "pad": 0.4, "lw": 0})  # fmt: skip


def _points(entries: list[dict[str, Any]]) -> np.ndarray:
    """[P, 2] USD per 1,000 queries, and accuracy."""
    points = [[1000 * e["cost_per_query"], e["accuracy"]] for e in entries]
    return np.array(points, np.float64).reshape(-1, 2)


def _across(points_P2: np.ndarray, logarithmic: bool) -> np.ndarray:
    cost_P, accuracy_P = points_P2.T
    return np.stack([np.log10(cost_P) if logarithmic else cost_P, accuracy_P], axis=1)


def _along(line_P2: np.ndarray) -> np.ndarray:
    """Points every 6 units along a polyline, so that no label fits between two of them."""
    pieces = [line_P2[-1:]]
    for a, b in zip(line_P2[:-1], line_P2[1:], strict=True):
        steps = max(1, int(np.linalg.norm(b - a) // 6))
        pieces.append(a + (b - a) * np.linspace(0, 1, steps, endpoint=False)[:, None])
    return np.concatenate(pieces)
