"""ROC-AUC: P(a correct row is scored above a wrong one), overall and within datasets.

A router can reach a high AUC by recognising which dataset a query comes from, because some datasets
are easier than others. The AUC within datasets compares only queries of one dataset and so asks
what the router knows about the difficulty of the query itself; 0.5 is chance.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from routerjax.data.groups import numbered

# A dataset with fewer rows than this in either class says too little about a target.
MIN_CLASS = 5


class WithinDataset(NamedTuple):
    """AUC over the pairs of equal dataset, with what was left out of it."""

    auc_M: np.ndarray  # [M] float64; NaN where no dataset is left
    left_out_M: np.ndarray  # [M] datasets with under 5 rows in either class


def roc_auc(score_N: npt.ArrayLike, label_N: npt.ArrayLike) -> float:
    """Area under the ROC curve: the share of (correct, wrong) pairs in the right order.

    AUC = (R - n1 (n1 + 1) / 2) / (n1 n0), with R the sum of the midranks of the n1 correct rows, so
    a tie counts half (Mann and Whitney's U over n1 n0).

    Args:
      score_N: [N] numbers, larger for what should be correct.
      label_N: [N] 1 correct, 0 wrong, NaN not observed; those rows are left out.

    Returns:
      The area in [0, 1]; NaN where the observed rows are of one class.

    Raises:
      ValueError: The shapes differ, a score is NaN, or a label is none of 0, 1 and NaN.

    >>> roc_auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    0.75
    """
    score_N, label_N = np.asarray(score_N, np.float64), np.asarray(label_N, np.float64)
    if score_N.ndim != 1:
        raise ValueError(f"score_N: expected shape [N], got {score_N.shape}")
    auc_MG = auc_by_group(score_N[:, None], label_N[:, None], np.zeros(len(score_N), np.int64), 1)
    return float(auc_MG[0, 0])


def auc_per_target(p_NM: np.ndarray, correct_NM: np.ndarray) -> np.ndarray:
    """[M] float64 `roc_auc` of each column.

    Args:
      p_NM: [N, M] predicted P(correct).
      correct_NM: [N, M] 1, 0 or NaN.

    Raises:
      ValueError: As `roc_auc`.
    """
    return auc_by_group(p_NM, correct_NM, np.zeros(len(p_NM), np.int64), 1)[:, 0]


def within_dataset_auc(
    p_NM: np.ndarray, correct_NM: np.ndarray, datasets: Sequence[str] | None
) -> WithinDataset | None:
    """AUC over pairs of rows of equal dataset only, every pair of equal weight.

    Datasets with under 5 observed rows of either class are left out of a target's AUC.

    Args:
      p_NM, correct_NM: As in `auc_per_target`.
      datasets: [N] names, or None.

    Returns:
      The areas and the number of datasets left out, both [M]; None without names. A dataset in
      which a target has no observed row counts as left out too.

    Raises:
      ValueError: As `roc_auc`, or there is not one name a row.
    """
    if datasets is None:
        return None
    names, group_N = numbered(datasets)
    wins_MG, right_MG, wrong_MG = _pair_counts(p_NM, correct_NM, group_N, len(names))
    kept_MG = (right_MG >= MIN_CLASS) & (wrong_MG >= MIN_CLASS)
    pairs_M = (right_MG * wrong_MG * kept_MG).sum(axis=1)
    return WithinDataset(_ratio((wins_MG * kept_MG).sum(axis=1), pairs_M), (~kept_MG).sum(axis=1))


def auc_by_group(
    p_NM: np.ndarray, correct_NM: np.ndarray, group_N: np.ndarray, n_groups: int
) -> np.ndarray:
    """[M, G] float64 `roc_auc` of each target inside each group of rows, by one sort a target.

    Args:
      p_NM, correct_NM: As in `auc_per_target`.
      group_N: [N] integers in [0, n_groups).
      n_groups: G.

    Raises:
      ValueError: As `roc_auc`.
    """
    wins_MG, right_MG, wrong_MG = _pair_counts(p_NM, correct_NM, group_N, n_groups)
    return _ratio(wins_MG, right_MG * wrong_MG)


def _pair_counts(
    p_NM: np.ndarray, correct_NM: np.ndarray, group_N: np.ndarray, n_groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[M, G] float64 each: pairs in the right order (a tie counts half), correct and wrong rows."""
    p_NM, correct_NM = np.asarray(p_NM, np.float64), np.asarray(correct_NM, np.float64)
    if p_NM.ndim != 2 or p_NM.shape != correct_NM.shape or len(group_N) != len(p_NM):
        raise ValueError(
            f"expected scores and labels of one shape and a dataset for each row, got scores "
            f"{p_NM.shape}, labels {correct_NM.shape} and {len(group_N)} datasets"
        )
    seen_NM = ~np.isnan(correct_NM)
    if not np.isin(correct_NM[seen_NM], (0, 1)).all():
        raise ValueError(
            "labels: expected 1 (correct), 0 (wrong) or NaN (not observed), got other numbers: "
            "take RoutingDataset.correct_NM, not the scores"
        )
    if np.isnan(p_NM[seen_NM]).any():
        raise ValueError("scores: expected numbers, got NaN on a row whose outcome is observed")
    counts = [
        _count_one(p_NM[seen_N, m], correct_NM[seen_N, m], group_N[seen_N], n_groups)
        for m, seen_N in enumerate(seen_NM.T)
    ]
    counts_M3G = np.array(counts).reshape(p_NM.shape[1], 3, n_groups)
    return counts_M3G[:, 0], counts_M3G[:, 1], counts_M3G[:, 2]


def _count_one(
    score_N: np.ndarray, label_N: np.ndarray, group_N: np.ndarray, n_groups: int
) -> np.ndarray:
    """[3, G] of `_pair_counts` for one target, all rows observed."""
    order_N = np.lexsort((score_N, group_N))
    score_N, label_N, group_N = score_N[order_N], label_N[order_N], group_N[order_N]
    # A run is a stretch of equal scores in one group; its rows share the mean of their ranks.
    starts_N = np.ones(len(score_N), bool)
    starts_N[1:] = (score_N[1:] != score_N[:-1]) | (group_N[1:] != group_N[:-1])
    run_N = np.cumsum(starts_N) - 1
    first_R = np.flatnonzero(starts_N)
    size_R = np.diff(np.append(first_R, len(score_N)))
    size_G = np.bincount(group_N, minlength=n_groups)
    before_G = np.cumsum(size_G) - size_G
    midrank_N = (first_R + (size_R + 1) / 2)[run_N] - before_G[group_N]
    right_G = np.bincount(group_N, label_N, n_groups)
    rank_sum_G = np.bincount(group_N, label_N * midrank_N, n_groups)
    return np.stack([rank_sum_G - right_G * (right_G + 1) / 2, right_G, size_G - right_G])


def _ratio(wins: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    return np.divide(wins, pairs, out=np.full(np.shape(wins), np.nan), where=pairs > 0)
