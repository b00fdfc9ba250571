"""Policies: from P(correct) and cost to the target that shall answer.

A policy sees two arrays, what the router predicts and what each answer is expected to cost, and
names one target a query. Cost is in USD per query, input and output tokens both priced, so a target
with cheap input and dear output is not mistaken for a cheap one.

    Argmax, Tolerance    policies.py
    Value, Utility       policies.py
    Budget, Quality      constrained.py
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from routerjax.routing.constrained import Budget, Quality
from routerjax.routing.policies import Argmax, Tolerance, Utility, Value
from routerjax.routing.policy_rows import cheapest, check_probabilities

__all__ = ["Argmax", "Budget", "Policy", "Quality", "Tolerance", "Utility", "Value",
           "check_probabilities", "cheapest", "parse_policy", "policy_from_json"]  # fmt: skip


class Policy(Protocol):
    """What a router needs of a policy; any object with these members is one."""

    name: ClassVar[str]

    def choose(
        self,
        p_NM: np.ndarray,
        cost_NM: np.ndarray | None,
        allowed_NM: np.ndarray | None = None,
        keys: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Picks a target for every query.

        Args:
          p_NM: [N, M] predicted P(correct), in [0, 1].
          cost_NM: [N, M] expected USD per query; None or NaN where it is unknown.
          allowed_NM: [N, M] bool, which targets may answer each query; None for all.
          keys: [N] texts of the queries, by whose hash a policy that mixes two settings decides
            which of them a query gets; None takes the rows' numbers.

        Returns:
          [N] int64 indices of targets.

        Raises:
          ValueError: A probability is NaN or outside [0, 1], the shapes differ, nobody may answer a
            query, the policy needs a cost that is unknown, or it needs to be fitted first.
        """

    def fit(
        self,
        p_NM: np.ndarray,
        cost_NM: np.ndarray | None,
        correct_NM: np.ndarray | None = None,
        paid_NM: np.ndarray | None = None,
    ) -> "Policy":
        """The policy with what it must learn from rows that the predictions were not fitted on.

        Args:
          p_NM: [N, M] predicted P(correct).
          cost_NM: [N, M] expected USD per query.
          correct_NM: [N, M] 1, 0 or NaN; None takes p at its word.
          paid_NM: [N, M] USD per query as paid; None where that is `cost_NM`.

        Returns:
          A fitted policy; itself where there is nothing to fit.

        Raises:
          ValueError: What it shall hold cannot be reached on these rows; names the range that can.
        """

    def to_json(self) -> dict[str, Any]:
        """The policy as JSON values; `policy_from_json` reads it back."""


_POLICIES: dict[str, Any] = {
    c.name: c for c in (Argmax, Tolerance, Utility, Value, Budget, Quality)
}
_FORMS = (
    "argmax, tolerance:TAU (such as tolerance:0.2), utility:LAM, value:USD (what a right answer is "
    "worth), budget:USD_PER_QUERY or quality:MIN_ACCURACY"
)


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
    """Reads a policy as a flag writes it; `str(policy)` writes one, without what was fitted.

    >>> parse_policy("tolerance:0.2")
    Tolerance(tau=0.2)

    Args:
      text: A name, or a name and a number with a colon between. Only tolerance has a default.

    Raises:
      ValueError: There is no such policy, or its number is missing, superfluous or out of range.
    """
    name, colon, number = text.strip().partition(":")
    kind = _POLICIES.get(name.strip().lower())
    if (
        kind is None
        or (colon and kind is Argmax)
        or (not colon and kind not in (Argmax, Tolerance))
    ):
        raise ValueError(f"policy: expected {_FORMS}, got {text!r}")
    if not colon:
        return kind()
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"policy: expected {_FORMS}, got {text!r}: {number!r} is not a number")
    return kind(value)
