"""The picture of a ProbeTable, and the panels by pooling that it shares with that of a sweep."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from routerjax.probes.table import DEFAULT, ProbeTable
from routerjax.report.style import BLUE, GREEN, ORANGE, STYLES, clean, plain

_COLUMNS = 4
_DIMENSIONS = (
    ("n95/standardised", "components for 95% variance", GREEN, "-"),
    ("entropy_dim/standardised", "exp(spectral entropy)", ORANGE, "-"),
    ("d_eff/standardised", "d_eff, participation ratio", BLUE, "-"),
    ("d_eff/raw", "d_eff of raw states", BLUE, (0, (4, 1.5))),
)

# Inches: a panel, the column of legends, a line of a legend.
_PANEL, _LEGEND, _LINE = 3.4, 2.7, 0.185


def draw_probes(table: ProbeTable, name: str = DEFAULT) -> Figure:
    """Three bands: J per pooling, dimensions per pooling, anisotropy. Legends stand beside them.

    Args:
      table: What to draw.
      name: The J to draw, such as "trace/standardised".
    """
    value_LPM = table.get(name)
    n_columns = min(len(table.poolings), _COLUMNS)
    n_rows = -(-len(table.poolings) // _COLUMNS)
    legend_height = _LINE * (len(table.targets) + 1) + 0.5
    heights = [max(3.0, legend_height / n_rows)] * n_rows + [2.7] * n_rows + [2.3]
    widths = [max(_PANEL, 5.5 / n_columns)] * n_columns + [_LEGEND]
    figure = Figure(figsize=(sum(widths), sum(heights) + 0.4), layout="constrained")
    figure.suptitle(f"Probes of the hidden states on {table.n_queries:,} queries", fontsize=12)
    grid = figure.add_gridspec(len(heights), n_columns + 1, width_ratios=widths,
                               height_ratios=heights)  # fmt: skip

    axes_P = panels(figure, grid, table, n_columns, first_row=0)
    for j, axes in enumerate(axes_P):
        for m, target in enumerate(table.targets):
            colour, dash = STYLES[m % len(STYLES)]
            curve(axes, table.layers, value_LPM[:, j, m], target, colour, dash, peak=True)
        mean_L = table.mean_over_targets(name)[:, j]
        curve(axes, table.layers, mean_L, "mean over targets", "black", "-", width=2.4, peak=True)
    axes_P[0].set_ylim(bottom=0)
    legend_cell = grid[:n_rows, -1]
    finish(figure, legend_cell, axes_P, n_columns, f"J ({name})", "target (dot: its peak)")

    axes_P = panels(figure, grid, table, n_columns, first_row=n_rows)
    for j, axes in enumerate(axes_P):
        for kind, label, colour, dash in _DIMENSIONS:
            curve(axes, table.layers, table.get(kind)[:, j], label, colour, dash)
    axes_P[0].set_yscale("log")
    for axes in axes_P:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    legend_cell = grid[n_rows : 2 * n_rows, -1]
    finish(figure, legend_cell, axes_P, n_columns, "dimensions in use", "standardised states")

    axes = figure.add_subplot(grid[-1, :-1])
    axes.set_title("anisotropy", fontsize=9)
    for j, pooling in enumerate(table.poolings):
        colour, dash = STYLES[j % len(STYLES)]
        curve(axes, table.layers, table.get("anisotropy")[:, j], pooling, colour, dash)
    format_layers(axes, table)
    finish(figure, grid[-1, -1], [axes], 1, "mean cosine of two queries", "pooling")
    return figure


def panels(
    figure: Figure, grid: Any, table: ProbeTable, n_columns: int, first_row: int
) -> list[Any]:
    """One panel a pooling, filled row by row, with one y axis for all."""
    axes_P: list[Any] = []
    for j, pooling in enumerate(table.poolings):
        cell = grid[first_row + j // n_columns, j % n_columns]
        axes = figure.add_subplot(cell, sharey=axes_P[0] if axes_P else None)
        axes.set_title(f"pooling: {pooling}", fontsize=9)
        axes.tick_params(labelleft=j % n_columns == 0)
        format_layers(axes, table)
        axes_P.append(axes)
    return axes_P


def format_layers(axes: Any, table: ProbeTable) -> None:
    """An x axis of all hidden states, those without a number included."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    margin = max(0.3, 0.02 * (table.layers[-1] - table.layers[0]))
    axes.set_xlim(table.layers[0] - margin, table.layers[-1] + margin)
    clean(axes)


def curve(
    axes: Any,
    layers: tuple[int, ...],
    value_L: np.ndarray,
    label: str,
    colour: str,
    dash: Any,
    width: float = 1.3,
    peak: bool = False,
) -> None:
    """A line over the hidden states, with points where they are few: one alone makes no line."""
    label = plain(label if len(label) <= 34 else label[:33] + "…")
    axes.plot(layers, value_L, color=colour, linestyle=dash, linewidth=width, label=label,
              marker="." if len(layers) <= 16 else None, markersize=4)  # fmt: skip
    if peak and np.isfinite(value_L).any():
        at = int(np.nanargmax(value_L))
        axes.plot(layers[at], value_L[at], "o", color=colour, markersize=6, zorder=3)


def finish(
    figure: Figure, cell: Any, axes_P: list[Any], n_columns: int, y_label: str, title: str
) -> None:
    """Labels at the outer edges, and the legend of the first panel in a cell of its own."""
    for j, axes in enumerate(axes_P):
        if j % n_columns == 0:
            axes.set_ylabel(y_label, fontsize=9)
        if j + n_columns >= len(axes_P):
            axes.set_xlabel("hidden state (0 = embeddings)", fontsize=9)
    legend_in(figure, cell, [axes_P[0]], title)


def legend_in(figure: Figure, cell: Any, axes_P: list[Any], title: str) -> None:
    """The legend of some axes in a cell of its own, over no curve."""
    beside = figure.add_subplot(cell)
    beside.set_axis_off()
    handles = [handle for axes in axes_P for handle in axes.get_legend_handles_labels()[0]]
    beside.legend(handles, [handle.get_label() for handle in handles], loc="upper left", fontsize=8,
                  title=title, title_fontsize=8, frameon=False, alignment="left",
                  borderaxespad=0.0)  # fmt: skip
