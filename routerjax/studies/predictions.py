"""What a comparison's fits found, and where the tolerance policy takes it."""

import dataclasses

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.evaluation.frontier import take
from routerjax.evaluation.metrics import TOLERANCES
from routerjax.evaluation.published import aiq
from routerjax.routing.policies import Tolerance
from routerjax.stats.bootstrap import reverse_percentile
from routerjax.stats.intervals import LEVEL


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


class ToleranceSweep:
    """Where the tolerance policy lands at each of its settings, on the complete rows and in draws.

    Args:
      found: The predictions.
      correct_NM: [N, M] outcomes.
      at: [n] the complete rows.
      weight_BN: [B, N] of the draws.
    """

    def __init__(
        self, found: Predictions, correct_NM: np.ndarray, at: np.ndarray, weight_BN: np.ndarray
    ):
        self._found, self._at = found, at
        self._correct_nM, self._paid_nM = correct_NM[at], found.paid_NM[at]
        # The rows as they are, then as they are drawn.
        weight_Bn = np.asarray(weight_BN, np.float64)[:, at]
        weight_Bn = np.concatenate([np.ones((1, len(at))), weight_Bn])
        self._share_Bn = weight_Bn / weight_Bn.sum(axis=1, keepdims=True)
        self._cheap_BM, self._single_BM = (
            self._share_Bn @ each_nM for each_nM in (self._paid_nM, self._correct_nM)
        )

    def points(self, r: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Cost and accuracy [1 + B, T] of a contestant and seed; the first row is the value."""
        p_nM, expected_nM = self._found.p_RKNM[r, k][self._at], self._found.expected_NM[self._at]
        choice_Tn = [Tolerance(tau).choose(p_nM, expected_nM) for tau in TOLERANCES]
        cost_nT, right_nT = (
            np.stack([take(each_nM, choice_n) for choice_n in choice_Tn], axis=1)
            for each_nM in (self._paid_nM, self._correct_nM)
        )
        return self._share_Bn @ cost_nT, self._share_Bn @ right_nT

    def aiq(self, r: int, k: int) -> tuple[float, np.ndarray]:
        """AIQ and its replicates [B], from the cheapest single target to the dearest."""
        cost_BT, right_BT = self.points(r, k)
        order_BM = np.argsort(self._cheap_BM, axis=1)
        low_B, high_B = (
            np.take_along_axis(self._cheap_BM, order_BM[:, [m]], axis=1)[:, 0] for m in (0, -1)
        )
        start_B1 = np.take_along_axis(self._single_BM, order_BM[:, :1], axis=1)
        value_B = aiq(
            np.concatenate([cost_BT, low_B[:, None]], axis=1),
            np.concatenate([right_BT, start_B1], axis=1),
            low_B,
            high_B,
        )
        return float(value_B[0]), value_B[1:]

    def frontier(self, r: int) -> list[list[float]]:
        """[T, 4] cost, accuracy and the ends of its interval, means over seeds."""
        n_seeds = self._found.p_RKNM.shape[1]
        cost_BT, right_BT = (
            np.mean(each, axis=0)
            for each in zip(*(self.points(r, k) for k in range(n_seeds)), strict=True)
        )
        ends = reverse_percentile(right_BT[0], right_BT[1:], LEVEL)
        return np.column_stack([cost_BT[0], right_BT[0], *ends]).tolist()
