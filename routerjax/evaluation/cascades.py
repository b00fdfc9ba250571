"""Does a cascade beat routing at equal cost? Measured on rows whose confidences are recorded.

The router was trained on other rows; what confidences say is fitted on four folds of whole groups
of these and applied to the fifth, so that no outcome has a part in its own decision. Routing and
cascade are swept over the same worths of a right answer, and each may mix its settings by a coin:
what is compared is their hulls (`frontier.hull`). All targets that a cascade asks are paid.
"""

from typing import Any

import numpy as np

from routerjax.data import groups as grouping
from routerjax.evaluation.estimated import Estimated
from routerjax.evaluation.frontier import hull
from routerjax.evaluation.one_model import interval
from routerjax.routing.cascades.fit import cascade_of
from routerjax.routing.judged import Judged
from routerjax.routing.policies import Value, cost_range
from routerjax.routing.policy_rows import PolicyInputs, take
from routerjax.stats.bootstrap import weighted_means

N_FOLDS = 5
# Worths of a right answer, in units of the range of the costs.
_WORTHS = np.array([0.0, *np.geomspace(1e-4, 1e3, 22)])


def cascade_metrics(
    p_NM: np.ndarray, rows: Judged, outcomes: Estimated, weight_BN: np.ndarray
) -> tuple[dict[str, Any] | None, str]:
    """A cascade against routing.

    Args:
      p_NM: [N, M] predicted P(correct).
      rows: [N] with every cost known. Where an outcome is missing its confidence is as well, and
        the cascade learns nothing by asking.
      outcomes: Of the rows.
      weight_BN: [1 + B, N] of `value_and_draws`.

    Returns:
      JSON values, or None and the reason. `settings` has for each worth of a right answer (`usd`)
      the cascade's `accuracy` and `cost_per_query`, `routing_accuracy` at that cost, the mean
      number of targets asked (`asked`) and the share of queries on which it is more than one
      (`asked_several`). `lead` is the cascade's in accuracy, the mean over the costs of routing at
      these worths, with "low" and "high" of a 95% interval over groups. `verdict` is "beats routing
      at equal cost" (the interval lies above 0), "worse" (below) or "not shown". `informative` has
      for each target the share of folds in which its confidence was found to say anything.
    """
    data = rows.data
    if data.confidences_NM is None or np.isnan(data.confidences_NM).all():
        return None, "no confidence of any answer is recorded"
    if len(set(data.groups)) < N_FOLDS:
        return None, f"it is fitted on folds, and there are fewer than {N_FOLDS} groups of queries"
    assert rows.expected_NM is not None and rows.paid_NM is not None
    confidence_NM = np.asarray(data.confidences_NM, np.float64)
    inputs = PolicyInputs.checked(p_NM, rows.expected_NM, rows.allowed_NM)
    low, high = cost_range(inputs)
    usd_S = _WORTHS * ((high - low) or 1.0)

    fold_N = grouping.folds(data.groups, N_FOLDS, 0)
    order_SNM = np.zeros((len(usd_S), *p_NM.shape), np.int64)
    answer_SN = np.zeros(order_SNM.shape[:2], np.int64)
    informative_M = np.zeros(len(data.targets))
    for k in range(N_FOLDS):
        fit, held = np.flatnonzero(fold_N != k), np.flatnonzero(fold_N == k)
        cascade = cascade_of(
            data.targets, p_NM[fit], confidence_NM[fit], rows.correct_NM[fit],
            [data.groups[i] for i in fit],
        )  # fmt: skip
        informative_M += (cascade.weight_M != 0) / N_FOLDS
        for s, usd in enumerate(usd_S):
            order_SNM[s, held], answer_SN[s, held] = cascade.run(
                inputs.p_NM[held], inputs.cost_NM[held], confidence_NM[held], usd,
                inputs.allowed_NM[held],
            )  # fmt: skip
    routed_SN = np.stack([
        Value(usd).choose(inputs.p_NM, inputs.cost_NM, inputs.allowed_NM) for usd in usd_S
    ])  # fmt: skip
    asked_SNM = order_SNM > 0

    choice_QN = np.concatenate([answer_SN, routed_SN])
    costs = [(asked_NM * rows.paid_NM).sum(axis=1) for asked_NM in asked_SNM]
    costs += [take(rows.paid_NM, choice_N) for choice_N in routed_SN]
    values = [take(outcomes.value_NM, choice_N) for choice_N in choice_QN]
    mean_BQ = weighted_means(weight_BN, np.stack([*costs, *values], axis=1))
    mean_BQ[:, len(costs) :] += outcomes.noise(choice_QN, len(weight_BN) - 1)[:, :-1]
    # A draw without a single row has no means.
    mean_BQ = mean_BQ[np.isfinite(mean_BQ).all(axis=1)]
    cascade_BS2, routing_BS2 = np.moveaxis(
        mean_BQ.reshape(len(mean_BQ), 2, 2, len(usd_S)), (2, 1), (0, 3)
    )
    cost_C = np.unique(routing_BS2[0, :, 0])
    lead_B = _accuracies(cascade_BS2, cost_C) - _accuracies(routing_BS2, cost_C)
    lead = interval(lead_B)
    verdict = "not shown"
    if lead["low"] is not None and lead["high"] is not None:
        verdict = "worse" if lead["high"] < 0 else verdict
        verdict = "beats routing at equal cost" if lead["low"] > 0 else verdict
    routing_V2 = hull(routing_BS2[0])
    settings = [
        {
            "usd": float(usd),
            "accuracy": float(accuracy),
            "cost_per_query": float(cost),
            "routing_accuracy": float(np.interp(cost, *routing_V2.T)),
            "asked": float(asked_NM.sum(axis=1).mean()),
            "asked_several": float((asked_NM.sum(axis=1) > 1).mean()),
        }
        for usd, (cost, accuracy), asked_NM in zip(usd_S, cascade_BS2[0], asked_SNM, strict=True)
    ]
    informative = dict(zip(data.targets, informative_M.round(6).tolist(), strict=True))
    return {
        "verdict": verdict, "lead": lead, "informative": informative, "settings": settings
    }, ""  # fmt: skip


def _accuracies(points_BS2: np.ndarray, cost_C: np.ndarray) -> np.ndarray:
    """[B] the mean over costs of the best accuracy that mixtures of the settings reach at each."""
    return np.array([np.interp(cost_C, *hull_V2.T).mean() for hull_V2 in hull(points_BS2)])
