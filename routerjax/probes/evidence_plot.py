"""The picture of the evidence: how J and d_eff order the layers, and what trusting them costs."""

from typing import Any

from matplotlib.figure import Figure

from routerjax.probes.evidence import AUCS, PROBES
from routerjax.probes.plot import STYLES, short


def draw(evidence: dict[str, Any]) -> Figure:
    """Two panels for each kind of AUC: Spearman over layers and AUC lost, a row a target.

    Args:
      evidence: Of `find_evidence`.

    Returns:
      The figure.
    """
    rows = evidence["spearman"]
    targets = list(dict.fromkeys(row["target"] for row in rows))
    series = list(dict.fromkeys((row["probe"], row["pooling"]) for row in rows))
    figure = Figure(figsize=(13, 2 * (1.6 + 0.32 * len(targets))), layout="constrained")
    axes_22 = figure.subplots(2, 2, sharey=True, squeeze=False)
    for i, (auc, label) in enumerate(AUCS.items()):
        for k, (kind, title) in enumerate(
            (
                ("spearman", f"Spearman over layers with {label}"),
                ("lost", f"{label} lost by trusting the probe"),
            )
        ):
            axes = axes_22[i][k]
            for place, (probe, pooling) in enumerate(series):
                offset = 0.5 - (place + 0.5) / len(series)
                _points(axes, evidence[kind], (probe, auc, pooling), targets, 0.7 * offset,
                        STYLES[place][0], f"{PROBES[probe]}, {pooling}")  # fmt: skip
            axes.axvline(0, color="black", linewidth=0.8)
            axes.set_title(title, fontsize=10)
            axes.grid(axis="x", alpha=0.25, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            names = ["mean over targets" if t is None else short(t) for t in targets]
            axes.set_yticks(range(len(targets)), names, fontsize=8)
        axes_22[i][0].set_xlim(-1.05, 1.05)
    axes_22[0][0].invert_yaxis()
    handles, labels = axes_22[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _points(
    axes: Any,
    rows: list[dict[str, Any]],
    key: tuple[str, str, str],
    targets: list[str | None],
    offset: float,
    colour: str,
    label: str,
) -> None:
    """Values with their intervals, one a target."""
    found = [
        row for row in rows
        if (row["probe"], row["auc"], row["pooling"]) == key and row["value"] is not None
    ]  # fmt: skip
    y = [targets.index(row["target"]) - offset for row in found]
    axes.plot([row["value"] for row in found], y, "o", color=colour, markersize=4, label=label)
    for row, at in zip(found, y, strict=True):
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [at, at], color=colour, linewidth=1.2)
