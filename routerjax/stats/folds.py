"""Rows laid out by fold, padded to equal lengths."""

from typing import NamedTuple

import numpy as np


class FoldLayout(NamedTuple):
    """Rows split into folds of equal length.

    Attributes:
      row_FR: [F, R] int64 positions of the rows; 0 where there is none.
      weight_FR: [F, R] float32, 1 where there is a row.
    """

    row_FR: np.ndarray
    weight_FR: np.ndarray

    @classmethod
    def of(cls, fold_N: np.ndarray, n_folds: int) -> "FoldLayout":
        """The layout of rows whose folds are given, [N] integers in [0, n_folds)."""
        longest = int(np.bincount(fold_N, minlength=n_folds).max())
        row_FR = np.zeros((n_folds, longest), np.int64)
        weight_FR = np.zeros((n_folds, longest), np.float32)
        for fold in range(n_folds):
            rows = np.flatnonzero(fold_N == fold)
            row_FR[fold, : len(rows)] = rows
            weight_FR[fold, : len(rows)] = 1.0
        return cls(row_FR, weight_FR)
