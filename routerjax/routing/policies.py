"""Policies that weigh P(correct) against cost at a given rate of exchange, or look at p alone."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from routerjax.routing.policy_rows import Policy, PolicyInputs, cheapest, check_share, is_number


@dataclasses.dataclass(frozen=True)
class Argmax(Policy):
    """The most probable target. Of equally probable ones the cheapest, then the first.

    Costs only break ties: an unknown one counts as dearer than any that is known.
    """

    name: ClassVar[str] = "argmax"

    @property
    def compares_costs(self) -> bool:
        """False: an unknown cost is allowed."""
        return False

    @property
    def words(self) -> str:
        """See `Policy.words`."""
        return "most probable to be right"

    def _choose(self, rows: PolicyInputs, keys: Sequence[str] | None) -> np.ndarray:
        return rows.best(rows.p_NM)


@dataclasses.dataclass(frozen=True)
class Tolerance(Policy):
    """The cheapest target among those with p >= max p - tau.

    Of equally cheap ones the most probable, then the first. `Tolerance(0)` is `Argmax()`, and
    `Tolerance(1)` always takes the cheapest. The published policy (arXiv 2603.20895) compares
    input prices; this one compares costs per query.

    Attributes:
      tau: How much probability may be given up for a lower cost, in [0, 1].

    Raises:
      ValueError: tau is not in [0, 1].
    """

    tau: float = 0.2
    name: ClassVar[str] = "tolerance"

    def __post_init__(self) -> None:
        check_share(self.tau, "tau, the probability that may be given up for a lower cost")

    @property
    def words(self) -> str:
        """See `Policy.words`."""
        return f"cheapest within {self.tau:g} of the best"

    def _choose(self, rows: PolicyInputs, keys: Sequence[str] | None) -> np.ndarray:
        # A relative millionth of slack: 0.9 - 0.7 <= 0.2 holds in floating point too, and tau = 0
        # stays exact.
        p_NM = np.where(rows.allowed_NM, rows.p_NM, -np.inf)
        near_NM = p_NM.max(axis=1, keepdims=True) - p_NM <= self.tau * (1 + 1e-6)
        return cheapest(near_NM, rows.cost_NM, rows.p_NM)


@dataclasses.dataclass(frozen=True)
class Value(Policy):
    """The target of the largest usd x p - cost: what a right answer is worth, less its price.

    Of equal ones the cheapest, then the most probable. Maximises the mean value where p is
    calibrated. `Value(0)` always takes the cheapest.

    Attributes:
      usd: What a right answer is worth, USD, finite and at least 0.

    Raises:
      ValueError: usd is out of range.
    """

    usd: float
    name: ClassVar[str] = "value"

    def __post_init__(self) -> None:
        if not is_number(self.usd, 0):
            raise ValueError(
                f"usd, what a right answer is worth in USD: expected a finite number from 0 up, "
                f"got {self.usd!r}"
            )

    @property
    def words(self) -> str:
        """See `Policy.words`."""
        return f"most valuable, a right answer being worth {self.usd:g} USD"

    def _choose(self, rows: PolicyInputs, keys: Sequence[str] | None) -> np.ndarray:
        # Costs of targets that may not answer can be infinite; they are masked.
        return rows.best(self.usd * rows.p_NM - rows.cost_NM)


@dataclasses.dataclass(frozen=True)
class Utility(Policy):
    """The target of the largest lam x p - (1 - lam) x c, with costs c scaled to [0, 1].

    c = (cost - low) / (high - low), where low and high are the smallest and largest expected cost
    of any target on any of the rows it was fitted on: `fit_router` takes the training rows that
    the trunk did not train on. Costs beyond them go below 0 or above 1: clipped, unlike costs
    would become equal. It equals `Value(lam / (1 - lam) x (high - low))`, so lam has a meaning only
    together with the range; `Utility(1)` is `Argmax()`, `Utility(0)` takes the cheapest.

    Attributes:
      lam: Weight of being right, in [0, 1].
      cost_range: (low, high) USD per query; None until fitted.

    Raises:
      ValueError: lam is out of range, or the range is none.
    """

    lam: float
    cost_range: tuple[float, float] | None = None
    name: ClassVar[str] = "utility"
    learns: ClassVar[str] = "cost_range"

    def __post_init__(self) -> None:
        check_share(self.lam, "lam, the weight of being right")
        if self.cost_range is not None:
            ends = tuple(self.cost_range)
            if len(ends) != 2 or not is_number(ends[0], 0) or not is_number(ends[1], ends[0]):
                raise ValueError(
                    f"cost_range, the USD per query that count as 0 and 1: expected two ascending "
                    f"numbers from 0 up, got {self.cost_range!r}"
                )
            object.__setattr__(self, "cost_range", ends)  # JSON has lists.

    @property
    def compares_costs(self) -> bool:
        """False of `Utility(1)`, which looks at p alone."""
        return self.lam != 1

    @property
    def words(self) -> str:
        """See `Policy.words`."""
        return f"largest utility, being right weighted {self.lam:g}"

    def _choose(self, rows: PolicyInputs, keys: Sequence[str] | None) -> np.ndarray:
        if not self.compares_costs:
            return rows.best(rows.p_NM)
        assert self.cost_range is not None
        return choose_by_utility(rows, self.lam, self.cost_range)

    def _fit(
        self, rows: PolicyInputs, correct_NM: np.ndarray | None, paid_NM: np.ndarray | None
    ) -> tuple[float, float]:
        return cost_range(rows)


def cost_range(rows: PolicyInputs) -> tuple[float, float]:
    """The smallest and largest cost of any target on any row that it may answer, USD per query."""
    cost_A = rows.cost_NM[rows.allowed_NM]
    return float(cost_A.min()), float(cost_A.max())


def choose_by_utility(
    rows: PolicyInputs, lam: float | np.ndarray, ends: tuple[float, float]
) -> np.ndarray:
    """[N] the target of the largest lam p - (1 - lam) c.

    Args:
      rows: With known costs.
      lam: In [0, 1], one or [N, 1].
      ends: The costs that count as 0 and 1.
    """
    # Where all cost the same, c is 0 for all.
    scale = (ends[1] - ends[0]) or 1.0
    cost_NM = np.where(rows.allowed_NM, (rows.cost_NM - ends[0]) / scale, 0.0)
    return rows.best(lam * rows.p_NM - (1 - lam) * cost_NM)
