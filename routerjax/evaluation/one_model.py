"""Does routing beat one model? A router against the constant models chosen on training rows.

A constant model asks one target for every query. The one at equal cost is the most accurate in
training of those that cost no more than the router here, and beside it stands the best mixture in
training at that cost, a coin between two targets; the one at equal accuracy is the cheapest of
those that were at least as accurate in training as the router is here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.evaluation.breakdown import number
from routerjax.evaluation.estimated import Estimated
from routerjax.evaluation.frontier import hull
from routerjax.evaluation.published import ratio
from routerjax.routing.policy_rows import take
from routerjax.stats.bootstrap import reverse_percentile, weighted_means
from routerjax.stats.intervals import LEVEL


def one_model(
    outcomes: Estimated,
    choice_N: np.ndarray,
    weight_BN: np.ndarray,
    cost_NM: np.ndarray | None,
    best_single: int,
    trained_M: np.ndarray | None,
    targets: Sequence[str],
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
      saving: `field["cost_save_confident"]`.
      curve: What `learning_curve` said of the training rows.

    Returns:
      JSON values. `at_equal_cost` and `at_equal_accuracy` have `target`, its `accuracy` and
      `cost_per_query`, the router's `lead` in accuracy over it and the `saving` against it, each
      "value", "low" and "high" of a 95% interval; None with a reason. `mixture` has the same of the
      mixture of targets that was best in training at the router's cost, `shares` for `target`; None
      without prices or accuracies in training. `verdict` is "more accurate" (than target and
      mixture at equal cost, the intervals above 0), else "cheaper" (a setting that calibration rows
      show to be as accurate costs less than the best single target, the interval above 0), else
      "worse" (less accurate than one model that costs no more, the interval below 0), else "not
      shown". `needed_lead` is the lead over the best single target that as many rows could tell
      from 0, and `needed_headroom` its share of the oracle's; None where the router is that target.
      `learning_curve` is `curve`.
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

    def against(share_of: dict[int, float]) -> dict[str, Any]:
        """Of always one target, or of several by a coin."""
        rivals, share_R = list(share_of), np.array(list(share_of.values()))
        choices_QN = np.stack([choice_N, *(np.full(len(choice_N), m) for m in rivals)])
        columns = [take(value_NM, choice_N), *(value_NM[:, m] for m in rivals)]
        mean_BQ = weighted_means(weight_BN, np.stack(columns, axis=1))
        mean_BQ += outcomes.noise(choices_QN, len(weight_BN) - 1)[:, :-1]
        saved = None
        if cost_NM is not None:
            columns = [take(cost_NM, choice_N), cost_NM[:, rivals] @ share_R]
            paid_B2 = weighted_means(weight_BN, np.stack(columns, axis=1))
            saved = interval(1 - ratio(paid_B2[:, 0], paid_B2[:, 1]))
        return {
            "accuracy": float(mean_BQ[0, 1:] @ share_R),
            "cost_per_query": None if cost_NM is None else float(cost_M[rivals] @ share_R),
            "lead": interval(mean_BQ[:, 0] - mean_BQ[:, 1:] @ share_R),
            "saving": saved,
        }

    reasons: dict[str, str] = {}
    result: dict[str, Any] = dict.fromkeys(("at_equal_cost", "mixture", "at_equal_accuracy"))
    cheap_M = known_M & (cost_M <= (router_cost or 0.0) * (1 + 1e-9))
    if cheap_M.any():
        m = int(np.where(cheap_M, trained_M, -1.0).argmax())
        result["at_equal_cost"] = {"target": targets[m]} | against({m: 1.0})
        if router_cost is not None and not unknown:
            at = np.flatnonzero(known_M)
            share_of = _best_mixture(cost_M[at], trained_M[at], router_cost)
            share_of = {int(at[i]): share for i, share in share_of.items()}
            shares = {targets[m]: share for m, share in share_of.items()}
            result["mixture"] = {"shares": shares} | against(share_of)
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
        m = int(np.where(good_M, cost_M, np.inf).argmin())
        result["at_equal_accuracy"] = {"target": targets[m]} | against({m: 1.0})
    else:
        reasons["one_model/at_equal_accuracy"] = (
            "no single target was as accurate in training as the router is here"
        )
    lead = result["at_equal_cost"] and result["at_equal_cost"]["lead"]
    verdict = "not shown"
    leads = [lead, result["mixture"]["lead"]] if result["mixture"] else [lead]
    if all(each and each["low"] is not None and each["low"] > 0 for each in leads):
        verdict = "more accurate"
    elif saving and saving["low"] is not None and saving["low"] > 0:
        verdict = "cheaper"
    elif lead and lead["high"] is not None and lead["high"] < 0:
        verdict = "worse"
    result |= {"verdict": verdict, "needed_lead": None, "needed_headroom": None}
    if outcomes.known_M[best_single]:
        best = against({best_single: 1.0})
        oracle = outcomes.mean_of_oracle()
        assert oracle is not None
        if best["lead"]["low"] is not None:
            result["needed_lead"] = (best["lead"]["high"] - best["lead"]["low"]) / 2
            if oracle - best["accuracy"] > 1e-12:
                result["needed_headroom"] = result["needed_lead"] / (oracle - best["accuracy"])
    if curve is None:
        reasons["one_model/learning_curve"] = "training made none: too few rows with all outcomes"
    return result | {"learning_curve": curve}, reasons


def _best_mixture(cost_M: np.ndarray, trained_M: np.ndarray, cost: float) -> dict[int, float]:
    """The share of each target in the mixture that was best in training at a cost, or at less.

    The cost is that of some target or above.
    """
    hull_V2 = hull(np.stack([cost_M, trained_M], axis=1))
    of_V = [int(((cost_M == c) & (trained_M == a)).argmax()) for c, a in hull_V2]
    place = float(np.interp(cost, hull_V2[:, 0], np.arange(len(of_V))))
    below, share = int(place), place - int(place)
    return {of_V[below]: 1 - share} | ({of_V[below + 1]: share} if share else {})


def interval(value_B: np.ndarray, *limits: float) -> dict[str, float | None]:
    """A value with its 95% interval, as JSON: "value", "low" and "high", None where there is none.

    Args:
      value_B: [1 + B] the value, then its replicates.
      limits: The smallest and the largest that the ends may be.
    """
    low, high = (float(e) for e in reverse_percentile(value_B[0], value_B[1:], LEVEL, *limits))
    known = np.isfinite([low, high]).all() and np.ptp(value_B) > 0
    return {
        "value": number(value_B[0]),
        "low": low if known else None,
        "high": high if known else None,
    }
