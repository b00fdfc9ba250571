"""Policies: from P(correct) and cost to the target that shall answer.

A policy sees two arrays, what the router predicts and what each answer is expected to cost, and
names one target a query. Cost is in USD per query, input and output tokens both priced, so a target
with cheap input and dear output is not mistaken for a cheap one.
"""

import dataclasses
import math
from typing import Any, ClassVar, Protocol

import numpy as np


class Policy(Protocol):
    """What a router needs of a policy; any object with these members is one."""

    name: ClassVar[str]

    def choose(self, p_NM: np.ndarray, cost_NM: np.ndarray | None) -> np.ndarray:
        """Picks a target for every query.

        Args:
          p_NM: [N, M] predicted P(correct), in [0, 1].
          cost_NM: [N, M] expected USD per query; None or NaN where it is unknown.

        Returns:
          [N] int64 indices of targets.

        Raises:
          ValueError: A probability is NaN or outside [0, 1], the shapes differ, or the policy needs
            a cost that is unknown.
        """

    def to_json(self) -> dict[str, Any]:
        """The policy as JSON values; `policy_from_json` reads it back."""


@dataclasses.dataclass(frozen=True)
class Argmax:
    """The most probable target. Of equally probable ones the cheapest, then the first.

    Costs only break ties: an unknown one counts as dearer than any that is known.
    """

    name: ClassVar[str] = "argmax"

    def choose(self, p_NM: np.ndarray, cost_NM: np.ndarray | None) -> np.ndarray:
        """Picks the target of the largest p in each row; see `Policy.choose`."""
        p_NM, cost_NM = _checked(p_NM, cost_NM)
        return cheapest(p_NM == p_NM.max(axis=1, keepdims=True), cost_NM, p_NM)

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

    def choose(self, p_NM: np.ndarray, cost_NM: np.ndarray | None) -> np.ndarray:
        """Picks the cheapest target within tau of the best; see `Policy.choose`."""
        p_NM, cost_NM = _checked(p_NM, cost_NM)
        unknown_M = np.isinf(cost_NM).any(axis=0)
        if unknown_M.any() and len(p_NM):
            raise ValueError(
                f"cost_NM: the tolerance policy compares costs, but those of targets "
                f"{np.flatnonzero(unknown_M).tolist()} (counted from 0) are unknown: give every "
                f"target a price in pool.json, or use the argmax policy"
            )
        # A relative millionth of slack: 0.9 - 0.7 <= 0.2 holds in floating point too, and tau = 0
        # stays exact.
        near_NM = p_NM.max(axis=1, keepdims=True) - p_NM <= self.tau * (1 + 1e-6)
        return cheapest(near_NM, cost_NM, p_NM)

    def to_json(self) -> dict[str, Any]:
        """`{"name": "tolerance", "tau": ...}`."""
        return {"name": self.name, "tau": float(self.tau)}

    def __str__(self) -> str:
        return f"{self.name}:{self.tau:g}"


_POLICIES: dict[str, type[Argmax] | type[Tolerance]] = {c.name: c for c in (Argmax, Tolerance)}
_FORMS = "'argmax' or 'tolerance:TAU', such as 'tolerance:0.2'"


def policy_from_json(value: dict[str, Any]) -> Policy:
    """Reads what `to_json` wrote.

    Args:
      value: `{"name": ...}` with the policy's own numbers beside it.

    Raises:
      ValueError: There is no such policy, or its numbers are missing, unknown or out of range.
    """
    if not isinstance(value, dict) or value.get("name") not in _POLICIES:
        raise ValueError(
            f"policy: expected an object with a name of {', '.join(_POLICIES)}, got {value!r}"
        )
    kind = _POLICIES[value["name"]]
    expected = sorted(field.name for field in dataclasses.fields(kind))
    numbers = {key: number for key, number in value.items() if key != "name"}
    if sorted(numbers) != expected:
        raise ValueError(
            f"policy {kind.name!r}: expected the numbers {expected}, got {sorted(numbers)}"
        )
    return kind(**numbers)


def parse_policy(text: str) -> Policy:
    """Reads a policy as a flag writes it; `str(policy)` writes one.

    >>> parse_policy("tolerance:0.2")
    Tolerance(tau=0.2)

    Args:
      text: A name, or a name and a number with a colon between. Without the number the default.

    Raises:
      ValueError: There is no such policy, or its number is missing, superfluous or out of range.
    """
    name, colon, number = text.strip().partition(":")
    kind = _POLICIES.get(name.strip().lower())
    if kind is None or (colon and kind is Argmax):
        raise ValueError(f"policy: expected {_FORMS}, got {text!r}")
    if not colon:
        return kind()
    try:
        tau = float(number)
    except ValueError:
        tau = math.nan
    if math.isnan(tau):
        raise ValueError(f"policy: expected {_FORMS}, got {text!r}: {number!r} is not a number")
    return Tolerance(tau)


def cheapest(
    eligible_NM: np.ndarray, cost_NM: np.ndarray, p_NM: np.ndarray | None = None
) -> np.ndarray:
    """The cheapest eligible target of each row; of equal costs the most probable, then the first.

    Args:
      eligible_NM: [N, M] bool, at least one of each row.
      cost_NM: [N, M] any unit; infinite where unknown.
      p_NM: [N, M] probabilities; None where only the order of the targets shall break ties.

    Returns:
      [N] int64 indices of targets.
    """
    cost_NM = np.where(eligible_NM, cost_NM, np.inf)
    best_NM = eligible_NM & (cost_NM == cost_NM.min(axis=1, keepdims=True))
    return (best_NM if p_NM is None else np.where(best_NM, p_NM, -np.inf)).argmax(axis=1)


def check_probabilities(p_NM: np.ndarray) -> np.ndarray:
    """`p_NM` as float64 [N, M].

    Raises:
      ValueError: It has another rank, no targets, NaN, or values outside [0, 1].
    """
    p_NM = np.asarray(p_NM, np.float64)
    if p_NM.ndim != 2 or p_NM.shape[1] == 0:
        raise ValueError(
            f"p_NM, P(correct) of each query and target: expected shape [N, M] with M >= 1, got "
            f"{p_NM.shape}"
        )
    # A mean of float32 sigmoids may round to just past 1.
    bad_NM = ~((p_NM >= -1e-6) & (p_NM <= 1 + 1e-6))
    if bad_NM.any():
        n, m = np.argwhere(bad_NM)[0]
        raise ValueError(
            f"p_NM, P(correct) of each query and target: expected numbers in [0, 1], got "
            f"{p_NM[n, m]} for query {n}, target {m} (and {bad_NM.sum() - 1} more); NaN comes from "
            f"features or weights that are not finite, other values from logits without a sigmoid"
        )
    return p_NM


def _checked(p_NM: np.ndarray, cost_NM: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [N, M], unknown costs as infinity."""
    p_NM = check_probabilities(p_NM)
    if cost_NM is None:
        return p_NM, np.full(p_NM.shape, np.inf)
    cost_NM = np.asarray(cost_NM, np.float64)
    if cost_NM.shape != p_NM.shape:
        raise ValueError(
            f"cost_NM, USD per query of each target: expected the shape of p_NM, {p_NM.shape}, got "
            f"{cost_NM.shape}"
        )
    if (cost_NM < 0).any():
        raise ValueError(
            f"cost_NM, USD per query of each target: expected numbers >= 0, got {cost_NM.min()}"
        )
    return p_NM, np.where(np.isnan(cost_NM), np.inf, cost_NM)
