"""What the report's pictures share. Object interface only: no window, no global state."""

from typing import Any, Literal

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from routerjax.report.probe_picture import STYLES, plain

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "PERCENT", "STYLES", "WIDTH", "clean", "legend",
           "short_name"]  # fmt: skip

BLUE, ORANGE, GREEN = (STYLES[i][0] for i in range(3))
GREY = "#7A7A7A"
WIDTH = 8.4  # inches
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.4g}%")

_LONGEST = 40  # characters of a name


def short_name(name: str) -> str:
    """A target's name as matplotlib should draw it: not too long, and never a formula."""
    return plain(name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…")


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
