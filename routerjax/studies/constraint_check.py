"""Whether Budget and Quality hold their mean on rows that they were not fitted on.

Rows with out-of-fold predictions are split into folds; a policy is fitted on all folds but one and
decides on that one; the rows of all folds are then judged together. Many such splits show how often
the mean is the one asked for. The predictions stay the same: the policy is tested, not the router.

A stated confidence is tested on rows dealt into two parts: settings are fitted on the smaller and
judged on the larger. Rows judged together with those fitted on would agree with them by chance.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.data import groups as grouping
from routerjax.data.dataset import RoutingDataset
from routerjax.features.feature_map import Stores
from routerjax.features.recipe import Recipe
from routerjax.routing.constrained import (
    SAVING_CONFIDENCE,
    Budget,
    Quality,
    Unreachable,
    confident_saving,
)
from routerjax.routing.costs import CostModel
from routerjax.routing.fit import out_of_fold
from routerjax.routing.judged import Judged, allowed_of
from routerjax.routing.policy_rows import take
from routerjax.runtime.files import Folder
from routerjax.stats.intervals import LEVEL, ratio_interval
from routerjax.trunk.config import TrunkConfig

# Means that the policies are asked to hold, as shares of the way from the lowest to the highest.
PLACES = (0.25, 0.5, 0.75)
N_FOLDS = 5
DEALT = 0.25  # Of the rows to the part that settings with a confidence are fitted on.
BELOW = 0.005  # How far below what was wanted an accuracy counts as violated.


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
      As `constraint_rows`, `confident` as `confident_rows` has it, and `cost_basis`: whether what
      was paid is of "recorded" lengths of answers or of "assumed" ones.

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
    rows = p_NM, expected_NM, paid_NM, data.correct_NM, data.groups, data.queries
    allowed_NM = allowed_of(stores, data)
    result = constraint_rows(*rows, allowed_NM=allowed_NM, n_splits=n_splits, seed=seed)
    confident = confident_rows(*rows, allowed_NM=allowed_NM, n_deals=n_splits, seed=seed)
    return {"cost_basis": judged.basis} | result | {"confident": confident}


def constraint_rows(
    p_NM: np.ndarray,
    expected_NM: np.ndarray,
    paid_NM: np.ndarray,
    correct_NM: np.ndarray,
    groups: Sequence[str],
    keys: Sequence[str] | None = None,
    *,
    allowed_NM: np.ndarray | None = None,
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
      allowed_NM: [N, M] bool, which targets may answer each query; None for all.
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
    (p_NM, expected_NM, paid_NM, correct_NM), allowed_NM, groups, key_N = _complete(
        (p_NM, expected_NM, paid_NM, correct_NM), allowed_NM, groups, keys
    )
    cheap_N, best_N = _ends(p_NM, expected_NM, allowed_NM)
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
                    kind(wanted), fold_N, p_NM, expected_NM, correct_NM, paid_NM, allowed_NM, key_N
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


def confident_rows(
    p_NM: np.ndarray,
    expected_NM: np.ndarray,
    paid_NM: np.ndarray,
    correct_NM: np.ndarray,
    groups: Sequence[str],
    keys: Sequence[str] | None = None,
    *,
    allowed_NM: np.ndarray | None = None,
    true_NM: np.ndarray | None = None,
    n_deals: int = 20,
    share: float = DEALT,
    confidence: float = SAVING_CONFIDENCE,
    places: Sequence[float] = PLACES,
    seed: int = 0,
) -> dict[str, Any]:
    """How often Quality and the saving setting miss on other rows, with a confidence and without.

    Each deal takes a share of the rows, whole groups of them, to fit on; of these rows is the best
    single target too. All other rows judge.

    Args:
      p_NM, expected_NM, paid_NM, correct_NM, groups, keys, allowed_NM, places: As in
        `constraint_rows`.
      true_NM: [N, M] true P(correct), by which to judge instead of outcomes; None where nobody
        knows it.
      n_deals: How often rows are dealt.
      share: Of the rows to fit on.
      confidence: Of the settings with one.
      seed: Of the deals; the k-th takes seed + k.

    Returns:
      JSON values: `n_fitted` rows on the mean, `confidence`, and `policies`. Of each: its `policy`;
      for "confident" and "bold" the `lead` by deal (accuracy on the other rows less what is wanted:
      a number or the best single target's there; None where no setting was found), `n_found`,
      `n_below` (deals with a lead below -BELOW) and `saving` (mean over the deals found, against
      the best single target).

    Raises:
      ValueError: As `constraint_rows`.
    """
    (p_NM, expected_NM, paid_NM, correct_NM, true_NM), allowed_NM, groups, key_N = _complete(
        (p_NM, expected_NM, paid_NM, correct_NM, correct_NM if true_NM is None else true_NM),
        allowed_NM, groups, keys,
    )  # fmt: skip
    cheap_N, best_N = _ends(p_NM, expected_NM, allowed_NM)
    low, high = (float(take(correct_NM, choice_N).mean()) for choice_N in (cheap_N, best_N))
    wanted_W = [low + place * (high - low) for place in places]
    names = [f"quality:{wanted:.4g}" for wanted in wanted_W] + ["saving"]
    kinds = ("confident", "bold")
    lead_W: list[dict[str, list[float | None]]] = [{kind: [] for kind in kinds} for _ in names]
    saved_W: list[dict[str, list[float]]] = [{kind: [] for kind in kinds} for _ in names]
    n_fitted = []
    for k in range(n_deals):
        fit_N = grouping.split(groups, share, seed + k)
        rows = p_NM[fit_N], expected_NM[fit_N], correct_NM[fit_N]
        own = [group for group, fit in zip(groups, fit_N, strict=True) if fit]
        other_keys = [key for key, fit in zip(key_N, fit_N, strict=True) if not fit]
        single = int(rows[2].mean(axis=0).argmax())
        n_fitted.append(len(own))
        fitted = functools.partial(_found, rows=rows, groups=own, allowed_NM=allowed_NM[fit_N])
        single_wanted = float(rows[2][:, single].mean())
        single_n = np.full(len(own), single)
        pairs = [(fitted(Quality(w, None, confidence)), fitted(Quality(w))) for w in wanted_W]
        pairs.append((
            confident_saving(*rows, single_n, own, allowed_NM[fit_N], confidence),
            fitted(Quality(single_wanted)),
        ))  # fmt: skip
        single_accuracy = float(true_NM[~fit_N, single].mean())
        wanted_of = [*wanted_W, single_accuracy]
        for lead, saved, pair, wanted in zip(lead_W, saved_W, pairs, wanted_of, strict=True):
            for kind, policy in zip(kinds, pair, strict=True):
                if policy is None:
                    lead[kind].append(None)
                    continue
                choice_n = policy.choose(
                    p_NM[~fit_N], expected_NM[~fit_N], allowed_NM[~fit_N], other_keys
                )
                lead[kind].append(float(take(true_NM[~fit_N], choice_n).mean()) - wanted)
                paid = float(take(paid_NM[~fit_N], choice_n).mean())
                saved[kind].append(1 - paid / float(paid_NM[~fit_N, single].mean()))
    return {
        "n_fitted": float(np.mean(n_fitted)),
        "n_deals": n_deals,
        "confidence": confidence,
        "policies": [
            {"policy": name} | {kind: _missed(lead[kind], saved[kind]) for kind in kinds}
            for name, lead, saved in zip(names, lead_W, saved_W, strict=True)
        ],
    }


def _found(
    policy: Quality,
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    groups: Sequence[str],
    allowed_NM: np.ndarray,
) -> Quality | None:
    """The policy fitted; None where it is not reached or not shown to be."""
    try:
        policy = policy.fit(*rows, allowed_NM=allowed_NM, groups=groups)
    except Unreachable:
        return None
    assert policy.fitted is not None
    return None if policy.fitted.holds is False else policy


def _missed(lead_D: list[float | None], saved: list[float]) -> dict[str, Any]:
    found = [lead for lead in lead_D if lead is not None]
    return {
        "lead": lead_D,
        "n_found": len(found),
        "n_below": sum(lead < -BELOW for lead in found),
        "saving": float(np.mean(saved)) if saved else None,
    }


def _ends(
    p_NM: np.ndarray, expected_NM: np.ndarray, allowed_NM: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """[N] the cheapest target of each row that may answer, and the most probable one."""
    cheap_N = np.where(allowed_NM, expected_NM, np.inf).argmin(axis=1)
    return cheap_N, np.where(allowed_NM, p_NM, -np.inf).argmax(axis=1)


def _complete(
    arrays: Sequence[np.ndarray],
    allowed_NM: np.ndarray | None,
    groups: Sequence[str],
    keys: Sequence[str] | None,
) -> tuple[list[np.ndarray], np.ndarray, list[str], list[str]]:
    """The rows with all outcomes, which the fourth array has; numbers for missing keys."""
    complete_N = ~np.isnan(arrays[3]).any(axis=1)
    if not complete_N.any():
        raise ValueError("correct_NM: no row has an outcome of every target")
    at = np.flatnonzero(complete_N).tolist()
    # Lists: an array would make each text as wide as the longest.
    key_N = [str(n) for n in range(len(at))] if keys is None else [keys[n] for n in at]
    kept = [np.asarray(each, np.float64)[complete_N] for each in arrays]
    allowed_NM = np.ones(arrays[3].shape, bool) if allowed_NM is None else allowed_NM
    return kept, allowed_NM[complete_N], [groups[n] for n in at], key_N


def _held(
    policy: Budget | Quality,
    fold_N: np.ndarray,
    p_NM: np.ndarray,
    expected_NM: np.ndarray,
    correct_NM: np.ndarray,
    paid_NM: np.ndarray,
    allowed_NM: np.ndarray,
    key_N: Sequence[str],
) -> np.ndarray | None:
    """[N] choices by policies fitted on the other folds; None where one is Unreachable."""
    choice_N = np.zeros(len(p_NM), np.int64)
    for f in range(fold_N.max() + 1):
        fit_N, test_N = fold_N != f, fold_N == f
        try:
            fitted = policy.fit(
                *(each[fit_N] for each in (p_NM, expected_NM, correct_NM, paid_NM, allowed_NM))
            )
        except Unreachable:  # All rows together reach the mean, these alone do not.
            return None
        keys = [key_N[n] for n in np.flatnonzero(test_N).tolist()]
        choice_N[test_N] = fitted.choose(
            p_NM[test_N], expected_NM[test_N], allowed_NM[test_N], keys
        )
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
    if (confident := result.get("confident")) is not None:
        n_deals = confident["n_deals"]
        lines.append(
            f"fitted on {confident['n_fitted']:,.0f} rows, judged on all others, {n_deals} deals: "
            f"how often the accuracy is over {100 * BELOW:g} points below what is wanted, with "
            f"{confident['confidence']:.4g} confidence and without"
        )
        for row in confident["policies"]:
            of = [row[kind] for kind in ("confident", "bold")]
            parts = [f"{part['n_below']} of {part['n_found']} found" for part in of]
            parts += ["–" if part["saving"] is None else f"{part['saving']:.1%}" for part in of]
            lines.append(
                f"  {row['policy']:18} {parts[0]} / {parts[1]}   saving {parts[2]} / {parts[3]}"
            )
    return lines
