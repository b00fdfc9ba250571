"""The picture of a label curve."""

import io
from typing import Any

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
      The figure.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, method in enumerate(found["mean"]):
        colour, dash = STYLES[place % len(STYLES)]
        for axes, key in ((left, "mean"), (right, "over_scratch")):
            points = [
                (size, row) for size, row in zip(found["sizes"], found[key][method], strict=True)
                if row is not None
            ]  # fmt: skip
            size_S = [size for size, _ in points]
            axes.plot(size_S, [row["value"] for _, row in points], color=colour, linestyle=dash,
                      marker="o", markersize=3.5, label=method)  # fmt: skip
            if key == "over_scratch" and method != "from scratch":
                low_S, high_S = ([row[end] for _, row in points] for end in ("low", "high"))
                axes.fill_between(size_S, low_S, high_S, color=colour, alpha=0.12, linewidth=0)
    for axes, label in ((left, "AUC of the new target"), (right, "AUC over training from scratch")):
        axes.set_xscale("log")
        axes.set_xticks(found["sizes"], [f"{size:,}" for size in found["sizes"]])
        axes.minorticks_off()
        axes.set_xlabel("outcomes of the new target")
        axes.set_ylabel(label)
        clean(axes)
    left.legend(fontsize=8, frameon=False)
    right.set_title("band: 95% over targets", fontsize=9)
    return figure
