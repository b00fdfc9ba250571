"""The picture of a comparison: accuracy against cost of every contestant, with bands."""

import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from routerjax.files import Folder
from routerjax.probes.plot import STYLES
from routerjax.routing.frontier import hull
from routerjax.routing.style import GREY, PERCENT, clean

_MOST_BANDS = 4


def save(found: dict[str, Any], folder: Any) -> None:
    """Writes compare.json and, where prices are known, compare.png.

    Args:
      found: What `compare` returned.
      folder: Local or a URL.

    Raises:
      OSError: It cannot be written.
    """
    folder = Folder(folder)
    figure = draw(found)
    if figure is not None:
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=120)
        folder.write_bytes("compare.png", png.getvalue())
    folder.write_json("compare.json", found)


def draw(found: dict[str, Any]) -> Figure | None:
    """Frontiers of the tolerance policy, single targets, and what mixing these reaches.

    Args:
      found: What `compare` returned.

    Returns:
      The figure; None where prices are unknown.
    """
    if not found["singles"]:
        return None
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    axes = figure.subplots()
    points_M2 = np.array([[cost, accuracy] for _, cost, accuracy in found["singles"]])
    mixed_V2 = hull(points_M2)
    axes.plot(*mixed_V2.T, "--", color=GREY, linewidth=1.2, label="mixing single targets")
    axes.plot(*points_M2.T, "o", color=GREY, markersize=4, label="single targets")
    for place, row in enumerate(found["contestants"]):
        colour, dash = STYLES[place % len(STYLES)]
        point_T4 = np.array(row["frontier"])
        if np.ptp(point_T4[:, 1]) == 0 or row["auc"] is None:
            # It ranks targets and has no setting to turn: one point, at argmax.
            axes.plot(*point_T4[0, :2], "s", color=colour, markersize=6, label=row["name"])
            continue
        point_T4 = point_T4[np.argsort(point_T4[:, 0])]
        axes.plot(*point_T4[:, :2].T, color=colour, linestyle=dash, marker=".", markersize=4,
                  label=row["name"])  # fmt: skip
        if place < _MOST_BANDS:
            cost_T, _, low_T, high_T = point_T4.T
            axes.fill_between(cost_T, low_T, high_T, color=colour, alpha=0.12, linewidth=0)
    if points_M2[:, 0].min() > 0:
        axes.set_xscale("log")
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("USD per query")
    axes.set_ylabel("accuracy")
    axes.set_title(
        f"{found['n_complete']:,} queries, {found['n_folds']} outer folds; band: 95%", fontsize=10
    )
    clean(axes)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure
