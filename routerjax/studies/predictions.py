"""Out-of-fold predictions of a comparison."""

import dataclasses

import numpy as np

from routerjax.routing.judged import Judged


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Out-of-fold predictions of R contestants with K seeds; filled in fold by fold.

    Attributes:
      p_RKNM: [R, K, N, M] P(correct) as a policy sees it.
      before_RKNM: [R, K, N, M] the same before calibration, by which AUC ranks.
      single_RKN: [R, K, N] the best single target by the training rows of the row's fold.
      rows: The outcomes and costs they are judged by.
    """

    p_RKNM: np.ndarray
    before_RKNM: np.ndarray
    single_RKN: np.ndarray
    rows: Judged

    @classmethod
    def empty(cls, n_contestants: int, n_seeds: int, rows: Judged) -> "Predictions":
        """No predictions yet: NaN."""
        shape = (n_contestants, n_seeds, *rows.data.y_NM.shape)
        p_RKNM, before_RKNM = (np.full(shape, np.nan, np.float32) for _ in range(2))
        return cls(p_RKNM, before_RKNM, np.zeros(shape[:3], np.int64), rows)
