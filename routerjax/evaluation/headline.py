"""The headline numbers: AUC, accuracy, headroom captured, and what the best router could reach.

Arguments: p_NM [N, M] predicted P(correct); correct_NM [N, M] 1 or 0, in `discrimination` and
`observed_accuracy` also NaN; choice_N [N] the router's targets; single, the index of the target
that was best on training rows; targets [M] and datasets [N] names.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.evaluation.breakdown import mean, number
from routerjax.evaluation.published import ratio
from routerjax.routing.policy_rows import take
from routerjax.stats.bootstrap import reverse_percentile, weighted_means
from routerjax.stats.intervals import LEVEL
from routerjax.stats.roc_auc import auc_per_target, within_dataset_auc

NO_COMPLETE_ROW = "no query has an outcome of every target, so nothing can be compared"


def discrimination(
    p_NM: np.ndarray, correct_NM: np.ndarray, datasets: Sequence[str] | None, targets: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """AUC of each target, overall and within datasets, and their means over the targets with one.

    Every observed row of a target counts.

    Returns:
      The metrics, and the reason for each that is None.
    """
    reasons: dict[str, str] = {}
    auc_M = auc_per_target(p_NM, correct_NM)
    for m in np.flatnonzero(np.isnan(auc_M)).tolist():
        reasons[f"auc/{targets[m]}"] = "its observed outcomes are all of one class"
    metrics: dict[str, Any] = {
        "auc": {t: number(auc) for t, auc in zip(targets, auc_M, strict=True)},
        "mean_auc": mean(auc_M[~np.isnan(auc_M)]),
        "within_dataset_auc": None,
        "mean_within_dataset_auc": None,
        "within_dataset_left_out": None,
        "n_datasets": None,
    }
    if metrics["mean_auc"] is None:
        reasons["mean_auc"] = "no target has an AUC"
    within = within_dataset_auc(p_NM, correct_NM, datasets)
    if within is None or datasets is None:
        names = [name for name, value in metrics.items() if value is None and name != "mean_auc"]
        return metrics, reasons | dict.fromkeys(names, "the data name no datasets")
    for m in np.flatnonzero(np.isnan(within.auc_M)).tolist():
        reasons[f"within_dataset_auc/{targets[m]}"] = (
            "no dataset has five observed rows of either class"
        )
    metrics |= {
        "within_dataset_auc": {t: number(v) for t, v in zip(targets, within.auc_M, strict=True)},
        "mean_within_dataset_auc": mean(within.auc_M[~np.isnan(within.auc_M)]),
        "within_dataset_left_out": dict(zip(targets, within.left_out_M.tolist(), strict=True)),
        "n_datasets": len(set(datasets)),
    }
    if metrics["mean_within_dataset_auc"] is None:
        reasons["mean_within_dataset_auc"] = "no target has an AUC within datasets"
    return metrics, reasons


def observed_accuracy(
    correct_NM: np.ndarray, choice_N: np.ndarray, targets: Sequence[str]
) -> dict[str, Any]:
    """Accuracies on all observed rows: each on rows of its own, so not to be compared."""
    seen_NM = ~np.isnan(correct_NM)
    routed_N = take(correct_NM, choice_N)
    return {
        "accuracy_observed": {t: mean(correct_NM[seen_NM[:, m], m]) for m, t in enumerate(targets)},
        "n_observed": dict(zip(targets, seen_NM.sum(axis=0).tolist(), strict=True)),
        "router_accuracy_observed": mean(routed_N[~np.isnan(routed_N)]),
        "n_router_observed": int((~np.isnan(routed_N)).sum()),
    }


def accuracy(
    correct_NM: np.ndarray,
    score_NM: np.ndarray,
    choice_N: np.ndarray,
    single: int,
    targets: Sequence[str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Router, single targets and oracle on the same rows, by correctness and by raw score.

    Args:
      score_NM: [N, M] in [0, 1], nothing missing.
      correct_NM, choice_N, single, targets: As above.

    Returns:
      The metrics, and the reason for each that is None.
    """
    reasons: dict[str, str] = {}
    metrics: dict[str, Any] = {"best_single": targets[single]}
    # Without rows this is the first target, but all its means are None then.
    hindsight = int(correct_NM.sum(axis=0).argmax())
    metrics["best_single_in_hindsight"] = targets[hindsight] if len(correct_NM) else None
    metrics["scores_are_fractional"] = bool(((score_NM > 0) & (score_NM < 1)).any())
    if not len(correct_NM):
        names = ("accuracy", "score", "best_single_in_hindsight")
        reasons |= dict.fromkeys(names, NO_COMPLETE_ROW)
    for scale, suffix, value_NM in (("accuracy", "", correct_NM), ("score", "_score", score_NM)):
        router, oracle = mean(take(value_NM, choice_N)), mean(value_NM.max(axis=1, initial=0.0))
        best, best_after = mean(value_NM[:, single]), mean(value_NM[:, hindsight])
        result = {
            f"router_{scale}": router,
            f"best_single_{scale}": best,
            f"best_single_in_hindsight_{scale}": best_after,
            f"oracle_{scale}": oracle,
            f"headroom_captured{suffix}": headroom_captured(router, best, oracle),
            f"headroom_captured_in_hindsight{suffix}": headroom_captured(
                router, best_after, oracle
            ),
        }
        # With rows only headroom can be missing.
        why = NO_COMPLETE_ROW if router is None else "there is none: that target equals the oracle"
        reasons |= {name: why for name, value in result.items() if value is None}
        metrics |= {scale: {t: mean(value_NM[:, m]) for m, t in enumerate(targets)}} | result
    return metrics, reasons


def headroom_captured(
    router: float | None, best_single: float | None, oracle: float | None
) -> float | None:
    """(router - best single) / (oracle - best single); None where there is nothing to capture."""
    if router is None or best_single is None or oracle is None or oracle - best_single < 1e-12:
        return None
    return (router - best_single) / (oracle - best_single)


def best_possible(
    true_p_NM: np.ndarray, correct_NM: np.ndarray, single: int, datasets: Sequence[str] | None
) -> dict[str, float | None]:
    """What a router reaches that knows the true P(correct) and takes the largest.

    No router does better in expectation; on the rows at hand it may, by luck. `true_p_NM` [N, M]
    are the probabilities that the outcomes were drawn from.
    """
    names = [str(m) for m in range(true_p_NM.shape[1])]
    result, _ = discrimination(true_p_NM, correct_NM, datasets, names)
    router = mean(take(correct_NM, true_p_NM.argmax(axis=1)))
    oracle = mean(correct_NM.max(axis=1, initial=0.0))
    return {
        "router_accuracy": router,
        "headroom_captured": headroom_captured(router, mean(correct_NM[:, single]), oracle),
        "mean_auc": result["mean_auc"],
        "mean_within_dataset_auc": result["mean_within_dataset_auc"],
    }


def intervals(
    correct_NM: np.ndarray,
    choice_N: np.ndarray,
    single: int,
    weight_BN: np.ndarray,
    cost_NM: np.ndarray | None,
) -> dict[str, Any]:
    """95% intervals of the headline numbers, over draws of whole groups of queries.

    They say how far other queries of the same kind would move the numbers, as reverse percentiles
    of the bootstrap that the published metrics and `compare` have as well. Another training seed
    moves them too, which no interval here covers.

    Args:
      correct_NM, choice_N, single: As above.
      weight_BN: [1 + B, N] of `value_and_draws`.
      cost_NM: [N, M] USD per query; None where unknown.

    Returns:
      By name [low, high]; None where there is no interval, such as of a single group.
    """
    columns = [take(correct_NM, choice_N), correct_NM[:, single], correct_NM.max(axis=1, initial=0)]
    if cost_NM is not None and len(cost_NM):
        columns += [take(cost_NM, choice_N), cost_NM[:, cost_NM.mean(axis=0).argmax()]]
    router_B, single_B, oracle_B, *costs = weighted_means(weight_BN, np.stack(columns, axis=1)).T
    replicates = {
        "router_accuracy": router_B,
        "best_single_accuracy": single_B,
        "oracle_accuracy": oracle_B,
        "router_minus_best_single": router_B - single_B,
        "headroom_captured": ratio(router_B - single_B, oracle_B - single_B),
    }
    if costs:
        replicates["cost_saving_vs_most_expensive"] = 1 - ratio(*costs)
    result: dict[str, Any] = {"level": LEVEL} | dict.fromkeys(replicates)
    if (weight_BN == weight_BN[:, :1]).all():  # One group tells nothing of others.
        return result
    for name, value_B in replicates.items():
        ends = [number(end) for end in reverse_percentile(value_B[0], value_B[1:])]
        result[name] = None if None in ends else ends
    return result
