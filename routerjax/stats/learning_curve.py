"""What more rows of outcomes would bring: a ridge regression on growing shares of the rows.

The regression stands in for a router, because it is solved in closed form: its lead over the best
single target is measured out of fold at each number of rows, and carried on to more rows by
lead(n) = a - b / sqrt(n), the rate at which the error of a regression falls.

Axes: N rows, C features, M targets, F folds, S shares of the rows, G penalties.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.data import groups as grouping
from routerjax.stats.intervals import ratio_interval

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # Of the rows that a fold is trained on.
N_FOLDS = 5
FEWEST = 100  # Rows with all outcomes, below which there is no curve.
_MOST_ROWS, _MOST_FEATURES = 20_000, 256
_PENALTIES = np.geomspace(1e-2, 1e4, 13)  # Of the mean eigenvalue of the features' covariance.


def learning_curve(
    x_NC: np.ndarray, correct_NM: np.ndarray, groups: Sequence[str], seed: int = 0
) -> dict[str, Any] | None:
    """The lead over the best single target by the number of rows, as JSON values.

    Args:
      x_NC: [N, C] features. Of many the 256 of the largest variance count.
      correct_NM: [N, M] 1, 0 or NaN; rows without all outcomes are left out, and of many rows
        20,000 kept.
      groups: [N] rows of one group stay together.
      seed: Of the folds, and of which rows come first.

    Returns:
      `rows`, how many were learnt from, and for each of these `lead` over the best single target of
      the same rows in accuracy, `low` and `high` of its 95% interval over groups; `headroom`, the
      oracle's lead; `at_double`, the lead expected of twice the rows, and `ceiling` of any number.
      None where there is one target, or under FEWEST rows or N_FOLDS groups with all outcomes.
    """
    at = np.flatnonzero(~np.isnan(correct_NM).any(axis=1))
    at = np.sort(np.random.default_rng(seed).permutation(at)[:_MOST_ROWS])
    groups = [groups[n] for n in at.tolist()]
    if correct_NM.shape[1] < 2 or len(at) < FEWEST or len(set(groups)) < N_FOLDS:
        return None
    y_NM = np.asarray(correct_NM[at], np.float64)
    x_NC = np.asarray(x_NC[at], np.float64)
    widest = np.sort(np.argsort(-x_NC.var(axis=0), kind="stable")[:_MOST_FEATURES])
    x_NC = x_NC[:, widest]
    fold_N = grouping.folds(groups, N_FOLDS, seed)
    # Whole groups come in an order of their own, so that each share holds the smaller ones.
    _, group_N = grouping.numbered(groups)
    order_N = np.argsort(np.random.default_rng(seed).permutation(group_N.max() + 1)[group_N])
    lead_SN = np.zeros((len(SHARES), len(at)))
    for f in range(N_FOLDS):
        test_N = fold_N == f
        train = order_N[fold_N[order_N] != f]
        for s, share in enumerate(SHARES):
            some = train[: max(round(share * len(train)), 2)]
            choice_n = _ridge(x_NC[some], y_NM[some], x_NC[test_N]).argmax(axis=1)
            single = y_NM[some].mean(axis=0).argmax()
            right_n = np.take_along_axis(y_NM[test_N], choice_n[:, None], axis=1)[:, 0]
            lead_SN[s, test_N] = right_n - y_NM[test_N, single]
    rows_S = [round(share * len(at) * (1 - 1 / N_FOLDS)) for share in SHARES]
    lead_S = lead_SN.mean(axis=1)
    ends_S2 = np.array([ratio_interval(lead_N, 1.0, groups) for lead_N in lead_SN])
    slope, ceiling = np.polyfit(np.array(rows_S) ** -0.5, lead_S, 1, w=np.sqrt(rows_S))
    if slope > 0:  # By chance: more rows do not harm.
        slope, ceiling = 0.0, np.average(lead_S, weights=rows_S)
    single = y_NM.mean(axis=0).argmax()
    return {
        "rows": rows_S,
        "lead": lead_S.tolist(),
        "low": ends_S2[:, 0].tolist(),
        "high": ends_S2[:, 1].tolist(),
        "headroom": float((y_NM.max(axis=1) - y_NM[:, single]).mean()),
        "ceiling": float(ceiling),
        "at_double": float(ceiling + slope * (2 * rows_S[-1]) ** -0.5),
    }


def _ridge(x_NC: np.ndarray, y_NM: np.ndarray, test_nC: np.ndarray) -> np.ndarray:
    """[n, M] predictions at the penalty of the least generalised cross-validation error."""
    x_mean_C, y_mean_M = x_NC.mean(axis=0), y_NM.mean(axis=0)
    x_NC, y_NM = x_NC - x_mean_C, y_NM - y_mean_M
    n = len(x_NC)
    value_C, vector_CC = np.linalg.eigh(x_NC.T @ x_NC / n)
    value_C = np.maximum(value_C, 0)
    cross_CM = vector_CC.T @ (x_NC.T @ y_NM) / n
    kept_GC = value_C / (value_C + _PENALTIES[:, None] * (value_C.mean() or 1.0) / n**0.5)
    weight_GCM = (
        np.where(value_C > 1e-9 * value_C.max(), kept_GC / np.maximum(value_C, 1e-300), 0)[
            :, :, None
        ]
        * cross_CM
    )
    # |y - z w|^2 / n in the eigenvectors' basis.
    error_G = (
        np.square(y_NM).mean(axis=0).sum()
        - 2 * (weight_GCM * cross_CM).sum(axis=(1, 2))
        + (np.square(weight_GCM) * value_C[:, None]).sum(axis=(1, 2))
    ) / np.square(1 - np.minimum(kept_GC.sum(axis=1) + 1, n - 1) / n)
    return (test_nC - x_mean_C) @ vector_CC @ weight_GCM[error_G.argmin()] + y_mean_M
