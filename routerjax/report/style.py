"""What all pictures share: colours, names, axes. Object interface only: no window, no globals."""

from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

# Okabe and Ito's colours, which colour-blind readers can tell apart too; solid lines first, then
# dashed and dotted ones in the same colours.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#7A7A7A")
STYLES = [(c, dash) for dash in ("-", (0, (4, 1.5)), (0, (1, 1.2))) for c in _COLOURS]
BLUE, ORANGE, GREEN, GREY = (_COLOURS[i] for i in (0, 1, 2, 7))
WIDTH = 8.4  # inches
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.4g}%")

_LONGEST = 40  # characters of a name


def plain(name: str) -> str:
    """A target's name as matplotlib should draw it: never as a formula, and in legends too."""
    # A legend leaves out what begins with an underscore: put a space of no width before it.
    return ("\u200b" if name.startswith("_") else "") + name.replace("$", r"\$")


def short(name: str) -> str:
    """A long name without its middle, as models of a family differ at the end; as in `plain`."""
    return plain(name if len(name) <= 34 else f"{name[:15]}…{name[-18:]}")


def short_name(name: str) -> str:
    """A long name without its end; as in `plain`."""
    return plain(name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…")


def mixtures(points_P2: np.ndarray, logarithmic: bool) -> np.ndarray:
    """[S, 2] (cost, accuracy) along straight lines from each point to the next.

    A mixture of two settings lies on the straight line between them, which is a curve where the
    cost axis is logarithmic.
    """
    spaced = np.geomspace if logarithmic else np.linspace
    pieces = [points_P2[:1]]
    for (cost, at), (next_cost, next_at) in zip(points_P2[:-1], points_P2[1:], strict=True):
        cost_S = spaced(cost, next_cost, 25)[1:]
        part_S = (cost_S - cost) / ((next_cost - cost) or 1.0)
        if cost == next_cost:
            part_S = np.linspace(0, 1, 25)[1:]
        pieces.append(np.stack([cost_S, at + part_S * (next_at - at)], axis=1))
    return np.concatenate(pieces)


def clean(axes: Any) -> None:
    """A faint grid, small ticks, no box."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def legend(
    figure: Figure,
    axes: Any,
    title: str | None = None,
    loc: Literal["outside right upper", "outside upper left"] = "outside right upper",
    ncols: int = 1,
) -> None:
    """A legend outside of the axes, over no curve."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc=loc, ncols=ncols, fontsize=8, title=title,
                  title_fontsize=8, frameon=False, alignment="left")  # fmt: skip
