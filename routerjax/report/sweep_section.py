"""The sweep's part of the report: best cells, controls, transfer between datasets, evidence."""

import collections
from typing import TYPE_CHECKING, Any

import numpy as np

from routerjax.report.html import Html, number, table, tag
from routerjax.sweeps import evidence
from routerjax.sweeps.controls import CONTROLS

if TYPE_CHECKING:
    from routerjax.sweeps.table import SweepTable


def best_cells(sweep: "SweepTable") -> Html:
    """The best cell of each target, with its interval and the layers that are not worse."""
    head = ("target", "hidden state", "pooling", "PCA", "AUC", "95% interval", "within datasets",
            "not distinguishable: states")  # fmt: skip
    rows: list[list[object]] = []
    for target in sweep.targets:
        try:
            cell = sweep.best(target)
        except ValueError:
            reason = "; ".join(sweep.reason(target=target))
            rows.append([target, "–", "–", "–", number(None, reason=reason), "–", "–", "–"])
            continue
        at = (
            sweep.layers.index(cell.layer),
            sweep.poolings.index(cell.pooling),
            sweep.pca_dims.index(cell.pca_dim),
            sweep.targets.index(target),
        )
        low, high, within = (
            float(sweep.cells[name][at]) for name in ("cv_auc_low", "cv_auc_high", "within_auc")
        )
        equal = "–"
        if sweep.draws:
            equal_L = sweep.equal_to_best(target).any(axis=(1, 2))
            equal = ", ".join(str(sweep.layers[i]) for i in np.flatnonzero(equal_L))
        interval = f"{low:.3f} to {high:.3f}" if np.isfinite(low) else "–"
        rows.append([target, cell.layer, cell.pooling, cell.pca_dim, _three(cell.value), interval,
                     _three(within), equal])  # fmt: skip
    return table(head, rows, text_columns=(2, 5, 7))


def notes(sweep: "SweepTable") -> Html:
    """What the numbers are, and what they are not."""
    settings = sweep.settings
    text = (
        f"Mean ROC-AUC over {settings['n_folds']} folds of whole groups; scaler, PCA and logistic "
        f"regression (C = 1) are fitted inside each fold. "
    )
    if sweep.draws:
        text += (
            f"Intervals come from {settings['draws']} bootstrap draws of groups of queries, the "
            f"same for all cells; no model is refitted, so the spread of training is not in them. "
        )
    if settings["repeats"] > 1:
        spread = float(np.nanmedian(sweep.cells["seed_sd"]))
        text += f"Dealing the rows to folds anew moves a cell by {spread:.4f} (median deviation). "
    kinds = collections.Counter(entry["reason"] for entry in sweep.reasons)
    parts = [tag("p", text)]
    if kinds:
        items = (tag("li", f"{reason} ({count} times)") for reason, count in kinds.most_common(12))
        parts.append(tag("ul", *items))
    return tag("div", *parts)


def controls(sweep: "SweepTable") -> Html:
    """One row a control: means over targets, at each control's best layer where it has layers."""
    rows: list[list[object]] = []
    for name in sweep.settings["controls"]:
        found = [row for row in sweep.controls if row["control"] == name]
        by_place: dict[Any, list[dict[str, Any]]] = collections.defaultdict(list)
        for row in found:
            by_place[row["layer"], row["pooling"]].append(row)
        if not by_place:
            continue
        means = {place: _means(rows_of) for place, rows_of in by_place.items()}
        place = max(means, key=lambda at: np.nan_to_num(means[at][0], nan=-1.0))
        where = "–" if place[0] is None else f"state {place[0]}, {place[1]}"
        rows.append([name, CONTROLS[name], where, *map(_three, means[place])])
    if not rows:
        return tag("p", "No controls were asked for.", css="dim")
    head = ("control", "what it is", "best at", "AUC", "within datasets", "J")
    return table(head, rows, text_columns=(1, 2))


def transfer(sweep: "SweepTable") -> Html:
    """Trained on the row's dataset, tested on the column's; means over targets."""
    if not sweep.transfer:
        return tag("p", "")
    auc_AAM = np.array(sweep.transfer["auc"], np.float64)
    count_AA = np.isfinite(auc_AAM).sum(axis=2)
    total_AA = np.where(np.isfinite(auc_AAM), auc_AAM, 0.0).sum(axis=2)
    mean_AA = np.where(count_AA > 0, total_AA / np.maximum(count_AA, 1), np.nan)
    names = sweep.transfer["datasets"]
    used = np.flatnonzero(count_AA.sum(axis=0) + count_AA.sum(axis=1)).tolist()
    head = ("trained on", *(names[a] for a in used))
    rows = [[names[a], *(_three(mean_AA[a, b]) for b in used)] for a in used]
    where = sweep.transfer
    text = (
        f"AUC from dataset to dataset, hidden state {where['layer']}, {where['pooling']}, at most "
        f"{where['pca_dim']} components, mean over targets:"
    )
    return tag("div", tag("p", text), table(head, rows))


def evidence_lines(sweep: "SweepTable") -> Html:
    """Whether J finds the layers, in words."""
    return tag("ul", *(tag("li", line) for line in evidence.lines(sweep.evidence)))


def _means(rows: list[dict[str, Any]]) -> tuple[float, ...]:
    """AUC, AUC within datasets and J, over the targets that have them."""
    found = []
    for key in ("auc", "within_auc", "fisher"):
        values = [row[key] for row in rows if row[key] is not None and np.isfinite(row[key])]
        found.append(float(np.mean(values)) if values else float("nan"))
    return tuple(found)


def _three(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "–"
