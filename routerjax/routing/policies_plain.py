"""Argmax and Tolerance: policies without a number for what a right answer is worth."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from routerjax.routing.policy_rows import PolicyRows, cheapest


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
        rows = PolicyRows.checked(p_NM, cost_NM, allowed_NM)
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
        rows = PolicyRows.checked(p_NM, cost_NM, allowed_NM)
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
