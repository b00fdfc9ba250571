"""metrics.json: what a router is worth on queries whose outcomes are known.

Which rows count. AUC of a target uses every row on which that target is observed. Accuracy, cost
and headroom compare the router with single targets and with the oracle, so they are all on the same
rows: those on which *every* target is observed (`n_complete` of `n_queries`; all of them where
nothing is missing). Accuracies on every row where the chosen, or that, target is observed stand
beside them as `router_accuracy_observed` and `accuracy_observed`, with their own counts.

Nothing is chosen on these rows but what its name says (`..._in_hindsight`, the oracle, the zero
router's hull): the best single target comes from training rows.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from routerjax.evaluation.breakdown import (
    agreement_zones,
    mean,
    near_misses,
    per_dataset,
    win_rates,
)
from routerjax.evaluation.calibration import calibration_metrics
from routerjax.evaluation.headline import (
    NO_COMPLETE_ROW,
    accuracy,
    best_possible,
    discrimination,
    intervals,
    observed_accuracy,
)
from routerjax.evaluation.published_report import published_report
from routerjax.evaluation.savings import KEYS as COST_KEYS
from routerjax.evaluation.savings import CompleteRows, cost_metrics
from routerjax.routing.judged import Judged
from routerjax.routing.policy import Policy
from routerjax.routing.policy_rows import check_probabilities
from routerjax.stats.bootstrap import value_and_draws
from routerjax.stats.roc_auc import auc_per_target

if TYPE_CHECKING:
    from routerjax.data.dataset import RoutingDataset

TOLERANCES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.35,
              0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # fmt: skip
DRAWS = 1000
# Bootstrap weights held at once; on more rows there are fewer draws.
_MOST = 200_000_000


def evaluate_predictions(
    p_NM: np.ndarray,
    data: "RoutingDataset",
    cost_NM: np.ndarray | None,
    *,
    policy: Policy,
    best_single: int,
    cost_basis: str | None,
    expected_cost_NM: np.ndarray | None = None,
    tolerances: Sequence[float] = TOLERANCES,
    before_NM: np.ndarray | None = None,
    saving_policy: Policy | None = None,
    length_sources: Sequence[str] | None = None,
    dataset_NM: np.ndarray | None = None,
) -> dict[str, Any]:
    """Measures predictions and the decisions that a policy makes of them.

    Args:
      p_NM: [N, M] predicted P(correct), rows and columns as in `data`.
      data: Queries and outcomes that the predictions were not fitted on.
      cost_NM: [N, M] USD per query as paid; None, or NaN for some targets, where prices are
        unknown: then every key that needs a cost is None and `reasons` says so.
      policy: Turns p and cost into decisions.
      best_single: Index of the target that was the most accurate on *training* rows.
      cost_basis: Whether `cost_NM` is of "recorded" or of "assumed" output tokens; without costs it
        means nothing and becomes None.
      expected_cost_NM: [N, M] USD per query as known before the answer is written, which is all a
        policy may see. Required with recorded tokens: they are known only afterwards.
      tolerances: Settings of the tolerance policy for the frontier.
      before_NM: [N, M] predicted P(correct) before calibration, from which AUC is counted, because
        calibration may tie queries; None where `p_NM` is not calibrated.
      saving_policy: The setting chosen on other rows to save at the best single target's accuracy,
        for `field["cost_save"]`.
      length_sources: [M] where the expected number of output tokens of each target comes from,
        "head", "median" or "assumed", for `output_tokens_from`; None where nobody knows.
      dataset_NM: [N, M] what the predictor says that knows the name of the row's dataset alone,
        for `dataset_only_auc`; None where training rows named no datasets.

    Returns:
      Plain values, ready for metrics.json. A number that does not exist is None, and
      `reasons[key]` says why (`reasons["auc/NAME"]` for one target's).

    Raises:
      ValueError: Shapes differ, a probability or cost is out of range, there is no row, or recorded
        costs come without expected ones.
    """
    p_NM, cost_NM, expected_cost_NM = _checked(
        p_NM, data, cost_NM, best_single, cost_basis, expected_cost_NM
    )
    targets = data.targets
    rows = Judged(data)
    correct_NM, complete_N = rows.correct_NM, rows.complete_N
    choice_N = policy.choose(p_NM, expected_cost_NM, keys=data.queries)
    share_M = np.bincount(choice_N, minlength=len(targets)) / len(choice_N)
    # `..._nM` are the complete rows, the ones on which all can be compared.
    p_nM, correct_nM, choice_n = p_NM[complete_N], correct_NM[complete_N], choice_N[complete_N]
    score_nM = np.asarray(data.y_NM, np.float64)[complete_N]
    draws = int(np.clip(_MOST // max(len(p_nM), 1), min(100, DRAWS), DRAWS))
    groups_n = np.asarray(data.groups)[complete_N].tolist()
    weight_Bn = value_and_draws(groups_n, draws)
    datasets_n = None if data.datasets is None else np.asarray(data.datasets)[complete_N].tolist()

    metrics: dict[str, Any] = {
        "n_queries": len(p_NM),
        "n_complete": len(p_nM),
        "targets": list(targets),
        "policy": policy.to_json(),
    }
    rank_NM = p_NM if before_NM is None else _checked_before(before_NM, p_NM.shape)
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
    part, why = accuracy(correct_nM, score_nM, choice_n, best_single, targets)
    metrics |= part | observed_accuracy(correct_NM, choice_N, targets)
    reasons |= why
    if metrics["router_accuracy_observed"] is None:
        reasons["router_accuracy_observed"] = "no chosen target's outcome is observed"
    metrics["routed_share"] = dict(zip(targets, share_M.tolist(), strict=True))

    metrics["output_tokens_from"] = None
    if length_sources is None:
        reasons["output_tokens_from"] = "it was not said where the expected lengths come from"
    else:
        metrics["output_tokens_from"] = dict(zip(targets, length_sources, strict=True))
    metrics |= {"cost_unit": "USD per query", "cost_basis": cost_basis} | dict.fromkeys(COST_KEYS)
    cost_nM = None
    no_cost = _no_cost(cost_NM, expected_cost_NM, targets)
    if cost_NM is None or expected_cost_NM is None or no_cost:
        metrics["cost_basis"] = None
        reasons |= dict.fromkeys(("cost_basis", *COST_KEYS), no_cost)
    elif not len(p_nM):
        reasons |= dict.fromkeys(COST_KEYS, NO_COMPLETE_ROW)
    else:
        cost_nM = cost_NM[complete_N]
        complete = CompleteRows(
            targets, p_nM, correct_nM, cost_nM, expected_cost_NM[complete_N], choice_n,
            best_single, str(policy),
        )  # fmt: skip
        part, why = cost_metrics(complete, tolerances)
        metrics |= part
        reasons |= why

    metrics["field"] = None
    if len(p_nM):
        saving_n = None
        if saving_policy is not None and cost_nM is not None:
            saving_n = saving_policy.choose(p_NM, expected_cost_NM, keys=data.queries)[complete_N]
        metrics["field"], why = published_report(
            p_nM, correct_nM, choice_n, best_single, weight_Bn,
            datasets=datasets_n,
            cost_NM=cost_nM,
            expected_cost_NM=None if expected_cost_NM is None else expected_cost_NM[complete_N],
            saving_choice_N=saving_n,
        )  # fmt: skip
        reasons |= why
    else:
        reasons["field"] = NO_COMPLETE_ROW
    metrics["intervals"] = intervals(correct_nM, choice_n, best_single, weight_Bn, cost_nM)
    metrics |= dict.fromkeys(("best_possible", "agreement", "near_misses"))
    if len(p_nM):
        metrics["agreement"] = agreement_zones(correct_nM, choice_n, best_single)
        metrics["near_misses"] = near_misses(p_nM, correct_nM, choice_n, best_single)
        if data.p_NM is not None:
            true_p_nM = np.asarray(data.p_NM, np.float64)[complete_N]
            metrics["best_possible"] = best_possible(true_p_nM, correct_nM, best_single, datasets_n)
        for name, why_not in (
            ("near_misses", "there is only one target"),
            ("best_possible", "the true P(correct) is known of simulated data only"),
        ):
            if metrics[name] is None:
                reasons[name] = why_not
    else:
        names = ("intervals", "best_possible", "agreement", "near_misses")
        reasons |= dict.fromkeys(names, NO_COMPLETE_ROW)
    metrics["win_rates"] = win_rates(p_NM, correct_NM)
    metrics["per_dataset"] = None
    if data.datasets is None:
        reasons["per_dataset"] = "the data name no datasets"
    else:
        metrics["per_dataset"] = per_dataset(
            rank_NM, rows, choice_N, np.full(len(p_NM), best_single)
        )
    return metrics | {"reasons": reasons}


def _checked_before(before_NM: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    before_NM = check_probabilities(before_NM)
    if before_NM.shape != shape:
        raise ValueError(
            f"before_NM, P(correct) before calibration: expected the shape of p_NM, {shape}, got "
            f"{before_NM.shape}"
        )
    return before_NM


def _no_cost(
    cost_NM: np.ndarray | None, expected_cost_NM: np.ndarray | None, targets: Sequence[str]
) -> str:
    """Why costs cannot be told; empty where they can."""
    if cost_NM is None or expected_cost_NM is None:
        return "the targets' prices are unknown"
    unknown_M = (np.isnan(cost_NM) | np.isnan(expected_cost_NM)).any(axis=0)
    names = ", ".join(np.asarray(targets)[unknown_M].tolist())
    return f"the cost of some answers is unknown, of {names}" if names else ""


def _checked(
    p_NM: np.ndarray,
    data: "RoutingDataset",
    cost_NM: np.ndarray | None,
    best_single: int,
    cost_basis: str | None,
    expected_cost_NM: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Probabilities, costs paid and costs expected as float64, all of one shape."""
    p_NM = check_probabilities(p_NM)
    shape = (len(data), len(data.targets))
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
    if cost_NM is None:
        return p_NM, None, None
    if cost_basis not in ("recorded", "assumed"):
        raise ValueError(
            f"cost_basis, where the output tokens behind cost_NM come from: expected 'recorded' or "
            f"'assumed', got {cost_basis!r}"
        )
    if expected_cost_NM is None:
        if cost_basis == "recorded":
            raise ValueError(
                "expected_cost_NM: recorded output tokens are known only once the answer is there, "
                "so a policy must not see their cost: pass what was expected beforehand, such as "
                "each target's median training length times its prices"
            )
        expected_cost_NM = cost_NM
    costs = []
    for name, value in (("cost_NM", cost_NM), ("expected_cost_NM", expected_cost_NM)):
        value = np.asarray(value, np.float64)
        if value.shape != shape or (value < 0).any() or np.isinf(value).any():
            raise ValueError(
                f"{name}, USD per query of each target: expected finite numbers >= 0 (or NaN where "
                f"unknown) of shape {shape}, got shape {value.shape}"
                + (f" with values from {np.nanmin(value)}" if value.size else "")
            )
        costs.append(value)
    return p_NM, costs[0], costs[1]
