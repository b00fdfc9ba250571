"""The estimates of a comparison: values and replicates of out-of-fold predictions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from routerjax.evaluation import breakdown
from routerjax.evaluation.calibration import bin_shares, calibrated_floor
from routerjax.evaluation.estimated import Estimated
from routerjax.evaluation.frontier import at_choices, tolerance_choices, utility_choices
from routerjax.evaluation.metrics import TOLERANCES
from routerjax.evaluation.published import ratio
from routerjax.evaluation.published_report import SAVINGS, published_replicates
from routerjax.routing.constrained import Quality, Unreachable, confident_saving
from routerjax.routing.judged import Judged
from routerjax.routing.policies import Argmax
from routerjax.routing.policy_rows import take
from routerjax.stats.auc_replicates import AucReplicates, auc_replicates, within_auc_replicates
from routerjax.stats.bootstrap import reverse_percentile, weighted_means
from routerjax.stats.intervals import LEVEL
from routerjax.studies.fits import Predictions

_PUBLISHED = (
    "avg_acc",
    "gain_at_best",
    "gap_at_oracle",
    "perf_gain",
    "cost_save",
    "cost_save_confident",
    "pareto_dist",
    "router_arena_score",
    "apgr",
    "cpt_50",
    "cpt_80",
)
METRICS = (
    "mean_auc",
    "mean_within_dataset_auc",
    "headroom_captured",
    "accuracy",
    "cost",
    "aiq",
    "ece",
    *_PUBLISHED,
)
# Metrics of how well a contestant ranks and chooses on datasets that it was not trained on.
LEFT_OUT = (
    "mean_auc",
    "mean_auc_less_base_rate",
    "mean_within_dataset_auc",
    "headroom_captured",
)

# [1 + B, R, K] one metric: its value, then its replicates.
Estimate = np.ndarray


class Estimates(NamedTuple):
    """What `compare` reports.

    Attributes:
      of: The estimate of each of METRICS.
      auc_RKM: [R, K, M] AUC of each target.
      ece_floor: Of each contestant the ECE that perfectly calibrated probabilities would show, mean
        over targets and seeds; None where it estimates no probabilities.
      frontier: Of each contestant [T, 4] cost, accuracy and the ends of its interval, means over
        seeds, at the settings TOLERANCES of the tolerance policy; None without prices.
      value_frontier: The same at the settings LAMS of the utility policy, or of value.
      singles: (name, cost, accuracy) of each target; empty without prices.
      saving: By name of SAVINGS, the accuracies beside each contestant's, means over seeds; empty
        without prices.
    """

    of: dict[str, Estimate]
    auc_RKM: np.ndarray
    ece_floor: list[float | None]
    frontier: list[list[list[float]] | None]
    value_frontier: list[list[list[float]] | None]
    singles: list[tuple[str, float, float]]
    saving: list[dict[str, dict[str, float]]]


def estimates_of(
    predictions: Predictions,
    probabilistic_R: Sequence[bool],
    weight_BN: np.ndarray,
    fold_N: np.ndarray,
) -> Estimates:
    """All estimates.

    Args:
      predictions: Out of fold, with the outcomes and costs they are judged by.
      probabilistic_R: [R] whether a contestant's numbers are probabilities.
      weight_BN: [1 + B, N] of `value_and_draws`.
      fold_N: [N] the fold in which each row was predicted.
    """
    rows, outcomes = predictions.rows, predictions.outcomes
    shape = (len(weight_BN), *predictions.single_RKN.shape[:2])
    of, auc_RKM = auc_estimates(predictions.before_RKNM, probabilistic_R, rows, weight_BN)
    of |= choice_estimates(predictions, weight_BN)
    of |= {name: np.full(shape, np.nan) for name in METRICS if name not in of}
    ece_floor: list[float | None] = [None] * shape[1]
    for r in np.flatnonzero(probabilistic_R).tolist():
        for k in range(shape[2]):
            of["ece"][:, r, k] = _ece(predictions.p_RKNM[r, k], rows.correct_NM, weight_BN)
        ece_floor[r] = _floor(predictions.p_RKNM[r], rows.correct_NM)
    frontier: list[Any] = [None] * shape[1]
    value_frontier: list[Any] = [None] * shape[1]
    saving: list[dict[str, dict[str, float]]] = [{} for _ in range(shape[1])]
    singles: list[tuple[str, float, float]] = []
    if not outcomes.known_M.any():
        return Estimates(of, auc_RKM, ece_floor, frontier, value_frontier, singles, saving)
    paid_NM, expected_NM = _costs(rows)
    priced = bool(np.isfinite(paid_NM).all() and np.isfinite(expected_NM).all())
    missing = not outcomes.seen_NM.all()
    for r in range(shape[1]):
        if missing and predictions.hindsight_R[r]:
            continue
        points_KNT2, beside_K = [], []
        for k in range(shape[2]):
            p_NM = np.asarray(predictions.p_RKNM[r, k], np.float64)
            single_N = predictions.single_RKN[r, k]
            savings: dict[str, np.ndarray] = {}
            if priced:
                choice_TN = np.concatenate([
                    tolerance_choices(p_NM, expected_NM, TOLERANCES, rows.allowed_NM),
                    utility_choices(p_NM, expected_NM, rows.allowed_NM),
                ])  # fmt: skip
                points_KNT2.append(at_choices(choice_TN, paid_NM, outcomes.value_NM))
                if probabilistic_R[r]:
                    savings = _saving_choices(p_NM, rows, outcomes, single_N, fold_N)
            values, beside = published_replicates(
                p_NM, outcomes, Argmax().choose(p_NM, expected_NM, rows.allowed_NM), single_N,
                weight_BN, datasets=rows.data.datasets,
                cost_NM=paid_NM if priced else None,
                expected_cost_NM=expected_NM if priced else None,
                allowed_NM=rows.allowed_NM,
                saving_choices=savings,
            )  # fmt: skip
            for name in of.keys() & values.keys():
                of[name][:, r, k] = values[name]
            beside_K.append(beside)
        saving[r] = {
            name: {
                key: float(np.mean([beside[name][key] for beside in beside_K])) for key in numbers
            }
            for name, numbers in beside_K[0].items()
        }
        if priced:
            points_BT2 = weighted_means(weight_BN, np.mean(points_KNT2, axis=0))
            ends = reverse_percentile(points_BT2[0, :, 1], points_BT2[1:, :, 1], LEVEL)
            points = np.column_stack([points_BT2[0], *ends]).tolist()
            frontier[r], value_frontier[r] = points[: len(TOLERANCES)], points[len(TOLERANCES) :]
    if priced:
        of_M = zip(
            rows.data.targets, paid_NM.mean(axis=0).tolist(),
            outcomes.value_NM.mean(axis=0).tolist(), outcomes.known_M, strict=True,
        )  # fmt: skip
        singles = [(target, cost, accuracy) for target, cost, accuracy, known in of_M if known]
    return Estimates(of, auc_RKM, ece_floor, frontier, value_frontier, singles, saving)


def _saving_choices(
    p_NM: np.ndarray, rows: Judged, outcomes: Estimated, single_N: np.ndarray, fold_N: np.ndarray
) -> dict[str, np.ndarray]:
    """By name of SAVINGS, [N] the targets at each fold's saving setting.

    That is the `Quality` policy that is as accurate as the best single target on the out-of-fold
    rows of the other folds, and the one that they show to be; where none is, the best single target
    answers and nothing is saved.
    """
    bold_N, confident_N, keys = single_N.copy(), single_N.copy(), rows.data.queries
    (paid_NM, expected_NM), allowed_NM = _costs(rows), rows.allowed_NM
    allowed_NM = np.ones(p_NM.shape, bool) if allowed_NM is None else allowed_NM
    for f in np.unique(fold_N):
        test_N, other_N = fold_N == f, fold_N != f
        if not other_N.any():
            continue
        wanted = take(outcomes.value_NM[other_N], single_N[other_N]).mean().clip(0, 1)
        try:
            bold = Quality(float(wanted)).fit(
                p_NM[other_N], expected_NM[other_N], outcomes.y_NM[other_N], paid_NM[other_N],
                allowed_NM[other_N],
            )  # fmt: skip
        except Unreachable:  # No setting is as accurate.
            bold = None
        groups = [group for group, other in zip(rows.data.groups, other_N, strict=True) if other]
        confident = confident_saving(
            p_NM[other_N], expected_NM[other_N], outcomes.y_NM[other_N], single_N[other_N],
            groups, allowed_NM[other_N],
        )  # fmt: skip
        test_keys = [key for key, test in zip(keys, test_N, strict=True) if test]
        for policy, choice_N in ((bold, bold_N), (confident, confident_N)):
            if policy is not None:
                choice_N[test_N] = policy.choose(
                    p_NM[test_N], expected_NM[test_N], allowed_NM[test_N], test_keys
                )
    return dict(zip(SAVINGS, (bold_N, confident_N), strict=True))


def auc_estimates(
    score_RKNM: np.ndarray, probabilistic_R: Sequence[bool], rows: Judged, weight_BN: np.ndarray
) -> tuple[dict[str, Estimate], np.ndarray]:
    """AUC over all rows and within datasets.

    Args:
      score_RKNM: [R, K, N, M] probabilities before calibration, out of fold.
      probabilistic_R: As in `estimates_of`.
      rows: Their outcomes.
      weight_BN: [1 + B, N] of `value_and_draws`.

    Returns:
      The estimates "mean_auc" and "mean_within_dataset_auc", and AUC [R, K, M] of each target.
    """
    n_contestants, n_seeds, n, n_targets = score_RKNM.shape
    shape_RKM = (n_contestants, n_seeds, n_targets)
    score_NQ = np.moveaxis(score_RKNM, 2, 0).reshape(n, -1)
    y_NQ = np.tile(rows.correct_NM, (1, n_contestants * n_seeds))
    together_N = np.zeros(n, np.int64)  # Rows of all folds are judged as one.
    aucs = auc_replicates(score_NQ, y_NQ, together_N, 1, weight_BN[1:])
    of: dict[str, Estimate] = {"mean_auc": _over_targets(aucs, shape_RKM)}
    if rows.by_dataset is None:
        of["mean_within_dataset_auc"] = np.full_like(of["mean_auc"], np.nan)
    else:
        names, dataset_N = rows.by_dataset
        within = within_auc_replicates(
            score_NQ, y_NQ, together_N, 1, dataset_N, len(names), weight_BN[1:]
        )
        of["mean_within_dataset_auc"] = _over_targets(within, shape_RKM)
    for estimate_BRK in of.values():
        # A score that only ranks targets has no AUC over queries.
        estimate_BRK[:, ~np.asarray(probabilistic_R)] = np.nan
    return of, aucs.value_Q.reshape(shape_RKM)


def choice_estimates(predictions: Predictions, weight_BN: np.ndarray) -> dict[str, Estimate]:
    """Headroom captured, accuracy and cost of argmax.

    Args: As in `estimates_of`.
    """
    rows, outcomes = predictions.rows, predictions.outcomes
    shape = predictions.single_RKN.shape[:2]
    paid_NM, expected_NM = _costs(rows)
    values_NRK4 = np.zeros((len(rows.data), *shape, 4))
    choices_RK2N = np.zeros((*shape, 2, len(rows.data)), np.int64)
    known_RK = np.zeros(shape, bool)
    for r, k in np.ndindex(*shape):
        choice_N = Argmax().choose(predictions.p_RKNM[r, k], expected_NM, rows.allowed_NM)
        single_N = predictions.single_RKN[r, k]
        choices_RK2N[r, k] = choice_N, single_N
        known_RK[r, k] = outcomes.n_of(choice_N) > 0 and outcomes.n_of(single_N) > 0
        right_N, best_N = (take(outcomes.value_NM, c_N) for c_N in (choice_N, single_N))
        if predictions.hindsight_R[r]:  # Values estimate choices that were made without outcomes.
            right_N = outcomes.oracle_N
        values_NRK4[:, r, k] = np.stack(
            [right_N - best_N, outcomes.oracle_N - best_N, right_N, take(paid_NM, choice_N)], axis=1
        )
    mean_BRK4 = weighted_means(weight_BN, values_NRK4)
    noise_BQ = outcomes.noise(choices_RK2N.reshape(-1, len(rows.data)), len(weight_BN) - 1)
    right_BRK, best_BRK = np.moveaxis(noise_BQ[:, :-1].reshape(-1, *shape, 2), -1, 0)
    right_BRK[:, np.asarray(predictions.hindsight_R, bool)] = noise_BQ[:, -1, None, None]
    mean_BRK4[..., 0] += right_BRK - best_BRK
    mean_BRK4[..., 1] += noise_BQ[:, -1, None, None] - best_BRK
    mean_BRK4[..., 2] += right_BRK
    mean_BRK4[:, ~known_RK, :3] = np.nan
    gain, headroom, accuracy, cost = np.moveaxis(mean_BRK4, -1, 0)
    return {"headroom_captured": ratio(gain, headroom), "accuracy": accuracy, "cost": cost}


def known_choices(predictions: Predictions) -> list[int]:
    """[R] on how many queries the outcome of argmax is observed, the least over seeds.

    Empty where nothing is missing.
    """
    rows, outcomes = predictions.rows, predictions.outcomes
    if outcomes.seen_NM.all():
        return []
    return [
        min(
            outcomes.n_of(Argmax().choose(p_NM, rows.expected_NM, rows.allowed_NM))
            for p_NM in p_KNM
        )
        for p_KNM in predictions.p_RKNM
    ]


def _costs(rows: Judged) -> np.ndarray:
    """[2, N, M] USD paid and expected; NaN without prices."""
    if rows.paid_NM is None or rows.expected_NM is None:
        return np.full((2, *rows.correct_NM.shape), np.nan)
    return np.stack([rows.paid_NM, rows.expected_NM])


def summary(estimate_BRK: Estimate, r: int, against: int | None = None) -> dict[str, Any] | None:
    """Value, interval and spread over seeds of contestant r, or of its lead over `against`."""
    estimate_BK = estimate_BRK[:, r]
    if against is not None:
        estimate_BK = estimate_BK - estimate_BRK[:, against]
    value_K = estimate_BK[0]
    if not np.isfinite(value_K).all():
        return None
    low, high = reverse_percentile(value_K.mean(), estimate_BK[1:].mean(axis=1), LEVEL)
    return {
        "value": float(value_K.mean()),
        "low": float(low),
        "high": float(high),
        "seed_sd": float(value_K.std(ddof=1)) if len(value_K) > 1 else None,
        "by_seed": value_K.tolist(),
    }


def _ece(p_NM: np.ndarray, correct_NM: np.ndarray, weight_BN: np.ndarray) -> np.ndarray:
    """[1 + B] mean ECE over targets; all replicates have the bins of the rows themselves."""
    total_B = np.zeros(len(weight_BN))
    seen_NM = ~np.isnan(correct_NM)
    known_M = np.flatnonzero(seen_NM.any(axis=0))
    for m in known_M:
        at = np.flatnonzero(seen_NM[:, m])
        error_n = p_NM[at, m] - correct_NM[at, m]
        error_nB = (error_n[:, None] * bin_shares(p_NM[at, m])).astype(np.float32)
        weight_Bn = weight_BN[:, at]
        total_B += ratio(np.abs(weight_Bn @ error_nB).sum(axis=1), weight_Bn.sum(axis=1))
    return total_B / max(len(known_M), 1)


def _floor(p_KNM: np.ndarray, correct_NM: np.ndarray) -> float:
    floors = []
    for p_NM in p_KNM:
        for p_N, y_N in zip(p_NM.T, correct_NM.T, strict=True):
            if not np.isnan(y_N).all():
                floors.append(calibrated_floor(p_N[~np.isnan(y_N)].astype(np.float64)))
    return float(np.mean(floors))


def _over_targets(aucs: AucReplicates, shape_RKM: tuple[int, ...]) -> Estimate:
    """Means over the targets whose AUC exists for all contestants and seeds that have any AUC."""
    value_RKM = aucs.value_Q.reshape(shape_RKM).astype(np.float64)
    draws_BRKM = aucs.draws_BQ.reshape(-1, *shape_RKM)
    some_R = np.isfinite(value_RKM).any(axis=(1, 2))
    known_M = np.isfinite(value_RKM[some_R]).all(axis=(0, 1)) if some_R.any() else np.zeros(1, bool)
    if not known_M.any():
        return np.full((1 + len(draws_BRKM), *shape_RKM[:2]), np.nan)
    value_RK = value_RKM[..., known_M].mean(axis=2)
    return np.concatenate([value_RK[None], draws_BRKM[..., known_M].mean(axis=3)])


def per_dataset(predictions: Predictions, r: int, probabilistic: bool) -> list[dict[str, Any]]:
    """A contestant's estimates on each dataset alone, means over seeds.

    Args:
      predictions: Out of fold.
      r: The contestant.
      probabilistic: Whether its numbers are probabilities.

    Returns:
      A dict for each dataset, by name: `dataset`, `n`, `n_complete` (rows with all outcomes),
      `accuracy` of argmax, `best_single_accuracy`, `oracle_accuracy`, and `mean_auc` over the
      targets that have one.
    """
    judged = predictions.rows
    tables = [
        breakdown.per_dataset(
            predictions.before_RKNM[r, k],
            judged,
            predictions.outcomes,
            Argmax().choose(predictions.p_RKNM[r, k], judged.expected_NM, judged.allowed_NM),
            predictions.single_RKN[r, k],
        )
        for k in range(predictions.p_RKNM.shape[1])
    ]

    if predictions.hindsight_R[r]:
        for row in (row for table in tables for row in table):
            row["router_accuracy"] = row["oracle_accuracy"]

    def over_seeds(rows: Sequence[dict[str, Any]], name: str) -> float | None:
        values = [row[name] for row in rows if row[name] is not None]
        return float(np.mean(values)) if values else None

    return [
        {name: rows[0][name] for name in ("dataset", "n", "n_complete")}
        | {
            "accuracy": over_seeds(rows, "router_accuracy"),
            "best_single_accuracy": over_seeds(rows, "best_single_accuracy"),
            "oracle_accuracy": over_seeds(rows, "oracle_accuracy"),
            "mean_auc": over_seeds(rows, "mean_auc") if probabilistic else None,
        }
        for rows in zip(*tables, strict=True)
    ]
