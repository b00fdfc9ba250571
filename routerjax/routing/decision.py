"""Decision: the target that a router chose; and the mask of targets that it may choose."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from routerjax.routing.policy import Policy

Allowed: TypeAlias = list[str] | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Decision:
    """The target that should answer a query, and the estimates by which it was chosen.

    Attributes:
      target: Name of the chosen one.
      probabilities: {target: P(correct)}.
      spreads: {target: standard deviation over the ensemble's members of P(correct), each member's
        calibrated as their mean is}.
      costs: {target: expected USD}; None without prices, and None for a target without a price.
      policy: The policy that chose, as JSON values.
      trust: How far the router trusts itself on the query, from 1 (like the training's) to 0 (the
        targets differ as their mean outcomes do); None of a router without trust.
    """

    target: str
    probabilities: dict[str, float]
    spreads: dict[str, float]
    costs: dict[str, float | None] | None
    policy: dict[str, Any]
    trust: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)


def decided(
    targets: Sequence[str],
    choice_N: np.ndarray,
    p_NM: np.ndarray,
    spread_NM: np.ndarray,
    cost_NM: np.ndarray | None,
    policy: Policy,
    trust_N: np.ndarray | None = None,
) -> list[Decision]:
    """Decisions with names in place of columns.

    Args:
      targets: [M] names.
      choice_N: [N] indices of the chosen.
      p_NM, spread_NM: [N, M] P(correct), and its standard deviations over the members.
      cost_NM: [N, M] expected USD, NaN where unknown; None without prices.
      policy: The policy that chose.
      trust_N: [N] the trust in each query; None without.
    """

    def by_target(value_M: np.ndarray) -> dict[str, Any]:
        values = [None if math.isnan(value) else value for value in value_M.tolist()]
        return dict(zip(targets, values, strict=True))

    return [
        Decision(
            target=targets[choice],
            probabilities=by_target(p_NM[n]),
            spreads=by_target(spread_NM[n]),
            costs=None if cost_NM is None else by_target(cost_NM[n]),
            policy=policy.to_json(),
            trust=None if trust_N is None else float(trust_N[n]),
        )
        for n, choice in enumerate(choice_N)
    ]


def allowed_mask(
    allowed: Allowed | Sequence[Allowed] | None, targets: Sequence[str], n: int
) -> np.ndarray | None:
    """[n, M] bool, the targets that may answer each of n queries; None for all.

    Args:
      allowed: Names for all queries, or a list of names for each; None for all targets.
      targets: [M] names.
      n: Number of queries.

    Raises:
      ValueError: Another number of lists, nobody, or an unknown target.
    """
    if allowed is None:
        return None
    given: list[Any] = list(allowed)
    lists = [given] * n if all(isinstance(name, str) for name in given) else given
    if len(lists) != n:
        raise ValueError(
            f"allowed: expected names of targets, or a list of names for each of the {n} "
            f"queries, got {len(lists)} lists"
        )
    for names in lists:
        unknown = [name for name in names if name not in targets]
        if unknown or not len(names):
            raise ValueError(
                f"allowed: expected one or more of {', '.join(targets)}, got "
                f"{repr(unknown[0]) if unknown else 'none'}"
            )
    mask_nM = [[target in names for target in targets] for names in lists]
    return np.array(mask_nM, bool).reshape(n, len(targets))
