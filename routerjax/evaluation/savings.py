"""What routing costs and saves. Every saving stands beside the accuracy it was had at.

All of it is of the same queries; what is not observed of them is estimated (evaluation/estimated).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.evaluation.breakdown import number
from routerjax.evaluation.estimated import Estimated
from routerjax.evaluation.frontier import (
    accuracy_at_cost,
    at_choices,
    cost_at_accuracy,
    hull,
    tolerance_choices,
    value_choices,
)
from routerjax.routing.judged import Judged
from routerjax.routing.policy_rows import take

KEYS = (
    "cost",
    "cost_router",
    "cost_best_single",
    "cost_oracle",
    "most_expensive",
    "cost_most_expensive",
    "most_expensive_accuracy",
    "cost_saving_vs_most_expensive",
    "cost_saving_vs_best_single",
    "savings_are_at_accuracy",
    "zero_router_saving_at_equal_accuracy",
    "zero_router",
    "cost_coverage",
    "frontier",
    "oracle_share",
)


def cost_metrics(
    rows: Judged,
    outcomes: Estimated,
    p_NM: np.ndarray,
    choice_N: np.ndarray,
    single: int,
    policy: str,
    tolerances: Sequence[float],
) -> tuple[dict[str, Any], dict[str, str]]:
    """All of `KEYS` but "cost_coverage".

    Args:
      rows: [N] with every cost known; at least one.
      outcomes: Of the rows, one at least of a target that the router chose.
      p_NM, choice_N, single: As in headline.py.
      policy: Its name, as a flag writes it.
      tolerances: The settings of the tolerance policy that the frontier shows; 0 and 1 are added.

    Returns:
      The metrics, and the reason for each that is None.
    """
    targets, value_NM, cost_NM = rows.data.targets, outcomes.value_NM, rows.paid_NM
    assert cost_NM is not None and rows.expected_NM is not None
    reasons: dict[str, str] = {}
    cost_M, accuracy_M = cost_NM.mean(axis=0), value_NM.mean(axis=0)
    cost = float(take(cost_NM, choice_N).mean())
    accuracy = outcomes.mean_of(choice_N)
    assert accuracy is not None
    dear = dearest(cost_NM, outcomes)
    oracle_NM = outcomes.oracle_NM(cost_NM)

    metrics: dict[str, Any] = {
        "cost": _by_target(targets, cost_M),
        "cost_router": cost,
        "cost_best_single": float(cost_M[single]),
        "cost_oracle": float((oracle_NM * cost_NM).sum(axis=1).mean()),
        "most_expensive": targets[dear],
        "cost_most_expensive": float(cost_M[dear]),
        "most_expensive_accuracy": outcomes.mean_of_target(dear),
        "cost_saving_vs_most_expensive": _saving(cost, float(cost_M[dear])),
        "cost_saving_vs_best_single": _saving(cost, float(cost_M[single])),
        "savings_are_at_accuracy": {
            "router": accuracy,
            "most_expensive": outcomes.mean_of_target(dear),
            "best_single": outcomes.mean_of_target(single),
        },
        "oracle_share": _by_target(targets, oracle_NM.mean(axis=0)),
    }
    for name in ("most_expensive", "best_single"):
        if metrics["savings_are_at_accuracy"][name] is None:
            metrics[f"cost_saving_vs_{name}"] = None
            reasons[f"cost_saving_vs_{name}"] = "no outcome of that target is observed"
        elif metrics[f"cost_saving_vs_{name}"] is None:
            reasons[f"cost_saving_vs_{name}"] = "it costs nothing, so nothing can be saved"

    at = np.flatnonzero(outcomes.known_M)
    singles_M2 = np.stack([cost_M, accuracy_M], axis=1)[at]
    singles_V2 = hull(singles_M2)
    saving, metrics["zero_router"], reason = _zero_router(singles_V2, cost, accuracy)
    metrics["zero_router_saving_at_equal_accuracy"] = saving
    if reason is not None:
        reasons["zero_router_saving_at_equal_accuracy"] = reason

    def points(choice_SN: np.ndarray) -> np.ndarray:
        return at_choices(choice_SN, cost_NM, value_NM).mean(axis=0)

    taus = sorted({0.0, 1.0, *map(float, tolerances)})
    swept_T2 = points(tolerance_choices(p_NM, rows.expected_NM, taus, rows.allowed_NM))
    metrics["frontier"] = {
        # By the worth of a right answer, the best of all policies where p is calibrated; None for
        # argmax.
        "value": [
            {"usd": number(usd)} | _point(points(choice_N[None])[0])
            for usd, choice_N in value_choices(p_NM, rows.expected_NM, rows.allowed_NM)
        ],
        "router": [{"tau": tau} | _point(xy) for tau, xy in zip(taus, swept_T2, strict=True)],
        "chosen": {"policy": policy} | _point((cost, accuracy)),
        "singles": [
            {"target": targets[m]} | _point(xy) for m, xy in zip(at, singles_M2, strict=True)
        ],
        "zero_router": [_point(xy) for xy in singles_V2],
        "oracle": _point((metrics["cost_oracle"], outcomes.oracle_N.mean())),
        "random": _point(singles_M2.mean(axis=0)),
    }
    return metrics, reasons


def dearest(cost_NM: np.ndarray, outcomes: Estimated) -> int:
    """Index of the target of the highest mean cost, of those with any outcome."""
    return int(np.where(outcomes.known_M, cost_NM.mean(axis=0), -np.inf).argmax())


def cost_coverage(
    field: dict[str, Any], cost: dict[str, float]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The two AIQ of `published_report`, and the costs (USD per query) they are counted over.

    The second dict has the reason where the AIQ are None.
    """
    coverage: dict[str, Any] = {
        name: field[key] and field[key]["value"]
        for name, key in (("router", "aiq"), ("zero_router", "aiq_zero_router"))
    }
    why = {"cost_coverage": "all targets cost the same, so accuracy has no cost range"}
    ends = {"from_cost_per_query": min(cost.values()), "to_cost_per_query": max(cost.values())}
    return coverage | ends, {} if field["aiq"] else why


def _zero_router(
    hull_V2: np.ndarray, cost: float, accuracy: float
) -> tuple[float | None, dict[str, Any], str | None]:
    """The saving at equal accuracy, the numbers behind it, and why there is no saving."""
    equal_cost = cost_at_accuracy(hull_V2, accuracy)
    at_cost = accuracy_at_cost(hull_V2, cost)
    top = float(hull_V2[-1, 1])
    behind = {
        "accuracy": accuracy,
        "cost_router": cost,
        "cost_zero_router": number(equal_cost),
        "accuracy_zero_router_at_equal_cost": number(at_cost),
        "accuracy_gain_at_equal_cost": number(accuracy - at_cost),
        "top_accuracy": top,
    }
    if np.isnan(equal_cost):
        return None, behind, (
            f"the router's accuracy, {accuracy:.4f}, is above that of every mixture of single "
            f"targets, {top:.4f} at most: there is no equal accuracy to compare costs at"
        )  # fmt: skip
    saving = _saving(cost, equal_cost)
    return saving, behind, "the mixture costs nothing" if saving is None else None


def _saving(cost: float, other: float) -> float | None:
    return 1 - cost / other if other > 0 else None


def _point(point: Any) -> dict[str, float]:
    return {"accuracy": float(point[1]), "cost_per_query": float(point[0])}


def _by_target(targets: Sequence[str], value_M: np.ndarray) -> dict[str, float]:
    return dict(zip(targets, map(float, value_M), strict=True))
