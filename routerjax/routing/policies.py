"""Value and Utility: policies that weigh P(correct) against cost at a given rate of exchange."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from routerjax.routing.policy_rows import PolicyInputs, cheapest


def is_number(value: Any, low: float, high: float = np.inf) -> bool:
    """Whether this is a finite number (no bool) in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return False
    return bool(np.isfinite(value) and low <= value <= high)


@dataclasses.dataclass(frozen=True)
class Value:
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

    def choose(
        self,
        p_NM: np.ndarray,
        cost_NM: np.ndarray | None,
        allowed_NM: np.ndarray | None = None,
        keys: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Picks the target worth most; see `Policy.choose`."""
        rows = PolicyInputs.checked(p_NM, cost_NM, allowed_NM)
        rows.refuse_unknown_costs(self.name)
        # Costs of targets that may not answer can be infinite; they are masked.
        return rows.best(self.usd * rows.p_NM - rows.cost_NM)

    def fit(self, *rows: Any, **more: Any) -> "Value":
        """Itself: there is nothing to fit."""
        return self

    def to_json(self) -> dict[str, Any]:
        """`{"name": "value", "usd": ...}`."""
        return {"name": self.name, "usd": float(self.usd)}

    def __str__(self) -> str:
        return f"{self.name}:{self.usd:g}"


@dataclasses.dataclass(frozen=True)
class Utility:
    """The target of the largest lam x p - (1 - lam) x c, with costs c scaled to [0, 1].

    c = (cost - low) / (high - low), where low and high are the smallest and largest expected cost
    of any target on any of the rows it was fitted on: `fit_router` takes the training rows that
    the trunk did not train on. Costs beyond them go below 0 or above 1 rather than be clipped,
    which would make unlike costs equal. It equals `Value(lam / (1 - lam) x (high - low))`, so lam
    has a meaning only together with the range; `Utility(1)` is `Argmax()`, `Utility(0)` takes the
    cheapest.

    Attributes:
      lam: Weight of being right, in [0, 1].
      cost_range: (low, high) USD per query; None until fitted.

    Raises:
      ValueError: lam is out of range, or the range is none.
    """

    lam: float
    cost_range: tuple[float, float] | None = None
    name: ClassVar[str] = "utility"

    def __post_init__(self) -> None:
        if not is_number(self.lam, 0, 1):
            raise ValueError(
                f"lam, the weight of being right: expected a number in [0, 1], got {self.lam!r}"
            )
        if self.cost_range is not None:
            ends = tuple(self.cost_range)
            if len(ends) != 2 or not is_number(ends[0], 0) or not is_number(ends[1], ends[0]):
                raise ValueError(
                    f"cost_range, the USD per query that count as 0 and 1: expected two ascending "
                    f"numbers from 0 up, got {self.cost_range!r}"
                )
            object.__setattr__(self, "cost_range", ends)  # JSON has lists.

    def choose(
        self,
        p_NM: np.ndarray,
        cost_NM: np.ndarray | None,
        allowed_NM: np.ndarray | None = None,
        keys: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Picks the target of the largest utility; see `Policy.choose`."""
        rows = PolicyInputs.checked(p_NM, cost_NM, allowed_NM)
        if self.lam == 1:
            return rows.best(rows.p_NM)
        if self.cost_range is None:
            raise ValueError(
                f"{self} does not know its range of costs yet: give it to fit_router, or take what "
                f"fit_policy(policy, router, stores, data) returns"
            )
        rows.refuse_unknown_costs(self.name)
        return choose_by_utility(rows, self.lam, self.cost_range)

    def fit(
        self,
        p_NM: np.ndarray,
        cost_NM: np.ndarray | None,
        correct_NM: np.ndarray | None = None,
        paid_NM: np.ndarray | None = None,
    ) -> "Utility":
        """With the range of these costs; see `Policy.fit`."""
        if self.lam == 1:
            return self
        return dataclasses.replace(self, cost_range=cost_range(p_NM, cost_NM, self.name))

    def to_json(self) -> dict[str, Any]:
        """`{"name": "utility", "lam": ..., "cost_range": [low, high]}`."""
        ends = None if self.cost_range is None else list(map(float, self.cost_range))
        return {"name": self.name, "lam": float(self.lam), "cost_range": ends}

    def __str__(self) -> str:
        return f"{self.name}:{self.lam:g}"


def cost_range(p_NM: np.ndarray, cost_NM: np.ndarray | None, name: str) -> tuple[float, float]:
    """The smallest and largest cost of any target on any row.

    Args:
      p_NM: [N, M] predicted P(correct).
      cost_NM: [N, M] expected USD per query.
      name: Of the policy, for errors.

    Raises:
      ValueError: A cost is unknown, or there is no row.
    """
    rows = PolicyInputs.checked(p_NM, cost_NM)
    rows.refuse_unknown_costs(name)
    if not len(rows.p_NM):
        raise ValueError(f"the {name} policy cannot be fitted on no rows")
    return float(rows.cost_NM.min()), float(rows.cost_NM.max())


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


@dataclasses.dataclass(frozen=True)
class Argmax:
    """The most probable target. Of equally probable ones the cheapest, then the first.

    Costs only break ties: an unknown one counts as dearer than any that is known.
    """

    name: ClassVar[str] = "argmax"

    def choose(
        self,
        p_NM: np.ndarray,
        cost_NM: np.ndarray | None,
        allowed_NM: np.ndarray | None = None,
        keys: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Picks the target of the largest p in each row; see `Policy.choose`."""
        rows = PolicyInputs.checked(p_NM, cost_NM, allowed_NM)
        return rows.best(rows.p_NM)

    def fit(self, *rows: Any, **more: Any) -> "Argmax":
        """Itself: there is nothing to fit."""
        return self

    def to_json(self) -> dict[str, Any]:
        """`{"name": "argmax"}`."""
        return {"name": self.name}

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Tolerance:
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
        tau = self.tau
        if isinstance(tau, bool) or not isinstance(tau, int | float | np.number) or not (
            0 <= tau <= 1
        ):  # fmt: skip
            raise ValueError(
                f"tau, the probability that may be given up for a lower cost: expected a number in "
                f"[0, 1], got {tau!r}"
            )

    def choose(
        self,
        p_NM: np.ndarray,
        cost_NM: np.ndarray | None,
        allowed_NM: np.ndarray | None = None,
        keys: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Picks the cheapest target within tau of the best; see `Policy.choose`."""
        rows = PolicyInputs.checked(p_NM, cost_NM, allowed_NM)
        rows.refuse_unknown_costs(self.name)
        # A relative millionth of slack: 0.9 - 0.7 <= 0.2 holds in floating point too, and tau = 0
        # stays exact.
        p_NM = np.where(rows.allowed_NM, rows.p_NM, -np.inf)
        near_NM = p_NM.max(axis=1, keepdims=True) - p_NM <= self.tau * (1 + 1e-6)
        return cheapest(near_NM, rows.cost_NM, rows.p_NM)

    def fit(self, *rows: Any, **more: Any) -> "Tolerance":
        """Itself: there is nothing to fit."""
        return self

    def to_json(self) -> dict[str, Any]:
        """`{"name": "tolerance", "tau": ...}`."""
        return {"name": self.name, "tau": float(self.tau)}

    def __str__(self) -> str:
        return f"{self.name}:{self.tau:g}"
