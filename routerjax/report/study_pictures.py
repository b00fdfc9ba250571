"""Pictures of the studies: accuracy against cost of every contestant, and label curves."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from routerjax.evaluation.estimated import known_queries
from routerjax.evaluation.frontier import hull
from routerjax.report.style import GREY, PERCENT, STYLES, clean, mixtures

_MOST_BANDS = 4


def draw_comparison(study: dict[str, Any]) -> Figure | None:
    """What `compare` returned: frontiers of the value policy, single targets, their mixtures.

    None where prices are unknown.
    """
    if not study["singles"]:
        return None
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    axes = figure.subplots()
    points_M2 = np.array([[1000 * cost, accuracy] for _, cost, accuracy in study["singles"]])
    logarithmic = bool(points_M2[:, 0].min() > 0)
    axes.plot(
        *mixtures(hull(points_M2), logarithmic).T,
        "--",
        color=GREY,
        linewidth=1.2,
        label="mixing single targets",
    )
    axes.plot(*points_M2.T, "o", color=GREY, markersize=4, label="single targets")
    # compare.json had frontiers of the tolerance policy alone once.
    by_value = all("value_frontier" in row for row in study["contestants"])
    swept = "the value of a right answer" if by_value else "tolerance"
    for place, row in enumerate(study["contestants"]):
        colour, dash = STYLES[place % len(STYLES)]
        # Of who sees the outcomes nothing but argmax is estimated where some are missing.
        argmax = [row[name] and row[name]["value"] for name in ("cost", "accuracy")]
        frontier = row["value_frontier" if by_value else "frontier"]
        point_T4 = np.array(frontier or [argmax], np.float64)
        point_T4[:, 0] *= 1000
        if np.ptp(point_T4[:, 1]) == 0 or row["auc"] is None:
            # Scores that only rank targets have no setting to vary: draw one point, at argmax.
            axes.plot(
                1000 * argmax[0], argmax[1], "s", color=colour, markersize=6, label=row["name"]
            )
            continue
        point_T4 = point_T4[np.argsort(point_T4[:, 0])]
        axes.plot(*mixtures(point_T4[:, :2], logarithmic).T, color=colour, linestyle=dash,
                  label=row["name"])  # fmt: skip
        if place < _MOST_BANDS:
            cost_T, _, low_T, high_T = point_T4.T
            axes.fill_between(cost_T, low_T, high_T, color=colour, alpha=0.12, linewidth=0)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"\\${cost:g}"))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("USD per 1,000 queries")
    axes.set_ylabel("accuracy")
    axes.set_title(
        f"{known_queries(study, 'choice')}, {study['n_folds']} outer folds, by {swept}; band: 95%",
        fontsize=10,
    )
    clean(axes)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def draw_few_labels(study: dict[str, Any]) -> Figure:
    """What `few_labels` returned: AUC against the number of outcomes, and its lead over scratch.

    Where datasets have names, a second row shows the AUC within datasets.
    """
    rows = [(study["auc"], "AUC")]
    if study["within_dataset_auc"] is not None:
        rows.append((study["within_dataset_auc"], "AUC within datasets"))
    figure = Figure(figsize=(10, 4.2 * len(rows)), layout="constrained")
    for axes_2, (of, name) in zip(figure.subplots(len(rows), 2, squeeze=False), rows, strict=True):
        _draw_row(axes_2, study["sizes"], of, name)
    top_left, top_right = figure.axes[:2]
    top_left.legend(fontsize=8, frameon=False)
    top_right.set_title("band: 95% over targets", fontsize=9)
    return figure


def _draw_row(axes_2: Sequence[Axes], sizes: list[int], of: dict[str, Any], name: str) -> None:
    labels = f"{name} of the new target", f"{name} over training from scratch"
    for axes, key, label in zip(axes_2, ("mean", "over_scratch"), labels, strict=True):
        for place, method in enumerate(of[key]):
            colour, dash = STYLES[place % len(STYLES)]
            row_of = dict(zip(sizes, of[key][method], strict=True))
            size_S = [size for size, row in row_of.items() if row is not None]
            value_S, low_S, high_S = (
                [row_of[size][name] for size in size_S] for name in ("value", "low", "high")
            )
            axes.plot(size_S, value_S, color=colour, linestyle=dash, marker="o", markersize=3.5,
                      label=method)  # fmt: skip
            if key == "over_scratch" and method != "from scratch":
                axes.fill_between(size_S, low_S, high_S, color=colour, alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("outcomes of the new target")
        axes.set_ylabel(label)
        clean(axes)
