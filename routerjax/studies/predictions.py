"""Out-of-fold predictions of a comparison."""

import dataclasses

import numpy as np

from routerjax.data.dataset import RoutingDataset


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Out-of-fold predictions of R contestants with K seeds; filled in fold by fold.

    Attributes:
      p_RKNM: [R, K, N, M] P(correct) as a policy sees it.
      before_RKNM: [R, K, N, M] the same before calibration, by which AUC ranks.
      single_RKN: [R, K, N] the best single target by the training rows of the row's fold.
      expected_NM: [N, M] USD per query as known before the answer; NaN where unknown.
      paid_NM: [N, M] USD per query as paid; NaN where unknown.
      cost_basis: What `paid_NM` is based on, "recorded" lengths of answers or "assumed" ones; None
        without prices.
    """

    p_RKNM: np.ndarray
    before_RKNM: np.ndarray
    single_RKN: np.ndarray
    expected_NM: np.ndarray
    paid_NM: np.ndarray
    cost_basis: str | None = None

    @classmethod
    def empty(cls, n_contestants: int, n_seeds: int, data: RoutingDataset) -> "Predictions":
        """Nothing found yet."""
        shape = (n_contestants, n_seeds, *data.y_NM.shape)
        p_RKNM, before_RKNM = (np.full(shape, np.nan, np.float32) for _ in range(2))
        expected_NM, paid_NM = (np.full(shape[2:], np.nan) for _ in range(2))
        return cls(p_RKNM, before_RKNM, np.zeros(shape[:3], np.int64), expected_NM, paid_NM)
