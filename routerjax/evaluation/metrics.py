"""metrics.json: what a router is worth on queries whose outcomes are known.

Which rows count. AUC of a target uses every row on which that target is observed. Accuracy, cost
and headroom compare the router with single targets and with the oracle, so they are all of the same
rows, which are all of them; what is not observed of them is estimated (evaluation/estimated), and
`n_known` says on how many rows the outcomes behind each accuracy are observed. It is there only
where outcomes are missing. Plain means over the rows where the chosen, or that, target is observed
stand beside them as `router_accuracy_observed` and `accuracy_observed`, with their own counts; they
are of different queries. Agreement is on the rows where every target is observed (`n_complete`).

Nothing is chosen on these rows but what its name says (`..._in_hindsight`, the oracle, the zero
router's hull): the best single target comes from training rows.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.evaluation.breakdown import (
    agreement_zones,
    mean,
    near_misses,
    per_dataset,
    win_rates,
)
from routerjax.evaluation.calibration import calibration_metrics
from routerjax.evaluation.cascades import cascade_metrics
from routerjax.evaluation.estimated import Estimated
from routerjax.evaluation.headline import (
    NO_OUTCOME_OF,
    accuracy,
    best_possible,
    discrimination,
    intervals,
    observed_accuracy,
)
from routerjax.evaluation.one_model import one_model
from routerjax.evaluation.published_report import SAVINGS, published_report
from routerjax.evaluation.savings import KEYS as COST_KEYS
from routerjax.evaluation.savings import cost_coverage, cost_metrics
from routerjax.routing.costs import BASES
from routerjax.routing.judged import Judged
from routerjax.routing.policy import Policy
from routerjax.routing.policy_rows import check_probabilities
from routerjax.stats.bootstrap import value_and_draws
from routerjax.stats.roc_auc import auc_per_target

TOLERANCES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.35,
              0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # fmt: skip
DRAWS = 1000
# Bootstrap weights held at once; on more rows there are fewer draws.
_MOST = 200_000_000


def evaluate_predictions(
    p_NM: np.ndarray,
    rows: Judged,
    *,
    policy: Policy,
    best_single: int,
    tolerances: Sequence[float] = TOLERANCES,
    before_NM: np.ndarray | None = None,
    saving_policy: Policy | None = None,
    confident_saving_policy: Policy | None = None,
    length_sources: Sequence[str] | None = None,
    dataset_NM: np.ndarray | None = None,
    trained_M: np.ndarray | None = None,
    learning_curve: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measures predictions and the decisions that a policy makes of them.

    Args:
      p_NM: [N, M] predicted P(correct).
      rows: N rows that the predictions were not fitted on, their outcomes and costs. A policy sees
        `expected_NM` alone; it may be None of "assumed" lengths, which are expected ones. Where
        costs are None, or NaN for some targets, every key that needs a cost is None and `reasons`
        says so.
      policy: Turns p and cost into decisions.
      best_single: Index of the target that was the most accurate on *training* rows.
      tolerances: Settings of the tolerance policy for the frontier.
      before_NM: [N, M] predicted P(correct) before calibration, from which AUC is counted, because
        calibration may tie queries; None where `p_NM` is not calibrated.
      saving_policy: The setting chosen on other rows to save at the best single target's accuracy,
        for `field["cost_save"]`.
      confident_saving_policy: The same with a confidence, for `field["cost_save_confident"]`.
      length_sources: [M] where the expected number of output tokens of each target comes from,
        "head", "median" or "assumed", for `output_tokens_from`; None where nobody knows.
      dataset_NM: [N, M] what the predictor says that knows the name of the row's dataset alone,
        for `dataset_only_auc`; None where training rows named no datasets.
      trained_M: [M] accuracy of each target on training rows, for `one_model`; None or NaN where it
        is not known, when the best single target is the one constant model.
      learning_curve: What `stats.learning_curve` said of the training rows; None without.

    Returns:
      Plain values, ready for metrics.json. A number that does not exist is None, and
      `reasons[key]` says why (`reasons["auc/NAME"]` for one target's).

    Raises:
      ValueError: Shapes differ, a probability or cost is out of range, there is no row, or recorded
        costs come without expected ones.
    """
    p_NM, rows = _checked(p_NM, rows, best_single)
    data, targets, correct_NM = rows.data, rows.data.targets, rows.correct_NM
    choice_N = policy.choose(p_NM, rows.expected_NM, rows.allowed_NM, data.queries)
    share_M = np.bincount(choice_N, minlength=len(targets)) / len(choice_N)
    outcomes = Estimated(correct_NM, data.datasets)
    weight_BN = row_weights(data.groups)

    metrics: dict[str, Any] = {
        "n_queries": len(p_NM),
        "n_complete": int(rows.complete_N.sum()),
        "targets": list(targets),
        "policy": policy.to_json(),
    }
    rank_NM = p_NM if before_NM is None else check_probabilities(before_NM)
    if rank_NM.shape != p_NM.shape:
        raise ValueError(
            f"before_NM, P(correct) before calibration: expected the shape of p_NM, {p_NM.shape}, "
            f"got {rank_NM.shape}"
        )
    part, reasons = discrimination(rank_NM, correct_NM, data.datasets, targets)
    metrics |= part
    metrics["dataset_only_auc"] = None
    if dataset_NM is None:
        reasons["dataset_only_auc"] = "training rows named no such datasets"
    else:
        auc_M = auc_per_target(dataset_NM, correct_NM)
        metrics["dataset_only_auc"] = mean(auc_M[~np.isnan(auc_M)])
        if metrics["dataset_only_auc"] is None:
            reasons["dataset_only_auc"] = "no target has an AUC"
    part, why = calibration_metrics(p_NM, correct_NM, targets, before_NM)
    metrics |= part
    reasons |= why
    score_NM = np.asarray(data.y_NM, np.float64)
    binary = np.array_equal(score_NM, correct_NM, equal_nan=True)
    scores = outcomes if binary else Estimated(score_NM, data.datasets)
    part, why = accuracy(outcomes, scores, choice_N, best_single, targets)
    metrics |= part | observed_accuracy(correct_NM, choice_N, targets)
    reasons |= why
    if metrics["router_accuracy_observed"] is None:
        reasons["router_accuracy_observed"] = NO_OUTCOME_OF["router"]
    metrics["routed_share"] = dict(zip(targets, share_M.tolist(), strict=True))

    metrics["output_tokens_from"] = None
    if length_sources is None:
        reasons["output_tokens_from"] = "it was not said where the expected lengths come from"
    else:
        metrics["output_tokens_from"] = dict(zip(targets, length_sources, strict=True))
    metrics |= {"cost_unit": "USD per query", "cost_basis": rows.basis} | dict.fromkeys(COST_KEYS)
    no_cost = _no_cost(rows)
    judged = metrics["router_accuracy"] is not None
    priced = not no_cost and judged
    if no_cost:
        metrics["cost_basis"] = None
        reasons |= dict.fromkeys(("cost_basis", *COST_KEYS), no_cost)
    elif not priced:
        reasons |= dict.fromkeys(COST_KEYS, NO_OUTCOME_OF["router"])
    else:
        part, why = cost_metrics(
            rows, outcomes, p_NM, choice_N, best_single, str(policy), tolerances
        )
        metrics |= part
        reasons |= why

    cost_NM = rows.paid_NM if priced else None
    metrics |= dict.fromkeys(
        ("field", "best_possible", "agreement", "near_misses", "one_model", "cascade")
    )
    if judged:
        saving = {
            name: each
            for name, each in zip(SAVINGS, (saving_policy, confident_saving_policy), strict=True)
            if each is not None and priced
        }
        metrics["field"], why = published_report(
            p_NM, outcomes, choice_N, best_single, weight_BN, datasets=data.datasets,
            cost_NM=cost_NM, expected_cost_NM=rows.expected_NM, allowed_NM=rows.allowed_NM,
            saving_choices={
                name: each.choose(p_NM, rows.expected_NM, rows.allowed_NM, data.queries)
                for name, each in saving.items()
            },
        )  # fmt: skip
        for name, each in saving.items():
            if metrics["field"][name] is not None:
                metrics["field"][name]["policy"] = str(each)
        reasons |= why
        if priced:
            cost_of = {t: metrics["cost"][t] for t in np.asarray(targets)[outcomes.known_M]}
            metrics["cost_coverage"], why = cost_coverage(metrics["field"], cost_of)
            reasons |= why
            metrics["cascade"], why_none = cascade_metrics(p_NM, rows, outcomes, weight_BN)
            reasons |= {"cascade": why_none} if why_none else {}
        else:
            reasons["cascade"] = no_cost
        metrics["one_model"], why = one_model(
            outcomes, choice_N, weight_BN, cost_NM, best_single, trained_M, targets,
            metrics["field"]["cost_save_confident"], learning_curve,
        )  # fmt: skip
        reasons |= why
        metrics["near_misses"] = near_misses(p_NM, outcomes, choice_N, best_single)
        if data.p_NM is not None:
            true_p_NM = np.asarray(data.p_NM, np.float64)
            metrics["best_possible"] = best_possible(true_p_NM, outcomes, best_single)
        for name, why_not in (
            ("near_misses", "there is only one target"),
            ("best_possible", "the true P(correct) is known of simulated data only"),
        ):
            if metrics[name] is None:
                reasons[name] = why_not
    else:
        names = ("field", "best_possible", "near_misses", "one_model", "cascade")
        reasons |= dict.fromkeys(names, NO_OUTCOME_OF["router"])
    metrics["intervals"] = intervals(
        outcomes, choice_N, best_single, weight_BN, cost_NM, data.groups
    )
    complete_N = rows.complete_N
    if complete_N.any():
        metrics["agreement"] = agreement_zones(
            correct_NM[complete_N], choice_N[complete_N], best_single
        )
    else:
        reasons["agreement"] = "no query has an outcome of every target"
    metrics["win_rates"] = win_rates(p_NM, correct_NM)
    metrics["per_dataset"] = None
    if data.datasets is None:
        reasons["per_dataset"] = "the data name no datasets"
    else:
        metrics["per_dataset"] = per_dataset(
            rank_NM, rows, outcomes, choice_N, np.full(len(p_NM), best_single)
        )
    return metrics | {"reasons": reasons}


def row_weights(groups: Sequence[str]) -> np.ndarray:
    """[1 + B, N] of `value_and_draws`; B is `DRAWS`, and less where the rows are very many."""
    draws = int(np.clip(_MOST // max(len(groups), 1), min(100, DRAWS), DRAWS))
    return value_and_draws(list(groups), draws)


def _no_cost(rows: Judged) -> str:
    """Why costs cannot be told; empty where they can."""
    if rows.paid_NM is None or rows.expected_NM is None:
        return "the targets' prices are unknown"
    unknown_M = (np.isnan(rows.paid_NM) | np.isnan(rows.expected_NM)).any(axis=0)
    names = ", ".join(np.asarray(rows.data.targets)[unknown_M].tolist())
    return f"the cost of some answers is unknown, of {names}" if names else ""


def _checked(p_NM: np.ndarray, rows: Judged, best_single: int) -> tuple[np.ndarray, Judged]:
    """Probabilities and costs as float64, all of one shape."""
    p_NM = check_probabilities(p_NM)
    shape = (len(rows.data), len(rows.data.targets))
    if p_NM.shape != shape or shape[0] == 0:
        raise ValueError(
            f"p_NM: expected a row for each of the {shape[0]} queries (at least one) and a column "
            f"for each of the {shape[1]} targets, got shape {p_NM.shape}"
        )
    if not 0 <= best_single < shape[1]:
        raise ValueError(
            f"best_single, the index of the best target on training rows: expected an integer in "
            f"[0, {shape[1]}), got {best_single!r}"
        )
    if rows.paid_NM is None:
        return p_NM, dataclasses.replace(rows, expected_NM=None, basis=None)
    if rows.basis not in BASES and BASES[0] not in str(rows.basis):
        raise ValueError(
            f"basis, where the output tokens behind paid_NM come from: expected 'recorded' or "
            f"'assumed', got {rows.basis!r}"
        )
    if rows.expected_NM is None and rows.basis != "assumed":
        raise ValueError(
            "expected_NM: recorded output tokens are known only once the answer is there, so a "
            "policy must not see their cost: pass what was expected beforehand, such as each "
            "target's median training length times its prices"
        )
    expected_NM = rows.paid_NM if rows.expected_NM is None else rows.expected_NM
    costs = []
    for name, value in (("paid_NM", rows.paid_NM), ("expected_NM", expected_NM)):
        value = np.asarray(value, np.float64)
        if value.shape != shape or (value < 0).any() or np.isinf(value).any():
            raise ValueError(
                f"{name}, USD per query of each target: expected finite numbers >= 0 (or NaN where "
                f"unknown) of shape {shape}, got shape {value.shape}"
                + (f" with values from {np.nanmin(value)}" if value.size else "")
            )
        costs.append(value)
    return p_NM, dataclasses.replace(rows, paid_NM=costs[0], expected_NM=costs[1])
