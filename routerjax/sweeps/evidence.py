"""Does J find the layers? What a probe that needs no model says, against what models achieve.

Two questions, for each target and pooling. Do J and cross-validated AUC order the layers alike
(Spearman's correlation over layers)? And what does it cost to take the layer of the largest J
instead of the one the sweep finds? For the second, both are judged on the rows of a fold that they
did not choose by: J is of the other rows, and the sweep chooses by the AUC of the other folds' rows
(of regressions that were trained on this fold's too).
"""

from typing import Any

import numpy as np

from routerjax.probes.table import DEFAULT, RIDGE
from routerjax.stats.bootstrap import reverse_percentile
from routerjax.stats.intervals import mean_interval
from routerjax.sweeps.table import SweepTable

# What is judged, and by what.
PROBES = {"fisher": "J", "ridge": "J by ridge", "d_eff": "d_eff"}
AUCS = {"auc": "AUC", "within_auc": "AUC within datasets"}

_FEWEST_LAYERS = 3
# Names of the point values in `cells` and `draws`.
_CELL = {"auc": "cv_auc", "within_auc": "within_auc"}


def find_evidence(table: SweepTable, *, named: bool = True) -> dict[str, Any]:
    """Spearman correlations and AUC lost, by probe, kind of AUC, pooling and target.

    Both are of the widest PCA that every cell has but those of constant states.

    Args:
      table: Of the sweep, without evidence yet.
      named: Whether the rows name their datasets; without names nothing is within datasets.

    Returns:
      {"pca_dim", "spearman": rows, "lost": rows}. A row has "probe", "auc", "pooling" and "target"
      (None for the mean over targets), "value" (None where it does not exist, with a "reason"), and
      "low" and "high": of correlations by the bootstrap over groups, of AUC lost by Student's t
      over folds, which knows nothing of folds sharing training rows.
    """
    w, folds, fisher_LPM = _widest(table.cells["cv_auc"]), table.folds, table.fisher[DEFAULT]
    d_eff_LP1 = table.spectrum["d_eff/standardised"][..., None]
    probes = {
        "fisher": fisher_LPM,
        "ridge": table.fisher[RIDGE],
        "d_eff": np.broadcast_to(d_eff_LP1, fisher_LPM.shape),
    }
    fold_probes = {
        "fisher": folds["fisher"],
        "ridge": folds["ridge"],
        "d_eff": np.broadcast_to(folds["d_eff"][..., None], folds["fisher"].shape),
    }
    spearman, lost = [], []
    for probe in PROBES:
        for auc in AUCS:
            value_LPM = table.cells[_CELL[auc]][:, :, w]
            rho_PM = _spearman(probes[probe], value_LPM)
            draws_BPM = _spearman_draws(probe, auc, w, probes[probe], table.draws)
            loss_FPM = _lost(fold_probes[probe], folds[auc][:, :, :, w])
            for j, pooling in enumerate(table.poolings):
                for m in (*range(len(table.targets)), None):
                    key = {"probe": probe, "auc": auc, "pooling": pooling,
                           "target": None if m is None else table.targets[m]}  # fmt: skip
                    if auc == "within_auc" and not named:
                        reason = "the rows do not name their datasets"
                        gap = {"value": None, "low": None, "high": None, "reason": reason}
                        spearman.append(key | gap)
                        lost.append(key | gap)
                        continue
                    spearman.append(key | _correlation(rho_PM[j], draws_BPM, j, m))
                    lost.append(key | _loss(loss_FPM[:, j], m))
    return {"pca_dim": table.pca_dims[w], "spearman": spearman, "lost": lost}


def lines(evidence: dict[str, Any]) -> list[str]:
    """The means over targets in plain words.

    Args:
      evidence: Of `find_evidence`.
    """
    result = []
    means = {
        (row["probe"], row["auc"], row["pooling"], kind): row
        for kind in ("spearman", "lost")
        for row in evidence.get(kind, ())
        if row["target"] is None
    }
    for (probe, auc, pooling, kind), row in means.items():
        if kind == "lost":
            continue
        lost = means[probe, auc, pooling, "lost"]
        result.append(
            f"{PROBES[probe]} against {AUCS[auc]}, {pooling}: Spearman over layers "
            f"{_number(row, '+.2f')}; trusting {PROBES[probe]} costs {_number(lost, '.4f')}"
        )
    return result


def _number(row: dict[str, Any], spec: str) -> str:
    if row["value"] is None:
        return f"unknown ({row['reason']})"
    text = format(row["value"], spec)
    if row["low"] is not None:
        text += f" [{row['low']:{spec}}, {row['high']:{spec}}]"
    return text


def _widest(value_LPWM: np.ndarray) -> int:
    """The widest PCA that as many cells have as any other."""
    count_W = np.isfinite(value_LPWM).sum(axis=(0, 1, 3))
    return int(np.flatnonzero(count_W == count_W.max())[-1])


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation over axis -3 of [..., L, P, M]; layers without both are left out.

    NaN with fewer than three layers, or where one of the two is the same in all.
    """
    both = np.isfinite(a) & np.isfinite(b)
    rank_a, rank_b = (_ranks(np.where(both, x, np.nan)) for x in (a, b))
    n = both.sum(axis=-3)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (n + 1) / 2
        da, db = (np.where(both, x - np.expand_dims(mean, -3), 0.0) for x in (rank_a, rank_b))
        scale = np.sqrt((da**2).sum(axis=-3) * (db**2).sum(axis=-3))
        rho = (da * db).sum(axis=-3) / scale
    return np.where((n >= _FEWEST_LAYERS) & (scale > 0), rho, np.nan)


def _ranks(x: np.ndarray) -> np.ndarray:
    """Midranks over axis -3, from 1 up; comparisons with NaN are false."""
    x = np.moveaxis(x, -3, -1)
    below = (x[..., None, :] < x[..., :, None]).sum(axis=-1)
    equal = (x[..., None, :] == x[..., :, None]).sum(axis=-1)
    return np.moveaxis(below + (equal + 1) / 2, -1, -3)


def _spearman_draws(
    probe: str, auc: str, w: int, value_LPM: np.ndarray, draws: dict[str, np.ndarray]
) -> np.ndarray | None:
    """Replicates [B, P, M]; d_eff takes no outcomes and stays as it is."""
    if _CELL[auc] not in draws:
        return None
    auc_BLPM = draws[_CELL[auc]][:, :, :, w]
    probe_BLPM = draws[probe] if probe in draws else np.broadcast_to(value_LPM, auc_BLPM.shape)
    return _spearman(probe_BLPM, auc_BLPM)


def _correlation(
    rho_M: np.ndarray, draws_BPM: np.ndarray | None, j: int, m: int | None
) -> dict[str, Any]:
    known_M = np.isfinite(rho_M)
    chosen = known_M if m is None else np.arange(len(rho_M)) == m
    if not (known_M & chosen).any():
        text = f"fewer than {_FEWEST_LAYERS} layers have both numbers, or one does not vary"
        return {"value": None, "low": None, "high": None, "reason": text}
    value = rho_M[chosen].mean()
    if draws_BPM is None:
        return {"value": float(value), "low": None, "high": None}
    low, high = _envelope(float(value), draws_BPM[:, j, chosen].mean(axis=1))
    return {"value": float(value), "low": low, "high": high}


def _envelope(value: float, draws_B: np.ndarray) -> tuple[float | None, float | None]:
    """From the lower to the higher of the ends that plain and reverse percentiles give.

    Noise of the draws pulls a correlation towards 0, where the plain percentiles lie; the reverse
    ones shrink to a point where the value is 1 or -1, whatever the draws say. On simulated layers
    neither covers, the two together mostly do.
    """
    ends = reverse_percentile(value, draws_B, smallest=-1, largest=1)
    if np.isnan(ends).any():
        return None, None
    plain = np.nanquantile(draws_B, [0.025, 0.975])
    return float(min(value, ends[0], plain[0])), float(max(value, ends[1], plain[1]))


def _lost(probe_FLPM: np.ndarray, auc_FLPM: np.ndarray) -> np.ndarray:
    """AUC of a fold's rows by the sweep's layer less that by the probe's, [F, P, M].

    The sweep chooses by the mean AUC of the other folds, the probe by the rows of the other folds.
    """
    seen_FLPM = np.isfinite(auc_FLPM)
    filled_FLPM = np.where(seen_FLPM, auc_FLPM, 0.0)
    others_FLPM = filled_FLPM.sum(axis=0) - filled_FLPM
    n_FLPM = seen_FLPM.sum(axis=0) - seen_FLPM
    with np.errstate(invalid="ignore", divide="ignore"):
        others_FLPM = np.where(n_FLPM > 0, others_FLPM / n_FLPM, np.nan)

    def at_best(score_FLPM: np.ndarray) -> np.ndarray:
        score_FLPM = np.where(np.isfinite(score_FLPM) & seen_FLPM, score_FLPM, -np.inf)
        best_F1PM = score_FLPM.argmax(axis=1)[:, None]
        auc_FPM = np.take_along_axis(auc_FLPM, best_F1PM, axis=1)[:, 0]
        return np.where(np.isfinite(score_FLPM).any(axis=1), auc_FPM, np.nan)

    return at_best(others_FLPM) - at_best(probe_FLPM)


def _loss(loss_FM: np.ndarray, m: int | None) -> dict[str, Any]:
    loss_FM = loss_FM if m is None else loss_FM[:, [m]]
    loss_FM = loss_FM[np.isfinite(loss_FM).any(axis=1)]
    seen_FM = np.isfinite(loss_FM)
    loss_F = np.where(seen_FM, loss_FM, 0.0).sum(axis=1) / seen_FM.sum(axis=1)
    if not len(loss_F):
        text = "no fold has both numbers at any layer"
        return {"value": None, "low": None, "high": None, "reason": text}
    if len(loss_F) < 2:
        return {"value": float(loss_F.mean()), "low": None, "high": None}
    value, low, high = mean_interval(loss_F)
    return {"value": value, "low": low, "high": high}
