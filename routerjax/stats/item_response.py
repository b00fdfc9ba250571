"""A one-parameter item response fit (Rasch's model): which queries are hard, which targets able.

    logit P(y_nm = 1)        = level_g + ability_m + own_gm - difficulty_n
    logit P(y_nm is observed) = chance_gm - slope difficulty_n

for query n of dataset g and target m: the ability of a target, what it can do beyond that on one
dataset, and the difficulty of a query. With it a target that was tried on easy queries can be
compared with one that was tried on hard ones. The second line says that being tried may itself go
with difficulty, by one slope for all (Holman and Glas): targets tend to be tried where they are
good. Pairs of a target and a dataset that were tried always or never say nothing of it.

Abilities and what is a target's own on a dataset are penalised as if drawn from N(0, 1): wide
enough that a target which was never tried on a dataset may be good or bad there, whatever it is
elsewhere. Difficulties are N(0, s^2) with s fitted, and integrated out over Q points (marginal
maximum likelihood by EM, Bock and Aitkin), so that queries with few outcomes do not bias abilities.

Axes: N queries, M targets, G datasets, Q points, X sums over outcomes.

References:
  Bock and Aitkin, Psychometrika 46 (1981) 443.
  Holman and Glas, British Journal of Mathematical and Statistical Psychology 58 (2005) 1.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit, log_expit, logit, roots_hermitenorm

from routerjax.data.groups import numbered

_POINTS = 15  # Q
_STEPS = 100  # Of EM, at most.
_CHANGE = 2e-3  # Of a logit, below which EM ends.
_LEVEL_PRECISION = 0.1  # Of a dataset's level: hardly any penalty.
_CAUTION = 1.645  # Standard errors: the normal distribution's quantile at 95%.
_FEWEST = 5  # Rows of a dataset; smaller ones are taken together.
_SMALL = 1e-3  # Added to information that may be 0.


@dataclasses.dataclass(frozen=True, eq=False)
class ItemResponse:
    """What the fit says of every outcome, observed or not.

    Attributes:
      y_NM: [N, M] the outcomes it was fitted to, in [0, 1]; NaN = not observed.
      dataset_N: [N] number of each query's dataset; small ones share one.
      chance_NQ: [N, Q] posterior probability of each point as the query's -difficulty.
      logit_GMQ: [G, M, Q] logit P(y = 1) at each point.
      weight_GM: [G, M] information that the outcomes have on each logit.
    """

    y_NM: np.ndarray
    dataset_N: np.ndarray
    chance_NQ: np.ndarray
    logit_GMQ: np.ndarray
    weight_GM: np.ndarray

    def expected(self) -> np.ndarray:
        """[N, M] each outcome as expected from the query's other outcomes, and which there are."""
        seen_NM, right_NM = ~np.isnan(self.y_NM), np.nan_to_num(self.y_NM)
        top_NM, total_NM = np.zeros((2, *self.y_NM.shape))
        for q, chance_N in enumerate(self.chance_NQ.T):
            logit_GM = self.logit_GMQ[:, :, q]
            # What the outcome itself said of the query's difficulty is divided out.
            said_NM = seen_NM * log_expit(-logit_GM)[self.dataset_N]
            said_NM += right_NM * logit_GM[self.dataset_N]
            part_NM = chance_N[:, None] * np.exp(-said_NM)
            top_NM += part_NM * expit(logit_GM)[self.dataset_N]
            total_NM += part_NM
        return top_NM / total_NM

    def deviations(self, slope_XGM: np.ndarray) -> np.ndarray:
        """[X, M + G M] how sums deviate by independent N(0, 1) draws from the posterior.

        Args:
          slope_XGM: [X, G, M] derivative of each sum by each logit.
        """
        # Given the ability, what is a target's own on each dataset is independent.
        precision_GM = self.weight_GM + 1
        ability_M = 1 / (1 + (self.weight_GM / precision_GM).sum(axis=0))
        by_ability_XM = (slope_XGM / precision_GM).sum(axis=1) * np.sqrt(ability_M)
        by_own_XGM = slope_XGM / np.sqrt(precision_GM)
        return np.concatenate([by_ability_XM, by_own_XGM.reshape(len(slope_XGM), -1)], axis=1)

    def accuracy(self) -> tuple[np.ndarray, np.ndarray]:
        """As `comparable_accuracy`."""
        missing_NM, p_NM = np.isnan(self.y_NM), self.expected()
        slope_GM = np.zeros(self.weight_GM.shape)
        np.add.at(slope_GM, self.dataset_N, missing_NM * p_NM * (1 - p_NM) / len(p_NM))
        one_MGM = np.eye(len(slope_GM.T))[:, None, :] * slope_GM
        error_M = np.sqrt((self.deviations(one_MGM) ** 2).sum(axis=1))
        return np.where(missing_NM, p_NM, self.y_NM).mean(axis=0), error_M


def fit_item_response(
    y_NM: np.ndarray, datasets: Sequence[str] | np.ndarray | None = None
) -> ItemResponse:
    """Fits the model to the observed outcomes.

    Args:
      y_NM: [N, M] in [0, 1], NaN where not observed; at least one row. A value between counts as
        that share of right.
      datasets: [N] names; None takes all rows for one dataset.
    """
    y_NM = np.asarray(y_NM, np.float64)
    n, n_targets = y_NM.shape
    dataset_N = np.zeros(n, np.int64) if datasets is None else numbered(datasets)[1]
    small_N = np.bincount(dataset_N)[dataset_N] < _FEWEST
    dataset_N = numbered(np.where(small_N, -1, dataset_N))[1]
    at_G = [np.flatnonzero(dataset_N == g) for g in range(dataset_N.max() + 1)]
    shape = len(at_G), n_targets
    rows_G = [(~np.isnan(y_NM[at]) * 1.0, np.nan_to_num(y_NM[at])) for at in at_G]
    point_Q, density_Q = roots_hermitenorm(_POINTS)
    density_Q = density_Q / density_Q.sum()
    share_GM = np.stack([seen_nM.mean(axis=0) for seen_nM, _ in rows_G])
    open_GM = (share_GM > 0) & (share_GM < 1)
    observed = _Observed(open_GM, logit(np.where(open_GM, share_GM, 0.5)), 0.0)
    outcome = _Outcome(np.zeros((shape[0], 1)), np.zeros(n_targets), np.zeros(shape))
    spread = 1.0
    chance_NQ, weight_GM = np.zeros((n, _POINTS)), np.zeros(shape)
    tried_GMQ, right_GMQ = np.zeros((2, *shape, _POINTS))
    for _ in range(_STEPS):
        logit_GMQ = outcome.logit_GM[:, :, None] + spread * point_Q
        seen_GMQ = observed.tried_GM[:, :, None] + observed.slope * spread * point_Q
        for g, (seen_nM, right_nM) in enumerate(rows_G):
            at_M = open_GM[g]
            like_nQ = right_nM @ logit_GMQ[g] + seen_nM @ log_expit(-logit_GMQ[g])
            like_nQ += seen_nM[:, at_M] @ seen_GMQ[g, at_M]
            like_nQ += log_expit(-seen_GMQ[g, at_M]).sum(axis=0)
            chance_nQ = density_Q * np.exp(like_nQ - like_nQ.max(axis=1, keepdims=True))
            chance_nQ /= chance_nQ.sum(axis=1, keepdims=True)
            chance_NQ[at_G[g]] = chance_nQ
            tried_GMQ[g], right_GMQ[g] = seen_nM.T @ chance_nQ, right_nM.T @ chance_nQ
        all_GQ = np.stack([chance_NQ[at].sum(axis=0) for at in at_G])
        p_GMQ = expit(logit_GMQ)
        gradient_GMQ = right_GMQ - tried_GMQ * p_GMQ
        weight_GMQ = tried_GMQ * p_GMQ * (1 - p_GMQ)
        weight_GM = weight_GMQ.sum(axis=2)
        before_GM, before = outcome.logit_GM, spread
        outcome = outcome.step(gradient_GMQ.sum(axis=2), weight_GM)
        # By how much the points should be farther apart, and how wide the queries lie over them:
        # both, as parameter-expanded EM has it, because either alone takes hundreds of steps.
        spread += float((gradient_GMQ @ point_Q).sum() / ((weight_GMQ @ point_Q**2).sum() + _SMALL))
        spread = max(spread, 0.0) * float(np.sqrt((chance_NQ @ point_Q**2).mean()))
        if max(np.abs(outcome.logit_GM - before_GM).max(), abs(spread - before)) < _CHANGE:
            break
        observed = observed.step(tried_GMQ, all_GQ, expit(seen_GMQ), before * point_Q)
    return ItemResponse(y_NM, dataset_N, chance_NQ, logit_GMQ, weight_GM)


class _Outcome(NamedTuple):
    """Of the outcomes' logits: level [G, 1], ability [M], and what is a target's own [G, M]."""

    level_G1: np.ndarray
    ability_M: np.ndarray
    own_GM: np.ndarray

    @property
    def logit_GM(self) -> np.ndarray:
        return self.level_G1 + self.ability_M + self.own_GM

    def step(self, gradient_GM: np.ndarray, weight_GM: np.ndarray) -> "_Outcome":
        """A Newton step of the levels; of what it leaves one of the others, own eliminated."""
        level_G1 = (gradient_GM.sum(axis=1, keepdims=True) - _LEVEL_PRECISION * self.level_G1) / (
            weight_GM.sum(axis=1, keepdims=True) + _LEVEL_PRECISION
        )
        gradient_GM = gradient_GM - weight_GM * level_G1
        own_GM = gradient_GM - self.own_GM
        share_GM = weight_GM / (weight_GM + 1)
        ability_M = gradient_GM.sum(axis=0) - self.ability_M - (share_GM * own_GM).sum(axis=0)
        ability_M = ability_M / (1 + share_GM.sum(axis=0))
        own_GM = own_GM / (weight_GM + 1) - share_GM * ability_M
        return _Outcome(self.level_G1 + level_G1, self.ability_M + ability_M, self.own_GM + own_GM)


class _Observed(NamedTuple):
    """Of the logits of being observed: which pairs count [G, M], their logits [G, M], the slope."""

    open_GM: np.ndarray
    tried_GM: np.ndarray
    slope: float

    def step(
        self, tried_GMQ: np.ndarray, all_GQ: np.ndarray, p_GMQ: np.ndarray, z_Q: np.ndarray
    ) -> "_Observed":
        """A Newton step of at most 1 of the logits and of the slope, penalised as if N(0, 1)."""
        open_GM1 = self.open_GM[:, :, None]
        gradient_GMQ = open_GM1 * (tried_GMQ - all_GQ[:, None] * p_GMQ)
        weight_GMQ = open_GM1 * all_GQ[:, None] * p_GMQ * (1 - p_GMQ)
        gradient_GM, weight_GM = gradient_GMQ.sum(axis=2), weight_GMQ.sum(axis=2) + _SMALL
        both_GM = weight_GMQ @ z_Q
        gradient = (
            (gradient_GMQ @ z_Q).sum() - self.slope - (both_GM * gradient_GM / weight_GM).sum()
        )
        weight = (weight_GMQ @ z_Q**2).sum() + 1 - (both_GM**2 / weight_GM).sum()
        slope = float(np.clip(gradient / weight, -1, 1))
        tried_GM = np.clip((gradient_GM - both_GM * slope) / weight_GM, -1, 1)
        return _Observed(self.open_GM, self.tried_GM + tried_GM, self.slope + slope)


def comparable_accuracy(
    correct_NM: np.ndarray, datasets: Sequence[str] | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies of all targets on the same queries, and their standard errors, both [M].

    What was not observed counts as the item response fit expects it. The error is of that
    expectation alone: 0 where nothing is missing, when the accuracies are plain means.

    Args:
      correct_NM: [N, M] 1, 0 or NaN; at least one row.
      datasets: As in `fit_item_response`.
    """
    correct_NM = np.asarray(correct_NM, np.float64)
    if not np.isnan(correct_NM).any():
        return correct_NM.mean(axis=0), np.zeros(correct_NM.shape[1])
    return fit_item_response(correct_NM, datasets).accuracy()


def cautious_accuracy(
    correct_NM: np.ndarray, datasets: Sequence[str] | np.ndarray | None = None
) -> np.ndarray:
    """[M] lower 95% ends of `comparable_accuracy`, at least 0, by which targets are compared.

    So no target wins by the queries on which it was never tried.
    """
    return lower_end(*comparable_accuracy(correct_NM, datasets))


def lower_end(accuracy_M: np.ndarray, error_M: np.ndarray) -> np.ndarray:
    """[M] as `cautious_accuracy`, of what `comparable_accuracy` returned."""
    return np.maximum(accuracy_M - _CAUTION * error_M, 0.0)


def best_single_target(
    correct_NM: np.ndarray, datasets: Sequence[str] | np.ndarray | None = None
) -> int:
    """Index of the target of the highest `cautious_accuracy`; of equal ones the first."""
    return int(np.argmax(cautious_accuracy(correct_NM, datasets)))
