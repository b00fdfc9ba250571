"""A sweep in a few lines of text: the best cell of each target, and what the controls say."""

import numpy as np

from routerjax.probes import evidence
from routerjax.probes.sweep_table import SweepTable


def sweep_lines(table: SweepTable) -> list[str]:
    """The best cells in aligned columns, controls as means over targets, the evidence for J.

    Args:
      table: Of `sweep`.
    """
    name_width = max(len(name) for name in (*table.targets, "mean over targets"))
    found = [f"{'best cell by cross-validated AUC':{name_width}}  layer  pooling     width  AUC"]
    for target in (*table.targets, None):
        label = "mean over targets" if target is None else target
        try:
            best = table.best(target)
        except ValueError:
            found.append(f"{label:{name_width}}  none: {'; '.join(table.reason(target=target))}")
            continue
        line = f"{label:{name_width}}  {best.layer:5d}  {best.pooling:10}  {best.pca_dim:5d}  "
        line += f"{best.value:.4f}"
        if table.draws:
            layers = np.array(table.layers)[table.equal_to_best(target).any(axis=(1, 2))]
            line += f"; not distinguishable: layers {_ranges(layers)}"
        found.append(line)
    rows: dict[str, list[float]] = {row["control"]: [] for row in table.controls}
    for row in table.controls:
        rows[row["control"]].append(row["auc"])
    for name, values in rows.items():
        known = [value for value in values if np.isfinite(value)]
        if known:
            found.append(f"control {name}: AUC {np.mean(known):.4f} (mean over layers and targets)")
    found += evidence.lines(table.evidence)
    unsolved = sum("not converged" in entry["reason"] for entry in table.reasons)
    if unsolved:
        found.append(f"{unsolved} cells are not converged to the tolerance: see reasons")
    if table.draws:
        found.append("intervals: 95%, by a bootstrap over groups of queries; no model is refitted")
    return found


def _ranges(layers: np.ndarray) -> str:
    """3, 4, 5, 8 as "3-5, 8"."""
    runs = np.split(layers, np.flatnonzero(np.diff(layers) > 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
