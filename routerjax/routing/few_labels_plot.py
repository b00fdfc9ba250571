"""The picture of a label curve."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from routerjax.files import Folder
from routerjax.probes.plot import STYLES
from routerjax.routing.style import clean


def save(found: dict[str, Any], folder: Any) -> None:
    """Writes few_labels.png and few_labels.json.

    Args:
      found: What `few_labels` returned.
      folder: Local or a URL.

    Raises:
      OSError: It cannot be written.
    """
    folder = Folder(folder)
    png = io.BytesIO()
    draw(found).savefig(png, format="png", dpi=120)
    folder.write_bytes("few_labels.png", png.getvalue())
    folder.write_json("few_labels.json", found)


def draw(found: dict[str, Any]) -> Figure:
    """AUC of each method against the number of outcomes, and its lead over training from scratch.

    Args:
      found: What `few_labels` returned.

    Returns:
      The figure; its second row is within datasets, where those have names.
    """
    rows = [(found["auc"], "AUC")]
    if found["within_dataset_auc"] is not None:
        rows.append((found["within_dataset_auc"], "AUC within datasets"))
    figure = Figure(figsize=(10, 4.2 * len(rows)), layout="constrained")
    for axes_2, (of, name) in zip(figure.subplots(len(rows), 2, squeeze=False), rows, strict=True):
        _draw_row(axes_2, found["sizes"], of, name)
    top_left, top_right = figure.axes[:2]
    top_left.legend(fontsize=8, frameon=False)
    top_right.set_title("band: 95% over targets", fontsize=9)
    return figure


def _draw_row(axes_2: Sequence[Axes], sizes: list[int], of: dict[str, Any], name: str) -> None:
    labels = f"{name} of the new target", f"{name} over training from scratch"
    for axes, key, label in zip(axes_2, ("mean", "over_scratch"), labels, strict=True):
        for place, method in enumerate(of[key]):
            colour, dash = STYLES[place % len(STYLES)]
            points = [
                (size, row)
                for size, row in zip(sizes, of[key][method], strict=True)
                if row is not None
            ]
            size_S = [size for size, _ in points]
            axes.plot(size_S, [row["value"] for _, row in points], color=colour, linestyle=dash,
                      marker="o", markersize=3.5, label=method)  # fmt: skip
            if key == "over_scratch" and method != "from scratch":
                low_S, high_S = ([row[end] for _, row in points] for end in ("low", "high"))
                axes.fill_between(size_S, low_S, high_S, color=colour, alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("outcomes of the new target")
        axes.set_ylabel(label)
        clean(axes)
