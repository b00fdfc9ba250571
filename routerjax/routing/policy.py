"""Policies: from P(correct) and cost to the target that should answer.

A policy sees two arrays, what the router predicts and what each answer is expected to cost, and
names one target a query. Cost is in USD per query, input and output tokens both priced, so a target
with cheap input and dear output is not mistaken for a cheap one. A new policy is a frozen subclass
of `Policy` (policy_rows.py) and a name in POLICIES.

    Argmax, Tolerance, Value, Utility    policies.py
    Budget, Quality                      constrained.py
"""

import dataclasses
import math
from typing import Any

from routerjax.routing.constrained import Budget, Quality
from routerjax.routing.policies import Argmax, Tolerance, Utility, Value
from routerjax.routing.policy_rows import Policy

__all__ = ["POLICIES", "Policy", "parse_policy", "policy_from_json"]

# What flags and router.json may name.
POLICIES: dict[str, Any] = {
    kind.name: kind for kind in (Argmax, Tolerance, Utility, Value, Budget, Quality)
}


def policy_from_json(value: dict[str, Any]) -> Policy:
    """Reads what `to_json` wrote: `{"name": ...}` with the policy's own numbers beside it.

    Raises:
      ValueError: There is no such policy, or its numbers are missing, unknown or out of range.
    """
    if not isinstance(value, dict) or value.get("name") not in POLICIES:
        raise ValueError(
            f"policy: expected an object with a name of {', '.join(POLICIES)}, got {value!r}"
        )
    kind = POLICIES[value["name"]]
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
    kind = POLICIES.get(name.strip().lower())
    numbers = dataclasses.fields(kind)[:1] if kind else ()
    needed = [number for number in numbers if number.default is dataclasses.MISSING]
    if kind is None or (colon and not numbers) or (needed and not colon):
        raise ValueError(f"policy: expected {_forms()}, got {text!r}")
    if not colon:
        return kind()
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"policy: expected {_forms()}, got {text!r}: {number!r} is not a number")
    return kind(value)


def _forms() -> str:
    """Each policy as a flag writes it."""
    numbers = {name: dataclasses.fields(kind)[:1] for name, kind in POLICIES.items()}
    forms = [":".join([name, *(f.name.upper() for f in of)]) for name, of in numbers.items()]
    return f"{', '.join(forms[:-1])} or {forms[-1]} (such as tolerance:0.2)"
