"""Whether decisions stay on copies of the queries that mean the same (`data.perturb`).

The share of decisions that stay is RouterArena's robustness. A copy is routed as any query is: by
its own text, whose length is part of its expected cost. A policy that mixes two settings by the
hash of the text (`budget`, `quality`) decides anew for each copy, which counts as well.
"""

from typing import Any, NamedTuple

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.data.perturb import EDITS, origins
from routerjax.evaluation.breakdown import mean
from routerjax.evaluation.estimated import Estimated
from routerjax.evaluation.one_model import interval
from routerjax.routing.policy_rows import take
from routerjax.stats.bootstrap import weighted_means
from routerjax.stats.roc_auc import auc_per_target


class Answers(NamedTuple):
    """What a router says of N rows.

    Attributes:
      p_NM: [N, M] P(correct), as the policy sees it.
      before_NM: [N, M] the same before calibration, by which AUC is counted.
      choice_N: [N] the targets that the policy names.
    """

    p_NM: np.ndarray
    before_NM: np.ndarray
    choice_N: np.ndarray


def robustness(
    data: RoutingDataset,
    answers: Answers,
    copies: RoutingDataset,
    copy_answers: Answers,
    weight_BC: np.ndarray,
) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """How far the decisions and probabilities of copies are from those of their queries.

    Args:
      data: N queries and their outcomes.
      answers: Of these.
      copies: C rows that `perturb` made of some of them; targets in the same order.
      copy_answers: Of the copies.
      weight_BC: [1 + B, C] of `value_and_draws`, by the groups of the copies.

    Returns:
      JSON values, and the reason for each that is None. For each kind of edit, and for `all` copies
      together: `n` copies; `unchanged`, the share whose target is that of their query;
      `accuracy_lost`, the accuracy on their queries less that with the copies' targets, where
      outcomes are missing an estimate as any accuracy; each "value", "low" and "high" of a 95%
      interval. `auc_lost`: the mean over targets of the AUC on their queries less that on the
      copies; `p_moved`: the mean distance between the P(correct) of the two.

    Raises:
      ValueError: A copy is of none of the queries.
    """
    if not len(copies):
        return None, {"robustness": "none of the edits applies to these queries"}
    kinds, names = zip(*origins(copies), strict=True)
    place = {name: n for n, name in enumerate(data.ids)}
    stray = next((name for name in names if name not in place), None)
    if stray is not None:
        raise ValueError(f"copies: expected copies of the queries of data, got one of {stray!r}")
    origin_C, kind_C = np.array([place[name] for name in names]), np.array(kinds)
    correct_NM = np.asarray(data.correct_NM, np.float64)
    outcomes = Estimated(correct_NM, data.datasets)
    choice_N, choice_C = answers.choice_N, copy_answers.choice_N
    lost_C = take(outcomes.value_NM, choice_N)[origin_C]
    lost_C = lost_C - take(outcomes.value_NM[origin_C], choice_C)
    mean_C2 = np.stack([choice_C == choice_N[origin_C], lost_C], axis=1)
    seen_C = take(outcomes.seen_NM, choice_N)[origin_C], take(outcomes.seen_NM[origin_C], choice_C)

    def entry(in_C: np.ndarray, noise_B: np.ndarray) -> dict[str, Any]:
        """Of some of the copies; noise_B is of the sum of what each loses."""
        mean_B2 = weighted_means(weight_BC[:, in_C], mean_C2[in_C])
        mean_B2[:, 1] += noise_B / in_C.sum()
        mean_B2 = mean_B2[np.isfinite(mean_B2[:, 0])]  # Where a draw has any of these copies.
        known = all(each_C[in_C].any() for each_C in seen_C)
        auc_M, copy_auc_M = (
            auc_per_target(before_CM, correct_NM[origin_C[in_C]])
            for before_CM in (answers.before_NM[origin_C[in_C]], copy_answers.before_NM[in_C])
        )
        moved_CM = np.abs(answers.p_NM[origin_C] - copy_answers.p_NM)[in_C]
        lost_M = auc_M - copy_auc_M
        return {
            "n": int(in_C.sum()),
            "unchanged": interval(mean_B2[:, 0], 0, 1),
            "accuracy_lost": interval(mean_B2[:, 1]) if known else None,
            "auc_lost": mean(lost_M[~np.isnan(lost_M)]),
            "p_moved": mean(moved_CM),
        }

    result: dict[str, Any] = dict.fromkeys(EDITS)
    total_B = np.zeros(len(weight_BC))
    for kind in dict.fromkeys(kinds):
        in_C = kind_C == kind
        # The noise is of choices for all queries: those without such a copy cancel out.
        other_N = choice_N.copy()
        other_N[origin_C[in_C]] = choice_C[in_C]
        noise_BQ = outcomes.noise(np.stack([choice_N, other_N]), len(weight_BC) - 1)
        noise_B = len(data) * (noise_BQ[:, 0] - noise_BQ[:, 1])
        total_B += noise_B
        result[kind] = entry(in_C, noise_B)
    result["all"] = entry(np.ones(len(copies), bool), total_B)
    reasons = {}
    for kind, value in result.items():
        if value is None:
            reasons[f"robustness/{kind}"] = "there are no such copies of these queries"
            continue
        why = {
            "accuracy_lost": "no outcome of the targets chosen is observed",
            "auc_lost": "no target has an AUC on these queries",
        }
        reasons |= {f"robustness/{kind}/{key}": why[key] for key in why if value[key] is None}
    return result, reasons
