"""The sweep's part of the report as plain values: best cells, controls, transfer, evidence."""

import collections
from typing import Any

import numpy as np

from routerjax.sweeps import evidence
from routerjax.sweeps.controls import CONTROLS
from routerjax.sweeps.table import SweepTable


def sweep_section(sweep: SweepTable) -> dict[str, Any]:
    """What `report.html.jinja` says of a sweep.

    Returns:
      `best_cells`, `controls` and `transfer` as rows of text, `settings`, `spread` (the median
      deviation over repeats, or None), `reasons` with their counts, and the lines of `evidence`.
    """
    repeated = sweep.settings["repeats"] > 1
    return {
        "best_cells": [_best_cell(sweep, target) for target in sweep.targets],
        "settings": dict(sweep.settings) | {"draws": sweep.draws and sweep.settings["draws"]},
        "spread": float(np.nanmedian(sweep.cells["seed_sd"])) if repeated else None,
        "reasons": collections.Counter(e["reason"] for e in sweep.reasons).most_common(12),
        "controls": _controls(sweep),
        "transfer": _transfer(sweep.transfer) if sweep.transfer else None,
        "evidence": evidence.lines(sweep.evidence),
    }


def _best_cell(sweep: SweepTable, target: str) -> tuple[str, list[Any], str | None]:
    """A target, its best cell with interval and layers that are not worse, or why there is none."""
    try:
        cell = sweep.best(target)
    except ValueError:
        return target, [], "; ".join(sweep.reason(target=target))
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
    cells = [cell.layer, cell.pooling, cell.pca_dim, _three(cell.value), interval, _three(within)]
    return target, [*cells, equal], None


def _controls(sweep: SweepTable) -> list[list[str]]:
    """A row a control: means over targets, at each control's best layer where it has layers."""
    rows = []
    for name in sweep.settings["controls"]:
        by_place: dict[Any, list[dict[str, Any]]] = collections.defaultdict(list)
        for row in sweep.controls:
            if row["control"] == name:
                by_place[row["layer"], row["pooling"]].append(row)
        if not by_place:
            continue
        means = {place: _means(rows_of) for place, rows_of in by_place.items()}
        place = max(means, key=lambda at: np.nan_to_num(means[at][0], nan=-1.0))
        where = "–" if place[0] is None else f"state {place[0]}, {place[1]}"
        rows.append([name, CONTROLS[name], where, *map(_three, means[place])])
    return rows


def _transfer(transfer: dict[str, Any]) -> dict[str, Any]:
    """Trained on the row's dataset, tested on the column's; means over targets."""
    auc_AAM = np.array(transfer["auc"], np.float64)
    count_AA = np.isfinite(auc_AAM).sum(axis=2)
    total_AA = np.where(np.isfinite(auc_AAM), auc_AAM, 0.0).sum(axis=2)
    mean_AA = np.where(count_AA > 0, total_AA / np.maximum(count_AA, 1), np.nan)
    names = transfer["datasets"]
    used = np.flatnonzero(count_AA.sum(axis=0) + count_AA.sum(axis=1)).tolist()
    rows = [[names[a], *(_three(mean_AA[a, b]) for b in used)] for a in used]
    return dict(transfer) | {"tested_on": [names[a] for a in used], "rows": rows}


def _means(rows: list[dict[str, Any]]) -> list[float]:
    """AUC, AUC within datasets and J, over the targets that have them."""
    means = []
    for key in ("auc", "within_auc", "fisher"):
        values = [row[key] for row in rows if row[key] is not None and np.isfinite(row[key])]
        means.append(float(np.mean(values)) if values else float("nan"))
    return means


def _three(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "–"
