"""The figures of a comparison: from out-of-fold predictions to values, replicates and frontiers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from routerjax.data import groups as grouping
from routerjax.data.dataset import RoutingDataset
from routerjax.data.groups import numbered
from routerjax.evaluation.breakdown import mean
from routerjax.evaluation.calibration import bin_shares, calibrated_floor
from routerjax.evaluation.frontier import take
from routerjax.routing.policies import Argmax
from routerjax.stats.auc_replicates import AucReplicates, auc_replicates, within_auc_replicates
from routerjax.stats.bootstrap import reverse_percentile
from routerjax.stats.intervals import LEVEL
from routerjax.stats.roc_auc import auc_by_group
from routerjax.studies.predictions import Predictions, ToleranceSweep
from routerjax.studies.published import FIELD, field_figures

METRICS = (
    "mean_auc",
    "mean_within_dataset_auc",
    "headroom_captured",
    "accuracy",
    "cost",
    "aiq",
    "ece",
    *FIELD,
)
# Those that say how well a contestant ranks and chooses where it has seen no such dataset.
LEFT_OUT = ("mean_auc", "mean_within_dataset_auc", "headroom_captured")

# (value [R, K], replicates [B, R, K]) of one metric.
Figure = tuple[np.ndarray, np.ndarray]


class Figures(NamedTuple):
    """What `compare` reports.

    Attributes:
      of: The figure of each of METRICS.
      auc_RKM: [R, K, M] AUC of each target.
      ece_floor: Of each contestant the ECE that perfectly calibrated probabilities would show, mean
        over targets and seeds; None where it estimates none.
      frontier: Of each contestant [T, 4] cost, accuracy, and its interval's ends; None without
        prices.
      singles: (name, cost, accuracy) of each target; empty without prices.
      saving: What stands beside each contestant's `cost_save`; None without prices.
    """

    of: dict[str, Figure]
    auc_RKM: np.ndarray
    ece_floor: list[float | None]
    frontier: list[list[list[float]] | None]
    singles: list[tuple[str, float, float]]
    saving: list[dict[str, float] | None]


def figures_of(
    found: Predictions,
    probabilistic_R: Sequence[bool],
    data: RoutingDataset,
    weight_BN: np.ndarray,
    fold_N: np.ndarray,
) -> Figures:
    """All figures.

    Args:
      found: The predictions.
      probabilistic_R: [R] whether a contestant's numbers are probabilities.
      data: Their outcomes.
      weight_BN: [B, N] of the draws.
      fold_N: [N] the fold in which each row was predicted.
    """
    n_contestants, n_seeds, _, n_targets = found.p_RKNM.shape
    shape = (len(weight_BN), n_contestants, n_seeds)
    correct_NM = np.asarray(data.correct_NM, np.float64)
    of, auc_RKM = auc_figures(found.before_RKNM, probabilistic_R, data, weight_BN)
    of |= choice_figures(found, data, weight_BN)
    of["ece"] = _no_figure(shape)
    ece_floor: list[float | None] = [None] * n_contestants
    for r in np.flatnonzero(probabilistic_R):
        for k in range(n_seeds):
            of["ece"][0][r, k], of["ece"][1][:, r, k] = _ece(
                found.p_RKNM[r, k], correct_NM, weight_BN
            )
        ece_floor[r] = _floor(found.p_RKNM[r], correct_NM)
    complete_N = ~np.isnan(correct_NM).any(axis=1)
    priced = np.isfinite(found.paid_NM).all() and np.isfinite(found.expected_NM).all()
    frontier: list[Any] = [None] * n_contestants
    singles: list[tuple[str, float, float]] = []
    of["aiq"] = _no_figure(shape)
    if priced and complete_N.any():
        at = np.flatnonzero(complete_N)
        judge = ToleranceSweep(found, correct_NM, at, weight_BN)
        for r, k in np.ndindex(n_contestants, n_seeds):
            of["aiq"][0][r, k], of["aiq"][1][:, r, k] = judge.aiq(r, k)
        frontier = [judge.frontier(r) for r in range(n_contestants)]
        singles = [
            (name, float(found.paid_NM[at, m].mean()), float(correct_NM[at, m].mean()))
            for m, name in enumerate(data.targets)
        ]
    saving, field = field_figures(
        found.p_RKNM, probabilistic_R, found.single_RKN, found.expected_NM, found.paid_NM, data,
        fold_N, weight_BN,
    )  # fmt: skip
    return Figures(of | field, auc_RKM, ece_floor, frontier, singles, saving)


def auc_figures(
    score_RKNM: np.ndarray,
    probabilistic_R: Sequence[bool],
    data: RoutingDataset,
    weight_BN: np.ndarray,
) -> tuple[dict[str, Figure], np.ndarray]:
    """AUC over all rows and within datasets.

    Args:
      score_RKNM: [R, K, N, M] probabilities before calibration, out of fold.
      probabilistic_R: As of `figures_of`.
      data: Their outcomes.
      weight_BN: [B, N] of the draws.

    Returns:
      The figures "mean_auc" and "mean_within_dataset_auc", and AUC [R, K, M] of each target.
    """
    n_contestants, n_seeds, n, n_targets = score_RKNM.shape
    shape_RKM = (n_contestants, n_seeds, n_targets)
    score_NQ = np.moveaxis(score_RKNM, 2, 0).reshape(n, -1)
    y_NQ = np.tile(np.asarray(data.correct_NM, np.float64), (1, n_contestants * n_seeds))
    together_N = np.zeros(n, np.int64)  # Rows of all folds are judged as one.
    aucs = auc_replicates(score_NQ, y_NQ, together_N, 1, weight_BN)
    of: dict[str, Figure] = {"mean_auc": _over_targets(aucs, shape_RKM)}
    if data.datasets is None:
        of["mean_within_dataset_auc"] = _no_figure((len(weight_BN), n_contestants, n_seeds))
    else:
        names, dataset_N = numbered(data.datasets)
        within = within_auc_replicates(
            score_NQ, y_NQ, together_N, 1, dataset_N, len(names), weight_BN
        )
        of["mean_within_dataset_auc"] = _over_targets(within, shape_RKM)
    for value_RK, draws_BRK in of.values():
        # A number that only ranks targets has no AUC over queries.
        value_RK[~np.asarray(probabilistic_R)] = np.nan
        draws_BRK[:, ~np.asarray(probabilistic_R)] = np.nan
    return of, aucs.value_Q.reshape(shape_RKM)


def choice_figures(
    found: Predictions, data: RoutingDataset, weight_BN: np.ndarray
) -> dict[str, Figure]:
    """Headroom captured, accuracy and cost of argmax on the rows with all outcomes.

    Args: As of `figures_of`.
    """
    correct_NM = np.asarray(data.correct_NM, np.float64)
    complete_N = ~np.isnan(correct_NM).any(axis=1)
    gain_RKN, room_RKN, right_RKN, paid_RKN = np.zeros((4, *found.single_RKN.shape))
    for r, k in np.ndindex(*found.single_RKN.shape[:2]):
        choice_N = Argmax().choose(found.p_RKNM[r, k], found.expected_NM)
        right_N, paid_N = take(correct_NM, choice_N), take(found.paid_NM, choice_N)
        single_N = take(correct_NM, found.single_RKN[r, k])
        gain_RKN[r, k] = np.where(complete_N, right_N - single_N, 0.0)
        room_RKN[r, k] = np.where(complete_N, correct_NM.max(axis=1) - single_N, 0.0)
        right_RKN[r, k] = np.where(complete_N, right_N, 0.0)
        paid_RKN[r, k] = np.where(complete_N, paid_N, 0.0)
    ones_RKN = np.broadcast_to(complete_N.astype(np.float64), gain_RKN.shape)
    of = {}
    for metric, above, below in (
        ("headroom_captured", gain_RKN, room_RKN),
        ("accuracy", right_RKN, ones_RKN),
        ("cost", paid_RKN, ones_RKN),
    ):
        value_RK = _ratio(above.sum(axis=2), below.sum(axis=2))
        sums = (np.tensordot(weight_BN, a_RKN, axes=(1, 2)) for a_RKN in (above, below))
        of[metric] = value_RK, _ratio(*sums)
    return of


def summary(figure: Figure, r: int, against: int | None = None) -> dict[str, Any] | None:
    """Value, interval and spread over seeds of a contestant's figure, or of its lead over another.

    Args:
      figure: Of one metric.
      r: The contestant.
      against: Another, or None.
    """
    value_RK, draws_BRK = figure
    value_K, draws_BK = value_RK[r], draws_BRK[:, r]
    if against is not None:
        value_K, draws_BK = value_K - value_RK[against], draws_BK - draws_BRK[:, against]
    if not np.isfinite(value_K).all():
        return None
    low, high = reverse_percentile(value_K.mean(), draws_BK.mean(axis=1), LEVEL)
    return {
        "value": float(value_K.mean()),
        "low": float(low),
        "high": float(high),
        "seed_sd": float(value_K.std(ddof=1)) if len(value_K) > 1 else None,
        "by_seed": value_K.tolist(),
    }


def _ece(
    p_NM: np.ndarray, correct_NM: np.ndarray, weight_BN: np.ndarray
) -> tuple[float, np.ndarray]:
    """Mean ECE over targets, and its replicates [B]; bins are those of the rows as they are."""
    weight_BN = np.concatenate([np.ones((1, len(p_NM)), np.float32), weight_BN])
    total_B = np.zeros(len(weight_BN))
    seen_NM = ~np.isnan(correct_NM)
    known_M = np.flatnonzero(seen_NM.any(axis=0))
    for m in known_M:
        at = np.flatnonzero(seen_NM[:, m])
        error_n = p_NM[at, m] - correct_NM[at, m]
        error_nB = (error_n[:, None] * bin_shares(p_NM[at, m])).astype(np.float32)
        weight_Bn = weight_BN[:, at]
        total_B += _ratio(np.abs(weight_Bn @ error_nB).sum(axis=1), weight_Bn.sum(axis=1))
    mean_B = total_B / max(len(known_M), 1)
    return float(mean_B[0]), mean_B[1:]


def _floor(p_KNM: np.ndarray, correct_NM: np.ndarray) -> float:
    floors = []
    for p_NM in p_KNM:
        for p_N, y_N in zip(p_NM.T, correct_NM.T, strict=True):
            if not np.isnan(y_N).all():
                floors.append(calibrated_floor(p_N[~np.isnan(y_N)].astype(np.float64)))
    return float(np.mean(floors))


def _no_figure(shape_BRK: tuple[int, int, int]) -> Figure:
    return np.full(shape_BRK[1:], np.nan), np.full(shape_BRK, np.nan)


def _over_targets(found: AucReplicates, shape_RKM: tuple[int, ...]) -> Figure:
    """Means over the targets that have an AUC in every contestant and seed that has any."""
    value_RKM = found.value_Q.reshape(shape_RKM).astype(np.float64)
    draws_BRKM = found.draws_BQ.reshape(-1, *shape_RKM)
    some_R = np.isfinite(value_RKM).any(axis=(1, 2))
    known_M = np.isfinite(value_RKM[some_R]).all(axis=(0, 1)) if some_R.any() else np.zeros(1, bool)
    if not known_M.any():
        return np.full(shape_RKM[:2], np.nan), np.full(draws_BRKM.shape[:3], np.nan)
    return value_RKM[:, :, known_M].mean(axis=2), draws_BRKM[..., known_M].mean(axis=3)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0)


def per_dataset(
    found: Predictions, r: int, data: RoutingDataset, probabilistic: bool
) -> list[dict[str, Any]]:
    """A contestant's figures on each dataset alone, means over seeds.

    Args:
      found: The out-of-fold predictions.
      r: The contestant.
      data: Their outcomes.
      probabilistic: Whether its numbers are probabilities.

    Returns:
      A dict for each dataset, by name: `dataset`, `n`, `n_complete` (rows with all outcomes, on
      which the accuracies are), `accuracy` of argmax, `best_single_accuracy`, `oracle_accuracy`,
      and `mean_auc` over the targets that have one.
    """
    assert data.datasets is not None
    names, dataset_N = grouping.numbered(data.datasets)
    correct_NM = np.asarray(data.correct_NM, np.float64)
    complete_N = ~np.isnan(correct_NM).any(axis=1)
    n_seeds = found.p_RKNM.shape[1]
    right_KN = np.stack([
        take(correct_NM, Argmax().choose(found.p_RKNM[r, k], found.expected_NM))
        for k in range(n_seeds)
    ])  # fmt: skip
    single_KN = np.stack([take(correct_NM, found.single_RKN[r, k]) for k in range(n_seeds)])
    auc_KMD = np.stack([
        auc_by_group(found.before_RKNM[r, k], correct_NM, dataset_N, len(names))
        for k in range(n_seeds)
    ])  # fmt: skip
    table = []
    for d, name in enumerate(names):
        at = (dataset_N == d) & complete_N
        auc_k = auc_KMD[:, :, d]
        table.append(
            {
                "dataset": name,
                "n": int((dataset_N == d).sum()),
                "n_complete": int(at.sum()),
                "accuracy": mean(right_KN[:, at]),
                "best_single_accuracy": mean(single_KN[:, at]),
                "oracle_accuracy": mean(correct_NM[at].max(axis=1, initial=0.0)),
                "mean_auc": mean(auc_k[~np.isnan(auc_k)]) if probabilistic else None,
            }
        )
    return table
