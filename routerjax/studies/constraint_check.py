"""Whether Budget and Quality hold their mean on rows that they were not fitted on.

Rows with out-of-fold predictions are split into folds; a policy is fitted on all folds but one and
decides on that one; the rows of all folds are then judged together. Many such splits show how often
the mean is the one asked for. The predictions stay the same: the policy is tested, not the router.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.data import groups as grouping
from routerjax.data.dataset import RoutingDataset
from routerjax.features.feature_map import Stores
from routerjax.features.recipe import Recipe
from routerjax.routing.constrained import Budget, Quality, Unreachable
from routerjax.routing.costs import CostModel
from routerjax.routing.fit import out_of_fold
from routerjax.routing.judged import Judged
from routerjax.routing.policy_rows import take
from routerjax.runtime.files import Folder
from routerjax.stats.intervals import LEVEL, ratio_interval
from routerjax.trunk.config import TrunkConfig

# Means that the policies are asked to hold, as shares of the way from the lowest to the highest.
PLACES = (0.25, 0.5, 0.75)
N_FOLDS = 5


def constraint_check(
    stores: Stores,
    data: RoutingDataset,
    recipe: Recipe | None = None,
    config: TrunkConfig | None = None,
    *,
    n_splits: int = 20,
    seed: int = 0,
    workdir: Any = None,
) -> dict[str, Any]:
    """`constraint_rows` on the out-of-fold predictions of a recipe, made once.

    Args:
      stores: The hidden states.
      data: Rows with prices.
      recipe: By default all layers, mean-pooled, PCA 200.
      config: The ensemble; by default as published.
      n_splits, seed: As in `constraint_rows`.
      workdir: Folder that keeps the trainings' checkpoints in holding/.

    Returns:
      As `constraint_rows`, and `cost_basis`: whether what was paid is of "recorded" lengths of
      answers or of "assumed" ones.

    Raises:
      ValueError: As `fit_router` and `constraint_rows`, or a price is unknown.
      resume.Stopped: SIGTERM came, with a workdir; the next call goes on from there.
    """
    recipe = Recipe.all_layers() if recipe is None else recipe
    judged = Judged.of(data, stores, CostModel.fit(data))
    expected_NM, paid_NM = judged.expected_NM, judged.paid_NM
    if expected_NM is None or paid_NM is None or np.isnan(expected_NM).any():
        raise ValueError("data: every target needs a price: give its pool.json")
    folder = None if workdir is None else Folder(workdir) / "holding"
    p_NM = out_of_fold(stores, data, recipe, config or TrunkConfig(), N_FOLDS, folder)
    return {"cost_basis": judged.basis} | constraint_rows(
        p_NM, expected_NM, paid_NM, data.correct_NM, data.groups, data.queries,
        n_splits=n_splits, seed=seed,
    )  # fmt: skip


def constraint_rows(
    p_NM: np.ndarray,
    expected_NM: np.ndarray,
    paid_NM: np.ndarray,
    correct_NM: np.ndarray,
    groups: Sequence[str],
    keys: Sequence[str] | None = None,
    *,
    n_splits: int = 20,
    n_folds: int = N_FOLDS,
    places: Sequence[float] = PLACES,
    seed: int = 0,
) -> dict[str, Any]:
    """How far the means of Budget and Quality lie from what was asked for, split by split.

    Rows without all outcomes are left out. Budgets lie at `places` between the mean costs of the
    cheapest target of each query and of argmax, accuracies between the accuracies of the two.

    Args:
      p_NM: [N, M] calibrated P(correct) by models that were not trained on the row.
      expected_NM: [N, M] USD per query as known before the answer.
      paid_NM: [N, M] USD per query as paid.
      correct_NM: [N, M] 1, 0 or NaN.
      groups: [N] rows of one group stay together.
      keys: [N] the queries' texts; see `Policy.choose`.
      n_splits: Number of splits into folds.
      n_folds: Folds of each split.
      places: In [0, 1].
      seed: Of the splits; the k-th takes seed + k.

    Returns:
      JSON values: `n` rows, and `policies`, for each its `policy`, `wanted` mean, `unit`,
      `deviation` by split (relative for budgets, in accuracy for qualities; None where the rows of
      a fold cannot reach what was wanted), `largest_deviation`, `covered` (splits whose 95%
      interval over groups holds what was wanted), `n_reached` and `n_splits`.

    Raises:
      ValueError: No row has all outcomes, a cost is unknown, or the groups are fewer than the
        folds.
    """
    complete_N = ~np.isnan(correct_NM).any(axis=1)
    if not complete_N.any():
        raise ValueError("correct_NM: no row has an outcome of every target")
    p_NM, expected_NM, paid_NM, correct_NM = (
        np.asarray(each, np.float64)[complete_N]
        for each in (p_NM, expected_NM, paid_NM, correct_NM)
    )
    at = np.flatnonzero(complete_N).tolist()
    # Lists: an array would make each text as wide as the longest.
    groups = [groups[n] for n in at]
    key_N = [str(n) for n in range(len(at))] if keys is None else [keys[n] for n in at]
    cheap_N, best_N = expected_NM.argmin(axis=1), p_NM.argmax(axis=1)
    fold_SN = [grouping.folds(groups, n_folds, seed + k) for k in range(n_splits)]
    policies = []
    for kind, value_NM in ((Budget, paid_NM), (Quality, correct_NM)):
        low, high = (float(take(value_NM, choice_N).mean()) for choice_N in (cheap_N, best_N))
        for place in places:
            wanted = low + place * (high - low)
            deviation_S: list[float | None] = []
            covered = 0
            for fold_N in fold_SN:
                choice_N = _held(
                    kind(wanted), fold_N, p_NM, expected_NM, correct_NM, paid_NM, key_N
                )
                if choice_N is None:
                    deviation_S.append(None)
                    continue
                value_N = take(value_NM, choice_N)
                ends = ratio_interval(value_N, 1.0, groups)
                covered += ends[0] <= wanted <= ends[1]
                off = float(value_N.mean()) - wanted
                deviation_S.append(off / wanted if kind is Budget else off)
            reached = [abs(off) for off in deviation_S if off is not None]
            policies.append(
                {
                    "policy": f"{kind.name}:{wanted:.4g}",
                    "wanted": wanted,
                    "unit": "relative" if kind is Budget else "accuracy",
                    "deviation": deviation_S,
                    "largest_deviation": max(reached, default=None),
                    "covered": int(covered),
                    "n_reached": len(reached),
                    "n_splits": n_splits,
                }
            )
    return {"n": len(p_NM), "n_folds": n_folds, "level": LEVEL, "policies": policies}


def _held(
    policy: Budget | Quality,
    fold_N: np.ndarray,
    p_NM: np.ndarray,
    expected_NM: np.ndarray,
    correct_NM: np.ndarray,
    paid_NM: np.ndarray,
    key_N: Sequence[str],
) -> np.ndarray | None:
    """[N] choices by policies fitted on the other folds; None where one is Unreachable."""
    choice_N = np.zeros(len(p_NM), np.int64)
    for f in range(fold_N.max() + 1):
        fit_N, test_N = fold_N != f, fold_N == f
        try:
            fitted = policy.fit(p_NM[fit_N], expected_NM[fit_N], correct_NM[fit_N], paid_NM[fit_N])
        except Unreachable:  # All rows together reach the mean, these alone do not.
            return None
        keys = [key_N[n] for n in np.flatnonzero(test_N).tolist()]
        choice_N[test_N] = fitted.choose(p_NM[test_N], expected_NM[test_N], keys=keys)
    return choice_N


def constraint_check_lines(result: dict[str, Any]) -> list[str]:
    """The result of `constraint_check` as a table of text."""
    lines = [
        f"{result['n']:,} rows, {result['n_folds']} folds, pooled: largest deviation from the mean "
        f"wanted over the splits, and how often the 95% interval holds it"
    ]
    for row in result["policies"]:
        off, n, n_splits = (row[name] for name in ("largest_deviation", "n_reached", "n_splits"))
        relative = row["unit"] == "relative"
        text = "none" if off is None else f"{off:.2%}" if relative else f"{100 * off:.2f} points"
        line = f"  {row['policy']:18} {text:>12}   {row['covered']} of {n}"
        if n < n_splits:
            line += f"   (in {n_splits - n} of {n_splits} splits a fold cannot reach it)"
        lines.append(line)
    return lines
