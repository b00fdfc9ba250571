"""The headline numbers: AUC, accuracy, headroom captured, and what the best router could reach.

Arguments: p_NM [N, M] predicted P(correct); correct_NM [N, M] 1, 0 or NaN; outcomes, the same with
what stands for those not observed; choice_N [N] the router's targets; single, the index of the
target that was best on training rows; targets [M] and datasets [N] names.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.evaluation.breakdown import mean, number
from routerjax.evaluation.estimated import Estimated
from routerjax.evaluation.published import ratio
from routerjax.evaluation.savings import dearest
from routerjax.routing.policy_rows import take
from routerjax.stats.bootstrap import reverse_percentile, weighted_means
from routerjax.stats.intervals import LEVEL, share_interval
from routerjax.stats.roc_auc import auc_per_target, within_dataset_auc

NO_OUTCOME = "no outcome is observed, so nothing can be compared"
NO_OUTCOME_OF = {
    "router": "no chosen target's outcome is observed",
    "best_single": "no outcome of that target is observed",
    "oracle": NO_OUTCOME,
}


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
    correct: Estimated, score: Estimated, choice_N: np.ndarray, single: int, targets: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Router, single targets and oracle on the same rows, by correctness and by raw score.

    Args:
      correct: Outcomes of 1 or 0.
      score: The same in [0, 1].
      choice_N, single, targets: As above.

    Returns:
      The metrics, and the reason for each that is None. Where outcomes are missing, `n_known` says
      on how many queries the outcome of each accuracy is known.
    """
    reasons: dict[str, str] = {}
    metrics: dict[str, Any] = {"best_single": targets[single]}
    hindsight = correct.best_single()
    metrics["best_single_in_hindsight"] = targets[hindsight] if correct.known_M.any() else None
    if not correct.known_M.any():
        reasons |= dict.fromkeys(("accuracy", "score", "best_single_in_hindsight"), NO_OUTCOME)
    score_NM = score.y_NM
    metrics["scores_are_fractional"] = bool(((score_NM > 0) & (score_NM < 1)).any())
    for scale, suffix, outcomes in (("accuracy", "", correct), ("score", "_score", score)):
        router, oracle = outcomes.mean_of(choice_N), outcomes.mean_of_oracle()
        best, best_after = outcomes.mean_of_target(single), outcomes.mean_of_target(hindsight)
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
        reasons |= {
            f"{who}_{scale}": NO_OUTCOME_OF.get(who, NO_OUTCOME)
            for who in ("router", "best_single", "best_single_in_hindsight", "oracle")
            if result[f"{who}_{scale}"] is None
        }
        for name, start in (("", best), ("_in_hindsight", best_after)):
            if result[f"headroom_captured{name}{suffix}"] is None:
                why = "there is none: that target equals the oracle"
                if router is None or start is None:
                    why = NO_OUTCOME_OF["router" if router is None else "best_single"]
                reasons[f"headroom_captured{name}{suffix}"] = why
        mean_M = [outcomes.mean_of_target(m) for m in range(len(targets))]
        metrics |= {scale: dict(zip(targets, mean_M, strict=True))} | result
    if not correct.seen_NM.all():
        n_M = correct.seen_NM.sum(axis=0)
        metrics["n_known"] = {
            "router": correct.n_of(choice_N),
            "best_single": int(n_M[single]),
            "best_single_in_hindsight": int(n_M[hindsight]),
            "oracle": correct.n_oracle,
        }
    return metrics, reasons


def headroom_captured(
    router: float | None, best_single: float | None, oracle: float | None
) -> float | None:
    """(router - best single) / (oracle - best single); None where there is nothing to capture."""
    if router is None or best_single is None or oracle is None or oracle - best_single < 1e-12:
        return None
    return (router - best_single) / (oracle - best_single)


def best_possible(
    true_p_NM: np.ndarray, outcomes: Estimated, single: int
) -> dict[str, float | None]:
    """What a router reaches that knows the true P(correct) and takes the largest.

    No router does better in expectation; on the rows at hand it may, by luck. `true_p_NM` [N, M]
    are the probabilities that the outcomes were drawn from.
    """
    names = [str(m) for m in range(true_p_NM.shape[1])]
    result, _ = discrimination(true_p_NM, outcomes.y_NM, outcomes.datasets, names)
    router = outcomes.mean_of(true_p_NM.argmax(axis=1))
    best, oracle = outcomes.mean_of_target(single), outcomes.mean_of_oracle()
    return {
        "router_accuracy": router,
        "headroom_captured": headroom_captured(router, best, oracle),
        "mean_auc": result["mean_auc"],
        "mean_within_dataset_auc": result["mean_within_dataset_auc"],
    }


def intervals(
    outcomes: Estimated,
    choice_N: np.ndarray,
    single: int,
    weight_BN: np.ndarray,
    cost_NM: np.ndarray | None,
    groups: Sequence[str],
) -> dict[str, Any]:
    """95% intervals of the headline numbers, over draws of whole groups of queries.

    They say how far other queries of the same kind would move the numbers, as reverse percentiles
    of the bootstrap that the published metrics and `compare` have as well. Another training seed
    moves them too, which no interval here covers. An accuracy of 0 or 1, which all draws have in
    common, has the interval of a share instead (`share_interval`).

    Args:
      outcomes, choice_N, single: As above.
      weight_BN: [1 + B, N] of `value_and_draws`.
      cost_NM: [N, M] USD per query; None where unknown.
      groups: [N] those that the weights are of.

    Returns:
      By name [low, high]; None where there is no interval, such as of a single group.
    """
    value_NM, single_N = outcomes.value_NM, np.full(len(choice_N), single)
    columns = [take(value_NM, choice_N), value_NM[:, single], outcomes.oracle_N]
    if cost_NM is not None:
        columns += [take(cost_NM, choice_N), cost_NM[:, dearest(cost_NM, outcomes)]]
    mean_BQ = weighted_means(weight_BN, np.stack(columns, axis=1))
    mean_BQ[:, :3] += outcomes.noise(np.stack([choice_N, single_N]), len(weight_BN) - 1)
    router_B, single_B, oracle_B, *costs = mean_BQ.T
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
    known = {
        "router": outcomes.n_of(choice_N) > 0,
        "best_single": bool(outcomes.known_M[single]),
        "oracle": bool(outcomes.known_M.any()),
    }
    known["headroom"] = all(known.values())
    all_seen = bool(outcomes.seen_NM.all())
    for q, (name, value_B) in enumerate(replicates.items()):
        if not all(is_known for who, is_known in known.items() if who in name):
            continue
        if name.endswith("accuracy") and all_seen and np.ptp(columns[q]) == 0:
            result[name] = list(share_interval(columns[q], groups))
            continue
        # An estimate may leave [0, 1], which no accuracy does.
        limits = (0, 1) if name.endswith("accuracy") and not all_seen else ()
        ends = [number(e) for e in reverse_percentile(value_B[0], value_B[1:], LEVEL, *limits)]
        result[name] = None if None in ends else ends
    return result
