"""Does routing beat one model? A router against the constant models chosen on training rows.

A constant model asks one target for every query. The one at equal cost is the most accurate in
training of those that cost no more than the router here; the one at equal accuracy is the cheapest
of those that were at least as accurate in training as the router is here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.evaluation.breakdown import number
from routerjax.evaluation.estimated import Estimated
from routerjax.evaluation.published import ratio
from routerjax.routing.policy_rows import take
from routerjax.stats.bootstrap import reverse_percentile, weighted_means


def one_model(
    outcomes: Estimated,
    choice_N: np.ndarray,
    weight_BN: np.ndarray,
    cost_NM: np.ndarray | None,
    best_single: int,
    trained_M: np.ndarray | None,
    targets: Sequence[str],
    mixture_gain: float | None = None,
    saving: dict[str, Any] | None = None,
    curve: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The comparison, its verdict, and what it would take to tell a router from one model.

    Args:
      outcomes: Of N rows; one at least of a target that the router chose.
      choice_N: [N] the router's targets.
      weight_BN: [1 + B, N] of `value_and_draws`.
      cost_NM: [N, M] USD per query as paid; None where unknown: then every target is a candidate
        at equal cost, and there is none at equal accuracy.
      best_single: Index of the target that was the most accurate on training rows.
      trained_M: [M] accuracy on training rows, NaN for targets of which it is not known. None where
        it is not known of any: then the best single target is the one candidate.
      targets: [M] names.
      mixture_gain: The router's lead over the best mixture of single targets at its cost; None
        where it is not known.
      saving: `field["cost_save_confident"]`.
      curve: What `learning_curve` said of the training rows.

    Returns:
      JSON values. `at_equal_cost` and `at_equal_accuracy` have `target`, its `accuracy` and
      `cost_per_query`, the router's `lead` in accuracy over it and the `saving` against it, each
      "value", "low" and "high" of a 95% interval; None with a reason. `verdict` is
      "more accurate" (at no higher cost, the interval above 0, and no mixture of single targets is
      as accurate), else "cheaper" (a setting that
      calibration rows show to be as accurate costs less than the best single target, the interval
      above 0), else "worse" (less accurate than one model that costs no more, the interval below
      0), else "not shown". `needed_lead` is the lead over the best single target that as many rows
      could tell from 0, and `needed_headroom` its share of the oracle's; None where the router is
      that target. `learning_curve` is `curve`.
    """
    value_NM = outcomes.value_NM
    unknown = trained_M is None or bool(np.isnan(trained_M).all())
    if trained_M is None or unknown:
        trained_M = np.where(np.arange(len(targets)) == best_single, 0.0, np.nan)
    known_M = outcomes.known_M & ~np.isnan(trained_M)
    router_cost = None if cost_NM is None else float(take(cost_NM, choice_N).mean())
    cost_M = np.zeros(len(targets)) if cost_NM is None else cost_NM.mean(axis=0)
    router = outcomes.mean_of(choice_N)
    assert router is not None

    def against(m: int) -> dict[str, Any]:
        single_N = np.full(len(choice_N), m)
        mean_BQ = weighted_means(
            weight_BN, np.stack([take(value_NM, choice_N), value_NM[:, m]], axis=1)
        )
        mean_BQ += outcomes.noise(np.stack([choice_N, single_N]), len(weight_BN) - 1)[:, :2]
        saved = None
        if cost_NM is not None:
            paid_BQ = weighted_means(
                weight_BN, np.stack([take(cost_NM, choice_N), cost_NM[:, m]], axis=1)
            )
            saved = _interval(1 - ratio(paid_BQ[:, 0], paid_BQ[:, 1]))
        return {
            "target": targets[m],
            "accuracy": outcomes.mean_of_target(m),
            "cost_per_query": None if cost_NM is None else float(cost_M[m]),
            "lead": _interval(mean_BQ[:, 0] - mean_BQ[:, 1]),
            "saving": saved,
        }

    reasons: dict[str, str] = {}
    result: dict[str, Any] = dict.fromkeys(("at_equal_cost", "at_equal_accuracy"))
    cheap_M = known_M & (cost_M <= (router_cost or 0.0) * (1 + 1e-9))
    if cheap_M.any():
        result["at_equal_cost"] = against(int(np.where(cheap_M, trained_M, -1.0).argmax()))
    else:
        reasons["one_model/at_equal_cost"] = "no single target costs as little as the router"
    good_M = known_M & (trained_M >= router)
    if cost_NM is None:
        reasons["one_model/at_equal_accuracy"] = "the targets' prices are unknown"
    elif unknown:
        reasons["one_model/at_equal_accuracy"] = (
            "the router does not say how accurate each target was in training: train it anew"
        )
    elif good_M.any():
        result["at_equal_accuracy"] = against(int(np.where(good_M, cost_M, np.inf).argmin()))
    else:
        reasons["one_model/at_equal_accuracy"] = (
            "no single target was as accurate in training as the router is here"
        )
    lead = result["at_equal_cost"] and result["at_equal_cost"]["lead"]
    verdict = "not shown"
    mixed = mixture_gain is not None and mixture_gain <= 0
    if lead and lead["low"] is not None and lead["low"] > 0 and not mixed:
        verdict = "more accurate"
    elif saving and saving["low"] is not None and saving["low"] > 0:
        verdict = "cheaper"
    elif lead and lead["high"] is not None and lead["high"] < 0:
        verdict = "worse"
    result |= {"verdict": verdict, "mixture_gain": mixture_gain}
    result |= {"needed_lead": None, "needed_headroom": None}
    if outcomes.known_M[best_single]:
        best = against(best_single)
        oracle = outcomes.mean_of_oracle()
        assert oracle is not None
        if best["lead"]["low"] is not None:
            result["needed_lead"] = (best["lead"]["high"] - best["lead"]["low"]) / 2
            if oracle - best["accuracy"] > 1e-12:
                result["needed_headroom"] = result["needed_lead"] / (oracle - best["accuracy"])
    if curve is None:
        reasons["one_model/learning_curve"] = "training made none: too few rows with all outcomes"
    return result | {"learning_curve": curve}, reasons


def _interval(value_B: np.ndarray) -> dict[str, float | None]:
    low, high = (float(end) for end in reverse_percentile(value_B[0], value_B[1:]))
    known = np.isfinite([low, high]).all() and np.ptp(value_B) > 0
    return {
        "value": number(value_B[0]),
        "low": low if known else None,
        "high": high if known else None,
    }
