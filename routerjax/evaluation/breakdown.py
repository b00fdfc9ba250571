"""Where a router wins and loses: agreement zones, near misses, win rates, dataset by dataset.

Arguments: p_NM [N, M] predicted P(correct); correct_NM [N, M] 1 or 0, nothing missing but in
`win_rates`; outcomes, 1, 0 or NaN, with what stands for NaN; choice_N [N] the router's targets;
single, the index of the best single target.
"""

from typing import Any

import numpy as np

from routerjax.evaluation.estimated import Estimated
from routerjax.routing.judged import Judged
from routerjax.routing.policy_rows import take
from routerjax.stats.roc_auc import auc_by_group

NEAR = (0.05, 0.02)


def number(value: Any) -> float | None:
    """A plain float, or None where there is no number."""
    value = float(value)
    return value if np.isfinite(value) else None


def mean(value: np.ndarray) -> float | None:
    """The mean as a plain float; None of no rows."""
    return number(value.mean()) if value.size else None


def agreement_zones(correct_NM: np.ndarray, choice_N: np.ndarray, single: int) -> dict[str, Any]:
    """How often the targets agree. Only where they disagree does it matter who answers.

    Returns:
      `all_right`, `disagree` and `all_wrong`, each with `n` and its `share` of the rows; `disagree`
      also with the accuracy of the router, of the best single target and of a uniform choice.
    """
    right_N = correct_NM.sum(axis=1)
    zone_N = np.where(right_N == correct_NM.shape[1], 0, np.where(right_N == 0, 2, 1))
    zones: dict[str, Any] = {
        name: {"n": int((zone_N == i).sum()), "share": mean(zone_N == i)}
        for i, name in enumerate(("all_right", "disagree", "all_wrong"))
    }
    split_N = zone_N == 1
    zones["disagree"] |= {
        "router_accuracy": mean(take(correct_NM, choice_N)[split_N]),
        "best_single_accuracy": mean(correct_NM[split_N, single]),
        "random_accuracy": mean(correct_NM[split_N]),
    }
    return zones


def near_misses(
    p_NM: np.ndarray, outcomes: Estimated, choice_N: np.ndarray, single: int
) -> list[dict[str, Any]] | None:
    """Rows on which the two highest probabilities hardly differ.

    Returns:
      For each gap of 0.05 and 0.02 between the two highest p: `gap`, `n`, `share`,
      `router_accuracy` and `best_single_accuracy` there. None with a single target.
    """
    if p_NM.shape[1] < 2:
        return None
    top_N2 = np.partition(p_NM, -2, axis=1)[:, -2:]
    gap_N, value_NM = top_N2[:, 1] - top_N2[:, 0], outcomes.value_NM
    return [
        {
            "gap": gap,
            "n": int((gap_N < gap).sum()),
            "share": mean(gap_N < gap),
            "router_accuracy": mean(take(value_NM, choice_N)[gap_N < gap]),
            "best_single_accuracy": mean(value_NM[gap_N < gap, single]),
        }
        for gap in NEAR
    ]


def win_rates(p_NM: np.ndarray, correct_NM: np.ndarray) -> dict[str, list[list[Any]]]:
    """P(p_A > p_B | A right, B wrong): how often the router sees which of two targets is right.

    NaN in `correct_NM` is not observed; a row counts for a pair where both are observed.

    Returns:
      `probability` and `n`, both [M][M] with A in rows and B in columns; ties of p count half. The
      probability is None where there are no such rows, on the diagonal above all.
    """
    n_targets = p_NM.shape[1]
    wins_MM, n_MM = np.zeros((2, n_targets, n_targets))
    right_NM, wrong_NM = correct_NM == 1, correct_NM == 0
    for a in range(n_targets):
        rows_N = right_NM[:, a]
        other_NM, mine_N1 = p_NM[rows_N], p_NM[rows_N, a, None]
        won_NM = (mine_N1 > other_NM) + 0.5 * (mine_N1 == other_NM)
        wins_MM[a] = (won_NM * wrong_NM[rows_N]).sum(axis=0)
        n_MM[a] = wrong_NM[rows_N].sum(axis=0)
    share_MM = np.divide(wins_MM, n_MM, out=np.full_like(wins_MM, np.nan), where=n_MM > 0)
    return {
        "probability": [[number(share) for share in row] for row in share_MM],
        "n": n_MM.astype(int).tolist(),
    }


def per_dataset(
    p_NM: np.ndarray,
    rows: Judged,
    outcomes: Estimated,
    choice_N: np.ndarray,
    single_N: np.ndarray,
) -> list[dict[str, Any]]:
    """Accuracies and AUC of each dataset by itself.

    Args:
      p_NM, choice_N: As above.
      rows: [N] queries, and the names of their datasets.
      outcomes: Of the rows.
      single_N: [N] index of the best single target.

    Returns:
      A dict for each dataset, by name: `n`, `n_complete` (rows with every outcome observed),
      `accuracy` per target, `router_accuracy`, `best_single_accuracy`, `oracle_accuracy`, `auc` per
      target (on all observed rows) and `mean_auc` over the targets that have one. Where outcomes
      are missing, also `n_known`, rows on which the outcome of the router's choice is known.
    """
    assert rows.by_dataset is not None
    (names, group_N), targets = rows.by_dataset, rows.data.targets
    auc_MG = auc_by_group(p_NM, rows.correct_NM, group_N, len(names))
    at_G = np.split(np.argsort(group_N, kind="stable"), np.cumsum(np.bincount(group_N))[:-1])
    table = []
    for g, (name, at) in enumerate(zip(names, at_G, strict=True)):
        value_nM, seen_nM = outcomes.value_NM[at], outcomes.seen_NM[at]
        auc_M = auc_MG[~np.isnan(auc_MG[:, g]), g]
        router_n, single_n = (choice_N[at], single_N[at])
        entry = {
            "dataset": name,
            "n": len(at),
            "n_complete": int(seen_nM.all(axis=1).sum()),
            "accuracy": {t: _mean(value_nM[:, m], seen_nM[:, m]) for m, t in enumerate(targets)},
            "router_accuracy": _mean(take(value_nM, router_n), take(seen_nM, router_n)),
            "best_single_accuracy": _mean(take(value_nM, single_n), take(seen_nM, single_n)),
            "oracle_accuracy": _mean(outcomes.oracle_N[at], seen_nM),
            "auc": {t: number(auc_MG[m, g]) for m, t in enumerate(targets)},
            "mean_auc": mean(auc_M),
        }
        if not outcomes.seen_NM.all():
            entry["n_known"] = int(take(seen_nM, router_n).sum())
        table.append(entry)
    return table


def _mean(value_N: np.ndarray, seen: np.ndarray) -> float | None:
    """The mean; None where nothing is observed."""
    return mean(value_N) if seen.any() else None
