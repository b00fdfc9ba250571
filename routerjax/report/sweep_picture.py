"""The picture of a SweepTable: heat maps layer x target, and curves over layers and widths."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from routerjax.report.probe_picture import curve, finish, legend_in, panels
from routerjax.report.style import STYLES, clean, short
from routerjax.stats.bootstrap import reverse_percentile
from routerjax.sweeps.evidence import AUCS, PROBES
from routerjax.sweeps.table import SweepTable

# Inches: a column of panels, the column of legends, a line of a legend, a target of a heat map.
_PANEL, _LEGEND, _LINE, _TARGET = 4.6, 3.0, 0.185, 0.25
_CONTROLS = {"dataset": ("#8C510A", "dataset's name alone"), "length": ("#7A7A7A", "length alone"),
             "random": ("#56B4E9", "random features")}  # fmt: skip
_LAYER_CONTROLS = {"shuffled_within": ("#8C510A", "shuffled within datasets"),
                   "random_encoder": ("#CC79A7", "random-weight encoder")}  # fmt: skip


def draw_sweep(table: SweepTable, name: str = "cv_auc") -> Figure:
    """Bands with a column a pooling: heat map, AUC over layers, J over layers, AUC over widths.

    The last is left out where one width was swept.

    Args:
      table: What to draw.
      name: Of `table.cells`.
    """
    value_LPWM = table.cells[name]
    n_columns, n_targets = len(table.poolings), len(table.targets)
    several = len(table.pca_dims) > 1
    heights = [1.2 + _TARGET * n_targets, max(3.0, _LINE * (n_targets + 9)), 2.8]
    heights += [2.6] if several else []
    widths = [max(_PANEL, 8.0 / n_columns)] * n_columns + [_LEGEND]
    figure = Figure(figsize=(sum(widths), sum(heights) + 0.4), layout="constrained")
    figure.suptitle(
        f"Cross-validated ROC-AUC of {np.isfinite(value_LPWM).sum():,} cells on "
        f"{table.n_queries:,} queries, {table.settings['n_folds']} folds",
        fontsize=12,
    )
    grid = figure.add_gridspec(
        len(heights), n_columns + 1, width_ratios=widths, height_ratios=heights
    )
    _heat_maps(figure, grid, table, value_LPWM)
    mean_LPW = _over_targets(value_LPWM)
    if np.isfinite(mean_LPW).any():
        width = int(np.unravel_index(np.nanargmax(mean_LPW), mean_LPW.shape)[2])
        _over_layers(figure, grid, table, name, width)
        if several:
            _over_widths(figure, grid, table, mean_LPW)
    _fishers(figure, grid, table)
    return figure


def _heat_maps(figure: Figure, grid: Any, table: SweepTable, value_LPWM: np.ndarray) -> None:
    """One map a pooling, each cell at its best width, one scale of colours."""
    best_LPM = np.nanmax(np.where(np.isnan(value_LPWM), -np.inf, value_LPWM), axis=2)
    best_LPM = np.where(np.isfinite(best_LPM), best_LPM, np.nan)
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="#D9D9D9")
    shown = best_LPM[np.isfinite(best_LPM)]
    low, high = (shown.min(), shown.max()) if shown.size else (0.5, 1.0)
    image: Any = None
    axes_P: list[Any] = []
    for j, pooling in enumerate(table.poolings):
        axes = figure.add_subplot(grid[0, j])
        axes_P.append(axes)
        image = axes.imshow(best_LPM[:, j].T, aspect="auto", cmap=colours, vmin=low, vmax=high,
                            interpolation="nearest")  # fmt: skip
        width = "each cell at its best width" if len(table.pca_dims) > 1 else (
            f"PCA {table.pca_dims[0]}"
        )  # fmt: skip
        axes.set_title(f"pooling: {pooling}, {width}", fontsize=9)
        step = max(1, -(-len(table.layers) // 20))
        axes.set_xticks(
            range(0, len(table.layers), step), [str(i) for i in table.layers[::step]], fontsize=8
        )
        labels = [short(target) for target in table.targets] if j == 0 else []
        axes.set_yticks(range(len(table.targets)) if j == 0 else [], labels, fontsize=8)
        axes.set_xlabel("hidden state (0 = embeddings)", fontsize=9)
        axes.tick_params(length=0)
    for m, target in enumerate(table.targets):
        if not np.isfinite(value_LPWM[..., m]).any():
            continue
        if table.draws:
            for i, j in np.argwhere(table.equal_to_best(target).any(axis=2)):
                axes_P[j].plot(i, m, "o", color="white", markersize=3, markeredgecolor="black",
                               markeredgewidth=0.4)  # fmt: skip
        best = table.best(target)
        j = table.poolings.index(best.pooling)
        axes_P[j].plot(table.layers.index(best.layer), m, "*", color="#D55E00", markersize=11,
                       markeredgecolor="white", markeredgewidth=0.6)  # fmt: skip
    beside = figure.add_subplot(grid[0, -1])
    beside.set_axis_off()
    for marker, colour, size, label in (
        ("*", "#D55E00", 11, "best cell of the target"),
        ("o", "white", 4, "not distinguishable from it"),
        ("s", "#D9D9D9", 8, "no number: see reasons"),
    ):
        beside.plot([], [], marker, color=colour, markersize=size, label=label,
                    markeredgecolor="black", markeredgewidth=0.4)  # fmt: skip
    beside.legend(loc="upper left", fontsize=8, frameon=False, borderaxespad=0.0)
    figure.colorbar(image, ax=beside, location="bottom", label="ROC-AUC", fraction=0.12, pad=0.0)


def _over_layers(figure: Figure, grid: Any, table: SweepTable, name: str, width: int) -> None:
    """AUC over layers at one width: each target, their mean with its band, and the controls."""
    value_LPM = table.cells[name][:, :, width]
    axes_P = panels(figure, grid, table, len(table.poolings), first_row=1)
    mean_LP, within_LP = (
        _over_targets(cells)[:, :, width]
        for cells in (table.cells[name], table.cells["within_auc"])
    )
    for j, axes in enumerate(axes_P):
        for m, target in enumerate(table.targets):
            colour, dash = STYLES[m % len(STYLES)]
            curve(axes, table.layers, value_LPM[:, j, m], target, colour, dash, width=0.9)
        if name in table.draws:
            _band(axes, table, name, j, width)
        curve(axes, table.layers, mean_LP[:, j], "mean over targets", "black", "-", 2.4, peak=True)
        if np.isfinite(within_LP).any() and name == "cv_auc":
            label = "mean within datasets"
            curve(axes, table.layers, within_LP[:, j], label, "black", (0, (4, 1.5)), width=1.8)
        for control, (colour, label) in _CONTROLS.items():
            level = _control(table, control)
            if np.isfinite(level):
                axes.axhline(level, color=colour, linewidth=1.6, linestyle=":", label=label)
        for control, (colour, label) in _LAYER_CONTROLS.items():
            value_L = np.array([
                _control(table, control, layer, table.poolings[j]) for layer in table.layers
            ])  # fmt: skip
            if np.isfinite(value_L).any():
                curve(axes, table.layers, value_L, label, colour, (0, (1, 1)), width=1.6)
        axes.set_title(f"pooling: {table.poolings[j]}, PCA {table.pca_dims[width]}", fontsize=9)
    finish(figure, grid[1, -1], axes_P, len(table.poolings), "ROC-AUC", "target (dot: the peak)")


def _band(axes: Any, table: SweepTable, name: str, j: int, width: int) -> None:
    known_M = np.isfinite(table.cells[name]).any(axis=(0, 1, 2))
    draws_BL = table.draws[name][:, :, j, width][..., known_M].mean(axis=-1)
    mean_L = table.cells[name][:, j, width][..., known_M].mean(axis=-1)
    low_L, high_L = reverse_percentile(mean_L, draws_BL)
    axes.fill_between(table.layers, low_L, high_L, color="black", alpha=0.15, linewidth=0,
                      label="its 95% interval")  # fmt: skip


def _fishers(figure: Figure, grid: Any, table: SweepTable) -> None:
    """J of each target with its interval; a dotted line shows J under shuffled outcomes."""
    j_LPM = table.fisher["trace/standardised"]
    axes_P = panels(figure, grid, table, len(table.poolings), first_row=2)
    for j, axes in enumerate(axes_P):
        for m, target in enumerate(table.targets):
            colour, dash = STYLES[m % len(STYLES)]
            axes.fill_between(table.layers, table.fisher_range["low"][:, j, m],
                              table.fisher_range["high"][:, j, m], color=colour, alpha=0.12,
                              linewidth=0)  # fmt: skip
            curve(axes, table.layers, j_LPM[:, j, m], target, colour, dash, peak=True)
        shuffled_L = table.fisher_range["shuffled"][:, j].mean(axis=1)
        curve(axes, table.layers, shuffled_L, "outcomes shuffled", "black", (0, (1, 1.2)))
    axes_P[0].set_ylim(bottom=0)
    finish(figure, grid[2, -1], axes_P, len(table.poolings), "J (trace, standardised)",
           "target, band: 95%")  # fmt: skip


def _over_widths(figure: Figure, grid: Any, table: SweepTable, mean_LPW: np.ndarray) -> None:
    """Mean AUC over PCA widths, for the layers that are best at some width."""
    axes_P: list[Any] = []
    for j, pooling in enumerate(table.poolings):
        axes = figure.add_subplot(grid[3, j], sharey=axes_P[0] if axes_P else None)
        axes_P.append(axes)
        peak_L = np.nanmax(np.where(np.isnan(mean_LPW[:, j]), -np.inf, mean_LPW[:, j]), axis=1)
        for place, i in enumerate(np.argsort(-peak_L)[:4]):
            colour, dash = STYLES[place]
            axes.plot(table.pca_dims, mean_LPW[i, j], color=colour, linestyle=dash, marker=".",
                      label=f"{pooling}, layer {table.layers[i]}")  # fmt: skip
        axes.set_xticks(table.pca_dims)
        axes.tick_params(labelleft=j == 0)
        axes.set_xlabel("principal components", fontsize=9)
        clean(axes)
    axes_P[0].set_ylabel("ROC-AUC, mean over targets", fontsize=9)
    legend_in(figure, grid[3, -1], axes_P, "the four best layers")


def _over_targets(value_LPWM: np.ndarray) -> np.ndarray:
    """[L, P, W] mean over the targets that have numbers anywhere."""
    known_M = np.isfinite(value_LPWM).any(axis=(0, 1, 2))
    if not known_M.any():
        return np.full(value_LPWM.shape[:3], np.nan)
    return value_LPWM[..., known_M].mean(axis=-1)


def _control(
    table: SweepTable, name: str, layer: int | None = None, pooling: str | None = None
) -> float:
    """A control's AUC, mean over the targets that have one."""
    values = [
        row["auc"]
        for row in table.controls
        if (row["control"], row["layer"], row["pooling"]) == (name, layer, pooling)
        and row["auc"] is not None and np.isfinite(row["auc"])
    ]  # fmt: skip
    return float(np.mean(values)) if values else float("nan")


def draw_evidence(evidence: dict[str, Any]) -> Figure:
    """Of `find_evidence`, two panels for each kind of AUC: Spearman over layers, and AUC lost."""
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
                        place, f"{PROBES[probe]}, {pooling}")  # fmt: skip
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
    place: int,
    label: str,
) -> None:
    """Values with their intervals, one a target; `place` is the series' among all."""
    colour = STYLES[place][0]
    # Colours come again; the marker tells the second round from the first.
    marker = "osD"[sum(earlier == colour for earlier, _ in STYLES[:place])]
    shown = [
        row for row in rows
        if (row["probe"], row["auc"], row["pooling"]) == key and row["value"] is not None
    ]  # fmt: skip
    y = [targets.index(row["target"]) - offset for row in shown]
    axes.plot([row["value"] for row in shown], y, marker, color=colour, markersize=4, label=label)
    for row, at in zip(shown, y, strict=True):
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [at, at], color=colour, linewidth=1.2)
