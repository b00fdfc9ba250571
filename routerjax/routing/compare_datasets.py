"""Datasets in a comparison: folds of whole ones, and figures of each by itself."""

from typing import Any

import numpy as np

from routerjax.data import groups as grouping
from routerjax.data.dataset import RoutingDataset
from routerjax.probes.auc import auc_by_group
from routerjax.routing.breakdown import mean
from routerjax.routing.compare_found import Found
from routerjax.routing.frontier import take
from routerjax.routing.policy import Argmax


def dataset_folds_of(data: RoutingDataset, n: int, seed: int) -> np.ndarray:
    """[N] the fold of each row's dataset; one each where there are no more than n.

    Args:
      data: Names its datasets.
      n: Most folds.
      seed: Of the deal.

    Raises:
      ValueError: There is only one dataset.
    """
    assert data.datasets is not None
    names, dataset_N = grouping.numbered(data.datasets)
    if len(names) < 2:
        raise ValueError(f"dataset_folds: all rows are of one dataset, {names[0]!r}")
    if len(names) <= n:
        return dataset_N
    return grouping.folds([names[d] for d in dataset_N], n, seed)


def per_dataset(
    found: Found, r: int, data: RoutingDataset, probabilistic: bool
) -> list[dict[str, Any]]:
    """A contestant's figures on each dataset alone, means over seeds.

    Args:
      found: The out-of-fold predictions.
      r: The contestant.
      data: Their outcomes.
      probabilistic: Whether its numbers are probabilities.

    Returns:
      A dict for each dataset, by name: `dataset`, `n`, `n_complete` (rows with all outcomes, on
      which the accuracies are), `accuracy` of argmax, `best_single_accuracy`, `oracle_accuracy`,
      and `mean_auc` over the targets that have one.
    """
    assert data.datasets is not None
    names, dataset_N = grouping.numbered(data.datasets)
    correct_NM = np.asarray(data.correct_NM, np.float64)
    complete_N = ~np.isnan(correct_NM).any(axis=1)
    n_seeds = found.p_RKNM.shape[1]
    right_KN = np.stack([
        take(correct_NM, Argmax().choose(found.p_RKNM[r, k], found.expected_NM))
        for k in range(n_seeds)
    ])  # fmt: skip
    single_KN = np.stack([take(correct_NM, found.single_RKN[r, k]) for k in range(n_seeds)])
    auc_KMD = np.stack([
        auc_by_group(found.before_RKNM[r, k], correct_NM, dataset_N, len(names))
        for k in range(n_seeds)
    ])  # fmt: skip
    table = []
    for d, name in enumerate(names):
        at = (dataset_N == d) & complete_N
        auc_k = auc_KMD[:, :, d]
        table.append(
            {
                "dataset": name,
                "n": int((dataset_N == d).sum()),
                "n_complete": int(at.sum()),
                "accuracy": mean(right_KN[:, at]),
                "best_single_accuracy": mean(single_KN[:, at]),
                "oracle_accuracy": mean(correct_NM[at].max(axis=1, initial=0.0)),
                "mean_auc": mean(auc_k[~np.isnan(auc_k)]) if probabilistic else None,
            }
        )
    return table
