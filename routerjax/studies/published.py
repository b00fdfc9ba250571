"""The field's metrics in a comparison, each with the replicates that pair contestants.

Of argmax; `cost_save` alone is at a setting of its own, chosen on other rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.evaluation import published as field
from routerjax.evaluation.frontier import take
from routerjax.routing.constrained import Quality, Unreachable
from routerjax.routing.policies import Argmax

_TWO = ("apgr", "cpt_50", "cpt_80")
_PRICED = ("cost_save", "pareto_dist", "router_arena_score")
FIELD = ("avg_acc", "gain_at_best", "gap_at_oracle", "perf_gain", *_PRICED, *_TWO)


def field_figures(
    p_RKNM: np.ndarray,
    probabilistic_R: Sequence[bool],
    single_RKN: np.ndarray,
    expected_NM: np.ndarray,
    paid_NM: np.ndarray,
    data: RoutingDataset,
    fold_N: np.ndarray,
    weight_BN: np.ndarray,
) -> tuple[list[dict[str, float] | None], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Every metric of FIELD on the rows with all outcomes.

    The saving setting of a fold is the `Quality` policy that is as accurate as the best single
    target on the out-of-fold rows of the other folds; where none is, the best single target answers
    and nothing is saved.

    Args:
      p_RKNM: [R, K, N, M] P(correct), out of fold.
      probabilistic_R: [R] whether these are probabilities; others have no setting that could save.
      single_RKN: [R, K, N] the best single target by the training rows of the row's fold.
      expected_NM: [N, M] USD per query before the answer; NaN where unknown.
      paid_NM: [N, M] USD per query as paid; NaN where unknown.
      data: The outcomes.
      fold_N: [N] the fold of each row.
      weight_BN: [B, N] of the draws.

    Returns:
      For each contestant what goes with its `cost_save`, means over seeds: "accuracy",
      "best_single_accuracy" and "probability_below_best_single", the share of draws in which it is
      less accurate (ties count half); None without prices or probabilities. And by name the metrics
      [R, K] and their replicates [B, R, K], NaN where there is none.
    """
    n_contestants, n_seeds = p_RKNM.shape[:2]
    none = (len(weight_BN), n_contestants, n_seeds)
    found = {name: (np.full(none[1:], np.nan), np.full(none, np.nan)) for name in FIELD}
    beside: list[dict[str, float] | None] = [None] * n_contestants
    correct_NM = np.asarray(data.correct_NM, np.float64)
    at = np.flatnonzero(~np.isnan(correct_NM).any(axis=1))
    if not len(at):
        return beside, found
    # The rows as they are come first: they go through the same lines as the draws.
    weight_Bn = np.concatenate([np.ones((1, len(at))), weight_BN[:, at]]).astype(np.float64)
    rows = _Rows(weight_Bn, correct_NM[at], expected_NM[at], paid_NM[at], fold_N[at], data, at)
    for r in range(n_contestants):
        sides = []
        for k in range(n_seeds):
            p_nM, single_n = np.asarray(p_RKNM[r, k][at], np.float64), single_RKN[r, k][at]
            values, side = rows.judge(p_nM, single_n, probabilistic_R[r])
            for name, value_B in values.items():
                found[name][0][r, k], found[name][1][:, r, k] = value_B[0], value_B[1:]
            sides.append(side)
        if sides[0]:
            beside[r] = {name: float(np.mean([side[name] for side in sides])) for name in sides[0]}
    return beside, found


class _Rows:
    """The complete rows and their draws.

    Args:
      weight_Bn: [1 + B, n].
      correct_nM: [n, M] outcomes.
      expected_nM: [n, M] USD before the answer.
      paid_nM: [n, M] USD as paid.
      fold_n: [n] folds.
      data: For the names of the datasets.
      at: [n] places of the rows in `data`.
    """

    def __init__(
        self,
        weight_Bn: np.ndarray,
        correct_nM: np.ndarray,
        expected_nM: np.ndarray,
        paid_nM: np.ndarray,
        fold_n: np.ndarray,
        data: RoutingDataset,
        at: np.ndarray,
    ):
        self._correct_nM, self._expected_nM = correct_nM, expected_nM
        self._paid_nM, self._fold_n, self._data, self._at = paid_nM, fold_n, data, at
        self._weight_Bn = weight_Bn
        self._priced = bool(np.isfinite(paid_nM).all() and np.isfinite(expected_nM).all())
        names_n = np.zeros(len(at), int) if data.datasets is None else np.asarray(data.datasets)[at]
        names, dataset_n = np.unique(names_n, return_inverse=True)
        self._member_nD = np.eye(len(names))[dataset_n]
        self._n_BD = weight_Bn @ self._member_nD
        self._oracle_B = self._over_datasets(correct_nM.max(axis=1))
        if self._priced:
            self._singles = self._means(paid_nM), self._means(correct_nM)

    def judge(
        self, p_nM: np.ndarray, single_n: np.ndarray, probabilistic: bool
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """[1 + B] of each metric that there is, and what goes with the saving."""
        choice_n = Argmax().choose(p_nM, self._expected_nM)
        right_n, best_n = take(self._correct_nM, choice_n), take(self._correct_nM, single_n)
        router_B, best_B = self._over_datasets(right_n), self._over_datasets(best_n)
        found = {
            "avg_acc": router_B,
            "gain_at_best": field.gain_at_best(router_B, best_B),
            "gap_at_oracle": field.gap_at_oracle(router_B, self._oracle_B),
            "perf_gain": self._means(right_n) - self._means(best_n),
        }
        if p_nM.shape[1] == 2:
            strong = int(np.bincount(single_n).argmax())
            curve = field.strong_share_curve(
                p_nM[:, strong] - p_nM[:, 1 - strong], self._correct_nM[:, 1 - strong],
                self._correct_nM[:, strong], self._weight_Bn,
            )  # fmt: skip
            found |= {
                "apgr": field.apgr(*curve),
                "cpt_50": field.cpt(*curve, 50),
                "cpt_80": field.cpt(*curve, 80),
            }
        if not self._priced:
            return found, {}
        cost_B, right_B = self._means(take(self._paid_nM, choice_n)), self._means(right_n)
        found |= {
            "pareto_dist": field.pareto_distance(cost_B, right_B, *self._singles),
            "router_arena_score": field.router_arena_score(right_B, cost_B),
        }
        if not probabilistic:
            return found, {}
        saving_n = self._saving_choice(p_nM, single_n)
        saving_B = self._means(take(self._paid_nM, saving_n))
        accuracy_B = self._means(take(self._correct_nM, saving_n))
        lead_B = accuracy_B[1:] - self._means(best_n)[1:]
        below = (lead_B < -1e-12).mean() + 0.5 * (np.abs(lead_B) <= 1e-12).mean()
        single_B = self._means(take(self._paid_nM, single_n))
        found["cost_save"] = field.cost_save(saving_B, single_B)
        return found, {
            "accuracy": float(accuracy_B[0]),
            "best_single_accuracy": float(best_n.mean()),
            "probability_below_best_single": float(below),
        }

    def _saving_choice(self, p_nM: np.ndarray, single_n: np.ndarray) -> np.ndarray:
        """[n] targets at each fold's saving setting."""
        choice_n = single_n.copy()
        queries = [self._data.queries[n] for n in self._at]
        for f in np.unique(self._fold_n):
            test_n, other_n = self._fold_n == f, self._fold_n != f
            if not other_n.any():
                continue
            wanted = take(self._correct_nM[other_n], single_n[other_n]).mean()
            try:
                policy = Quality(float(wanted)).fit(
                    p_nM[other_n], self._expected_nM[other_n], self._correct_nM[other_n],
                    self._paid_nM[other_n],
                )  # fmt: skip
            except Unreachable:  # Nowhere as accurate.
                continue
            keys = [query for query, test in zip(queries, test_n, strict=True) if test]
            choice_n[test_n] = policy.choose(p_nM[test_n], self._expected_nM[test_n], keys=keys)
        return choice_n

    def _means(self, value_nQ: np.ndarray) -> np.ndarray:
        """[1 + B, ...] weighted means over rows."""
        total_B = self._weight_Bn.sum(axis=1)
        return ((self._weight_Bn @ value_nQ).T / total_B).T

    def _over_datasets(self, right_n: np.ndarray) -> Any:
        """[1 + B] AvgAcc."""
        right_BD = self._weight_Bn @ (self._member_nD * right_n[:, None])
        return field.mean_over_datasets(right_BD, self._n_BD)
