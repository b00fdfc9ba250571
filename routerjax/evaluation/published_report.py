"""The field's metrics of one router, each with a paired bootstrap interval over groups.

The value is the replicate in which every row counts once: it goes through the same lines. Sums over
rows are products of the draws' weights with columns of the rows, for all metrics at once, so that
differences between them are paired.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.data.groups import numbered
from routerjax.evaluation import published as field
from routerjax.evaluation.frontier import take
from routerjax.routing.policies import choose_by_utility
from routerjax.routing.policy_rows import PolicyInputs
from routerjax.stats.bootstrap import group_weights, reverse_percentile

DRAWS = 1000
CPT_PERCENT = (50, 80)
# The router's settings: weights of being right against cost, from one extreme to the other.
_ODDS = np.geomspace(1e-6, 1e6, 37)
LAMS = np.concatenate([[0.0], _ODDS / (1 + _ODDS), [1.0]])
# Weights held at once; on more rows fewer draws.
_MOST = 200_000_000

_COST_NAMES = (
    "aiq",
    "aiq_zero_router",
    "aiq_minus_zero_router",
    "perf_gain",
    "perf_gain_in_hindsight",
    "cost_save",
    "pareto_dist",
    "router_arena_score",
)
_TWO_NAMES = ("apgr", *(f"cpt_{percent}" for percent in CPT_PERCENT))
NO_SETTING = "no setting as accurate as the best single target was chosen on calibration rows"


def field_report(
    p_NM: np.ndarray,
    correct_NM: np.ndarray,
    choice_N: np.ndarray,
    single: int,
    groups: Sequence[str] | np.ndarray,
    *,
    datasets: Sequence[str] | np.ndarray | None = None,
    cost_NM: np.ndarray | None = None,
    expected_cost_NM: np.ndarray | None = None,
    saving_choice_N: np.ndarray | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every metric of `field_metrics` on rows with all outcomes.

    `avg_acc`, `gain_at_best`, `gap_at_oracle`, `pareto_dist` and `router_arena_score` are of the
    router as set; `aiq` is over the settings LAMS of the utility policy, `perf_gain` at its most
    accurate setting by its own predictions (argmax), `perf_gain_in_hindsight` at the most accurate
    on these rows; `apgr` and `cpt_...` are over thresholds on the difference of two targets' p.
    `cost_save` is at the setting given, together with the accuracies on both sides and the share of
    draws in which it is less accurate than the best single target (ties count half).

    Args:
      p_NM: [N, M] predicted P(correct).
      correct_NM: [N, M] 1 or 0, nothing missing; at least one row.
      choice_N: [N] the router's targets.
      single: Index of the target that was best on training rows; of two it is the strong one.
      groups: [N] rows of one group are drawn together.
      datasets: [N] names; None takes all rows for one data set.
      cost_NM: [N, M] USD per query as paid; None where unknown.
      expected_cost_NM: [N, M] USD as the policy sees it.
      saving_choice_N: [N] the targets at the setting that was chosen to save, on other rows, at the
        best single target's accuracy; None where there is none.
      draws: Bootstrap draws; fewer where rows are very many.
      seed: Of the draws.

    Returns:
      By name {"value", "low", "high"} of a 95% interval or None, and the reason for each None.
    """
    n = len(p_NM)
    draws = int(np.clip(_MOST // n, min(100, draws), draws))
    weight_BN = group_weights([str(group) for group in groups], draws, seed)
    weight_BN = np.concatenate([np.ones((1, n), np.float32), weight_BN])
    weight_BN = weight_BN[weight_BN.sum(axis=1) > 0]  # Of very few groups none may be drawn.
    single_N, oracle_N = correct_NM[:, single], correct_NM.max(axis=1)
    found: dict[str, np.ndarray] = {}
    reasons: dict[str, str] = {}

    right_3N = np.stack([take(correct_NM, choice_N), single_N, oracle_N])
    router, best, oracle = _means_over_datasets(weight_BN, right_3N, datasets)
    found |= {
        "avg_acc": router,
        "gain_at_best": field.gain_at_best(router, best),
        "gap_at_oracle": field.gap_at_oracle(router, oracle),
    }
    if p_NM.shape[1] == 2:
        curve = field.strong_share_curve(
            p_NM[:, single] - p_NM[:, 1 - single], correct_NM[:, 1 - single], single_N, weight_BN
        )
        found["apgr"] = field.apgr(*curve)
        found |= {f"cpt_{percent}": field.cpt(*curve, percent) for percent in CPT_PERCENT}
    else:
        reasons |= dict.fromkeys(_TWO_NAMES, "it compares two targets")
    beside: dict[str, Any] = {}
    if cost_NM is None or expected_cost_NM is None:
        reasons |= dict.fromkeys(_COST_NAMES, "the targets' prices are unknown")
    else:
        costs = _with_costs(weight_BN, p_NM, correct_NM, choice_N, single, cost_NM,
                            expected_cost_NM, saving_choice_N)  # fmt: skip
        beside = costs.pop("beside")
        found |= costs
        if saving_choice_N is None:
            reasons["cost_save"] = NO_SETTING
    report: dict[str, Any] = {"draws": draws}
    names = ("avg_acc", "gain_at_best", "gap_at_oracle", *_TWO_NAMES, *_COST_NAMES)
    for name in names:
        report[name] = _summary(found[name]) if name in found else None
        if report[name] is None and name not in reasons:
            reasons[name] = "its denominator is not above 0 on these queries" + (
                ": the target that was best on training rows is not the better one here"
                if name in _TWO_NAMES
                else ""
            )
    if report["cost_save"] is not None:
        report["cost_save"] |= beside
    return report, {f"field/{name}": why for name, why in reasons.items()}


def _with_costs(
    weight_BN: np.ndarray,
    p_NM: np.ndarray,
    correct_NM: np.ndarray,
    choice_N: np.ndarray,
    single: int,
    cost_NM: np.ndarray,
    expected_cost_NM: np.ndarray,
    saving_choice_N: np.ndarray | None,
) -> dict[str, Any]:
    """The metrics that need costs, [B] each."""
    rows = PolicyInputs.checked(p_NM, expected_cost_NM)
    ends = float(rows.cost_NM.min()), float(rows.cost_NM.max())
    choices = [choose_by_utility(rows, lam, ends) for lam in LAMS]
    choices.append(choice_N if saving_choice_N is None else saving_choice_N)
    choices.append(choice_N)
    cost_NS = np.stack([take(cost_NM, c_N) for c_N in choices], axis=1)
    right_NS = np.stack([take(correct_NM, c_N) for c_N in choices], axis=1)
    n_settings, m = len(LAMS), p_NM.shape[1]
    means_BQ = _means(weight_BN, np.concatenate([cost_NS, right_NS, cost_NM, correct_NM], axis=1))
    cost_BS, right_BS, single_cost_BM, single_right_BM = np.split(
        means_BQ, np.cumsum([n_settings + 2, n_settings + 2, m]), axis=1
    )
    low_B, high_B = single_cost_BM.min(axis=1), single_cost_BM.max(axis=1)
    cheapest_B1 = single_cost_BM.argmin(axis=1)[:, None]

    def with_cheapest(value_BS: np.ndarray, value_BM: np.ndarray) -> np.ndarray:
        cheapest = np.take_along_axis(value_BM, cheapest_B1, axis=1)
        return np.concatenate([value_BS[:, :n_settings], cheapest], axis=1)

    aiq_B = field.aiq(with_cheapest(cost_BS, single_cost_BM),
                      with_cheapest(right_BS, single_right_BM), low_B, high_B)  # fmt: skip
    zero_B = field.aiq(single_cost_BM, single_right_BM, low_B, high_B)
    best_B, best_cost_B = single_right_BM[:, single], single_cost_BM[:, single]
    found: dict[str, Any] = {
        "aiq": aiq_B,
        "aiq_zero_router": zero_B,
        "aiq_minus_zero_router": aiq_B - zero_B,
        "perf_gain": right_BS[:, n_settings - 1] - best_B,
        "perf_gain_in_hindsight": right_BS[:, :n_settings].max(axis=1) - best_B,
        "pareto_dist": field.pareto_distance(
            cost_BS[:, -1], right_BS[:, -1], single_cost_BM, single_right_BM
        ),
        "router_arena_score": field.router_arena_score(right_BS[:, -1], cost_BS[:, -1]),
        "beside": {},
    }
    if saving_choice_N is not None:
        found["cost_save"] = field.cost_save(cost_BS[:, -2], best_cost_B)
        lead_B = right_BS[1:, -2] - best_B[1:]
        below = (lead_B < -1e-12).mean() + 0.5 * (np.abs(lead_B) <= 1e-12).mean()
        found["beside"] = {
            "accuracy": float(right_BS[0, -2]),
            "best_single_accuracy": float(best_B[0]),
            "probability_below_best_single": float(below),
        }
    return found


def _means(weight_BN: np.ndarray, value_NQ: np.ndarray) -> np.ndarray:
    """[B, Q] weighted means."""
    return _sums(weight_BN, value_NQ) / weight_BN.sum(axis=1, dtype=np.float64)[:, None]


def _sums(weight_BN: np.ndarray, value_NQ: np.ndarray) -> np.ndarray:
    """[B, Q] weighted sums, in float64 for a few draws at a time: all would take too much space."""
    parts = np.array_split(weight_BN, -(-len(weight_BN) // 64))
    return np.concatenate([weight_bN.astype(np.float64) @ value_NQ for weight_bN in parts])


def _means_over_datasets(
    weight_BN: np.ndarray, right_QN: np.ndarray, datasets: Sequence[str] | np.ndarray | None
) -> np.ndarray:
    """[Q, B] AvgAcc of each row of `right_QN`."""
    if datasets is None:
        datasets = np.zeros(right_QN.shape[1], int)
    names, dataset_N = numbered(datasets)
    right_QBD = np.zeros((len(right_QN), len(weight_BN), len(names)))
    n_BD = np.zeros((len(weight_BN), len(names)))
    for d in range(len(names)):
        weight_Bn = weight_BN[:, dataset_N == d]
        n_BD[:, d] = weight_Bn.sum(axis=1, dtype=np.float64)
        right_nQ = right_QN[:, dataset_N == d].T
        right_QBD[:, :, d] = _sums(weight_Bn, right_nQ).T
    return field.mean_over_datasets(right_QBD, np.broadcast_to(n_BD, right_QBD.shape))


def _summary(value_B: np.ndarray) -> dict[str, Any] | None:
    """Value and interval; None where there is no value."""
    if not np.isfinite(value_B[0]):
        return None
    ends = [float(end) for end in reverse_percentile(value_B[0], value_B[1:])]
    low, high = (end if np.isfinite(end) else None for end in ends)
    return {"value": float(value_B[0]), "low": low, "high": high}
