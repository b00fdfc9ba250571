"""A label curve as tables of text."""

from typing import Any

_TITLES = {
    "auc": "AUC of a new target",
    "within_dataset_auc": "AUC within datasets",
}


def few_labels_lines(found: dict[str, Any]) -> list[str]:
    """The label curve as a table of text, a row a method; another one within datasets.

    Args:
      found: What `few_labels` returned.
    """
    return [
        line
        for figure, title in _TITLES.items()
        if found[figure] is not None
        for line in _table(found, found[figure], title)
    ]


def _table(found: dict[str, Any], of: dict[str, Any], title: str) -> list[str]:
    width = max(map(len, of["mean"]))
    # A target whose outcomes are all alike has none.
    n_targets = sum(
        any(value is not None for sizes in curves.values() for draws in sizes for value in draws)
        for curves in of["targets"].values()
    )
    lines = [
        f"{title} on {found['n_test']:,} queries against the number of its outcomes, mean over "
        f"{n_targets} targets left out in turn and {found['draws']} draws; in brackets "
        f"over training from scratch, with the 95% interval over targets",
        " ".join([f"{'':{width}}", *(f"{size:>30}" for size in found["sizes"])]),
    ]
    for method, means in of["mean"].items():
        cells = []
        for mean, lead in zip(means, of["over_scratch"][method], strict=True):
            if mean is None:
                cells.append("–")
            elif method == "from scratch":
                cells.append(f"{mean['value']:.3f}")
            else:
                cells.append(
                    f"{mean['value']:.3f} ({lead['value']:+.3f} [{lead['low']:+.3f}, "
                    f"{lead['high']:+.3f}])"
                )
        lines.append(" ".join([f"{method:{width}}", *(f"{cell:>30}" for cell in cells)]))
    return lines
