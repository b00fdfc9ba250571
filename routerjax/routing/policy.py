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
    expected = sorted({field.name for field in dataclasses.fields(kind)} - set(kind.options))
    numbers = {key: number for key, number in value.items() if key != "name"}
    if sorted(set(numbers) - set(kind.options)) != expected:
        raise ValueError(
            f"policy {kind.name!r}: expected the numbers {expected}, got {sorted(numbers)}"
        )
    return kind(**numbers)


def parse_policy(text: str) -> Policy:
    """Reads a policy as a flag writes it; `str(policy)` writes one, without what was fitted.

    >>> parse_policy("tolerance:0.2")
    Tolerance(tau=0.2)

    Args:
      text: A name, or a name and a number with a colon between; of quality perhaps a second number,
        the confidence. Only tolerance has a default.

    Raises:
      ValueError: There is no such policy, or a number is missing, superfluous or out of range.
    """
    name, *numbers = text.strip().split(":")
    kind = POLICIES.get(name.strip().lower())
    names, n_needed = _numbers(kind) if kind else ([], 0)
    if kind is None or not n_needed <= len(numbers) <= len(names):
        raise ValueError(f"policy: expected {_forms()}, got {text!r}")
    values = {}
    for name, number in zip(names, numbers, strict=False):
        try:
            values[name] = float(number)
        except ValueError:
            values[name] = math.nan
        if math.isnan(values[name]):
            raise ValueError(
                f"policy: expected {_forms()}, got {text!r}: {number!r} is not a number"
            )
    return kind(**values)


def _numbers(kind: Any) -> tuple[list[str], int]:
    """The numbers that a flag may give a policy, and how many of them it must."""
    first = dataclasses.fields(kind)[:1]
    needed = [field for field in first if field.default is dataclasses.MISSING]
    return [*(field.name for field in first), *kind.options], len(needed)


def _forms() -> str:
    """Each policy as a flag writes it."""
    forms = []
    for name, kind in POLICIES.items():
        first, optional = [field.name for field in dataclasses.fields(kind)[:1]], kind.options
        forms.append("".join([name, *(f":{number.upper()}" for number in first),
                              *(f"[:{number.upper()}]" for number in optional)]))  # fmt: skip
    return f"{', '.join(forms[:-1])} or {forms[-1]} (such as tolerance:0.2)"
