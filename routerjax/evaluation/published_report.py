"""The published metrics of one router, each with a paired bootstrap interval over groups.

The value is the replicate in which every row counts once: it goes through the same lines. Sums over
rows are products of the draws' weights with columns of the rows, for all metrics at once, so that
differences between them are paired.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from routerjax.data.groups import numbered
from routerjax.evaluation import published
from routerjax.evaluation.estimated import Estimated
from routerjax.evaluation.frontier import at_choices, router_aiq, utility_choices
from routerjax.routing.policies import Argmax
from routerjax.routing.policy_rows import take
from routerjax.stats.bootstrap import reverse_percentile, weighted_means, weighted_sums

CPT_PERCENT = (50, 80)

_COST_NAMES = (
    "aiq",
    "aiq_zero_router",
    "aiq_minus_zero_router",
    "perf_gain_in_hindsight",
    "cost_save",
    "cost_save_confident",
    "pareto_dist",
    "router_arena_score",
)
_TWO_NAMES = ("apgr", *(f"cpt_{percent}" for percent in CPT_PERCENT))
_NAMES = ("avg_acc", "gain_at_best", "gap_at_oracle", "perf_gain", *_TWO_NAMES, *_COST_NAMES)
# Settings as accurate as the best single target: on the rows they were chosen on, and shown to be.
SAVINGS = ("cost_save", "cost_save_confident")
NO_SETTING = {
    "cost_save": "no setting as accurate as the best single target was chosen on calibration rows",
    "cost_save_confident": "no setting was shown on calibration rows to be as accurate as the best "
    "single target: ask that target, or train with more such rows (calibration_folds)",
}


def published_report(
    p_NM: np.ndarray,
    outcomes: Estimated,
    choice_N: np.ndarray,
    single: int,
    weight_BN: np.ndarray,
    *,
    datasets: Sequence[str] | np.ndarray | None = None,
    cost_NM: np.ndarray | None = None,
    expected_cost_NM: np.ndarray | None = None,
    allowed_NM: np.ndarray | None = None,
    saving_choices: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every metric of `published_replicates` with its interval.

    Args: As in `published_replicates`, with one `single` for all rows.

    Returns:
      By name {"value", "low", "high"} of a 95% interval or None, and the reason for each None.
      Those of SAVINGS also have the accuracies on both sides and the share of draws in which the
      setting is less accurate than the best single target.
    """
    replicates, beside = published_replicates(
        p_NM, outcomes, choice_N, np.full(len(p_NM), single), weight_BN, datasets=datasets,
        cost_NM=cost_NM, expected_cost_NM=expected_cost_NM, allowed_NM=allowed_NM,
        saving_choices=saving_choices,
    )  # fmt: skip
    reasons: dict[str, str] = {}
    if p_NM.shape[1] != 2:
        reasons |= dict.fromkeys(_TWO_NAMES, "it compares two targets")
    if cost_NM is None or expected_cost_NM is None:
        reasons |= dict.fromkeys(_COST_NAMES, "the targets' prices are unknown")
    else:
        reasons |= {name: NO_SETTING[name] for name in SAVINGS if name not in saving_choices}
    report: dict[str, Any] = {"draws": len(weight_BN) - 1}
    for name in _NAMES:
        report[name] = _summary(replicates[name]) if name in replicates else None
        if report[name] is None and name not in reasons:
            reasons[name] = "its denominator is not above 0 on these queries" + (
                ": the target that was best on training rows is not the better one here"
                if name in _TWO_NAMES
                else ""
            )
    for name, numbers in beside.items():
        if report[name] is not None:
            report[name] |= numbers
    return report, {f"field/{name}": why for name, why in reasons.items()}


def published_replicates(
    p_NM: np.ndarray,
    outcomes: Estimated,
    choice_N: np.ndarray,
    single_N: np.ndarray,
    weight_BN: np.ndarray,
    *,
    datasets: Sequence[str] | np.ndarray | None = None,
    cost_NM: np.ndarray | None = None,
    expected_cost_NM: np.ndarray | None = None,
    allowed_NM: np.ndarray | None = None,
    saving_choices: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """Every published metric of a router and its replicates.

    Where outcomes are missing, values estimate them; what the fit behind these is not sure of is
    not in the replicates.

    `avg_acc`, `gain_at_best`, `gap_at_oracle`, `pareto_dist` and `router_arena_score` are of the
    router as set; `aiq` is over the settings LAMS of the utility policy, `perf_gain` at its most
    accurate setting by its own predictions (argmax), `perf_gain_in_hindsight` at the most accurate
    on these rows; `apgr` and `cpt_...` are over thresholds on the difference of two targets' p.
    Those of SAVINGS are at the settings given.

    Args:
      p_NM: [N, M] predicted P(correct).
      outcomes: [N, M] 1, 0 or not observed; at least one row.
      choice_N: [N] the router's targets.
      single_N: [N] the target that was best on the training rows of each row's fold; of two the
        most frequent is the strong one.
      weight_BN: [B, N] how often each row counts; in the first replicate once, for the value.
      datasets: [N] names; None takes all rows for one dataset.
      cost_NM: [N, M] USD per query as paid; None where unknown.
      expected_cost_NM: [N, M] USD as the policy sees it; None where unknown.
      allowed_NM: [N, M] bool, the targets that can take each query; None for all. The oracle and
        the thresholds on two targets' p know no such limit.
      saving_choices: By name of SAVINGS, [N] the targets at the setting that was chosen to save, on
        other rows, at the best single target's accuracy; without those of which there is none.

    Returns:
      [B] of each metric that prices, targets and settings allow, NaN where it does not exist. With
      each of SAVINGS go "accuracy", "best_single_accuracy" and "probability_below_best_single", the
      share of draws in which the setting is the less accurate (ties count half).
    """
    value_NM, single_right_N = outcomes.value_NM, take(outcomes.value_NM, single_N)
    argmax_N = Argmax().choose(p_NM, expected_cost_NM, allowed_NM)
    right_3N = np.stack([take(value_NM, choice_N), single_right_N, outcomes.oracle_N])
    router_B, best_B, oracle_B = _means_over_datasets(weight_BN, right_3N, datasets)
    lead_N = take(value_NM, argmax_N) - single_right_N
    replicates = {
        "avg_acc": router_B,
        "gain_at_best": published.gain_at_best(router_B, best_B),
        "gap_at_oracle": published.gap_at_oracle(router_B, oracle_B),
        "perf_gain": weighted_means(weight_BN, lead_N),
    }
    drawn_B = np.asarray(weight_BN.sum(axis=1) > 0)  # Of very few groups none may be drawn.
    if p_NM.shape[1] == 2 and outcomes.known_M.all():
        strong = int(np.bincount(single_N).argmax())
        curve = published.strong_share_curve(
            p_NM[:, strong] - p_NM[:, 1 - strong], value_NM[:, 1 - strong],
            value_NM[:, strong], np.where(drawn_B[:, None], weight_BN, 1),
        )  # fmt: skip
        replicates["apgr"] = published.apgr(*curve)
        replicates |= {f"cpt_{percent}": published.cpt(*curve, percent) for percent in CPT_PERCENT}
    beside: dict[str, dict[str, float]] = {}
    if cost_NM is not None and expected_cost_NM is not None:
        settings_SN = utility_choices(p_NM, expected_cost_NM, allowed_NM)
        choices = [*settings_SN, choice_N, single_N, *saving_choices.values()]
        points_NS2 = np.concatenate([
            at_choices(np.stack(choices), cost_NM, value_NM),
            np.stack([cost_NM, value_NM], axis=2)[:, outcomes.known_M],
        ], axis=1)  # fmt: skip
        points_BS2 = weighted_means(weight_BN, points_NS2)
        n_settings = len(settings_SN)
        settings_BS2, singles_BM2 = points_BS2[:, :n_settings], points_BS2[:, len(choices) :]
        router_B2, single_B2, *savings_SB2 = np.moveaxis(points_BS2, 1, 0)[
            n_settings : len(choices)
        ]
        aiq_B, zero_B = router_aiq(settings_BS2, singles_BM2)
        replicates |= {
            "aiq": aiq_B,
            "aiq_zero_router": zero_B,
            "aiq_minus_zero_router": aiq_B - zero_B,
            "perf_gain_in_hindsight": settings_BS2[:, :, 1].max(axis=1) - single_B2[:, 1],
            "pareto_dist": published.pareto_distance(
                router_B2[:, 0], router_B2[:, 1], singles_BM2[..., 0], singles_BM2[..., 1]
            ),
            "router_arena_score": published.router_arena_score(router_B2[:, 1], router_B2[:, 0]),
        }
        for name, saving_B2 in zip(saving_choices, savings_SB2, strict=True):
            replicates[name] = published.cost_save(saving_B2[:, 0], single_B2[:, 0])
            lead_B = (saving_B2 - single_B2)[1:, 1]
            below = (lead_B < -1e-12).mean() + 0.5 * (np.abs(lead_B) <= 1e-12).mean()
            beside[name] = {
                "accuracy": float(saving_B2[0, 1]),
                "best_single_accuracy": float(single_B2[0, 1]),
                "probability_below_best_single": float(below),
            }
    return {name: np.where(drawn_B, each_B, np.nan) for name, each_B in replicates.items()}, beside


def _means_over_datasets(
    weight_BN: np.ndarray, right_QN: np.ndarray, datasets: Sequence[str] | np.ndarray | None
) -> np.ndarray:
    """[Q, B] AvgAcc of each row of `right_QN`."""
    if datasets is None:
        datasets = np.zeros(right_QN.shape[1], int)
    names, dataset_N = numbered(datasets)
    shape_QBD = (len(right_QN), len(weight_BN), len(names))
    right_QBD, n_BD = np.zeros(shape_QBD), np.zeros(shape_QBD[1:])
    for d in range(len(names)):
        weight_Bn = weight_BN[:, dataset_N == d]
        n_BD[:, d] = weight_Bn.sum(axis=1, dtype=np.float64)
        right_QBD[:, :, d] = weighted_sums(weight_Bn, right_QN[:, dataset_N == d].T).T
    return published.mean_over_datasets(right_QBD, n_BD)


def _summary(value_B: np.ndarray) -> dict[str, Any] | None:
    """Value and interval; None where there is no value."""
    if not np.isfinite(value_B[0]):
        return None
    ends = [float(end) for end in reverse_percentile(value_B[0], value_B[1:])]
    low, high = (end if np.isfinite(end) else None for end in ends)
    return {"value": float(value_B[0]), "low": low, "high": high}
