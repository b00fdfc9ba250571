"""Accuracies of the targets by their recorded outcomes, before anything is learnt."""

import numpy as np

from routerjax.data.dataset import RoutingDataset


def skill(data: RoutingDataset) -> np.ndarray:
    """[M] accuracy of each target; 0 where nothing is observed."""
    correct_NM = np.asarray(data.correct_NM, np.float64)
    seen_NM = np.isfinite(correct_NM)
    return np.where(seen_NM, correct_NM, 0.0).sum(axis=0) / np.maximum(seen_NM.sum(axis=0), 1)


def dataset_accuracies(train: RoutingDataset) -> dict[str, np.ndarray]:
    """[M] accuracy of each target on each dataset, by name; empty without names.

    One row of the target's overall accuracy is added to each dataset, so that a dataset of few rows
    does not reach 0 or 1.
    """
    if train.datasets is None:
        return {}
    overall_M = skill(train)
    name_N = np.asarray(train.datasets)
    by_name = {}
    for name in sorted(set(train.datasets)):
        rows = train.select(np.flatnonzero(name_N == name))
        seen_M = np.isfinite(rows.correct_NM).sum(axis=0)
        by_name[name] = (skill(rows) * seen_M + overall_M) / (seen_M + 1)
    return by_name
