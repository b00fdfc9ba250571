"""Policy, the base of all policies, and the checked rows on which each chooses."""

import abc
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np


@dataclasses.dataclass(frozen=True)
class Policy(abc.ABC):
    """Names one target a query, from what the router predicts and what each answer should cost.

    A subclass is a frozen dataclass with `name` and `_choose`. Its first field, where it has one,
    is the number that a flag gives (`tolerance:0.2`); fields that `options` names may follow
    (`quality:0.8:0.95`). What `fit` learns is a field of its own, None until then, named by
    `learns`; the subclass has `_fit`.

    Attributes:
      name: What flags and router.json call it.
      learns: Name of the field that `fit` fills; empty where there is nothing to fit.
      options: Names of fields that flags and JSON leave out where they are None.
    """

    name: ClassVar[str]
    learns: ClassVar[str] = ""
    options: ClassVar[tuple[str, ...]] = ()

    def choose(
        self,
        p_NM: np.ndarray,
        cost_NM: np.ndarray | None,
        allowed_NM: np.ndarray | None = None,
        keys: Sequence[str] | None = None,
    ) -> np.ndarray:
        """[N] int64 the index of the target that should answer each query.

        Args:
          p_NM: [N, M] predicted P(correct), in [0, 1].
          cost_NM: [N, M] expected USD per query; None or NaN where it is unknown.
          allowed_NM: [N, M] bool, which targets may answer each query; None for all.
          keys: [N] texts of the queries, by whose hash a policy that mixes two settings decides
            which of them a query gets; None takes the rows' numbers.

        Raises:
          ValueError: A probability is NaN or outside [0, 1], the shapes differ, nobody may answer a
            query, the policy needs a cost that is unknown, or it needs to be fitted first.
        """
        rows = PolicyInputs.checked(p_NM, cost_NM, allowed_NM)
        if self.compares_costs:
            if self.learns and getattr(self, self.learns) is None:
                raise ValueError(
                    f"{self} has not been fitted: give it to fit_router, or take what "
                    f"fit_policy(policy, router, stores, data) returns"
                )
            rows.refuse_unknown_costs(self.name)
        return self._choose(rows, keys)

    def fit(
        self,
        p_NM: np.ndarray,
        cost_NM: np.ndarray | None,
        correct_NM: np.ndarray | None = None,
        paid_NM: np.ndarray | None = None,
        allowed_NM: np.ndarray | None = None,
        groups: Sequence[str] | None = None,
    ) -> Self:
        """The policy with what it must learn from rows that the predictions were not fitted on.

        Args:
          p_NM: [N, M] predicted P(correct).
          cost_NM: [N, M] expected USD per query.
          correct_NM: [N, M] 1, 0 or NaN; None takes p at its word.
          paid_NM: [N, M] USD per query as paid; None where that is `cost_NM`.
          allowed_NM: [N, M] bool, which targets may answer each query; None for all.
          groups: [N] the group of each row; rows of one group are not independent, which counts
            where a confidence is asked for. None where every row is its own.

        Returns:
          A fitted policy; itself where there is nothing to fit.

        Raises:
          ValueError: What it should hold cannot be reached on these rows; names the range that can.
        """
        if not self.learns or not self.compares_costs:
            return self
        rows = PolicyInputs.checked(p_NM, cost_NM, allowed_NM)
        rows.refuse_unknown_costs(self.name)
        if not len(rows.p_NM):
            raise ValueError(f"the {self.name} policy cannot be fitted on no rows")
        rows = dataclasses.replace(rows, groups=groups)
        return dataclasses.replace(self, **{self.learns: self._fit(rows, correct_NM, paid_NM)})

    @property
    def compares_costs(self) -> bool:
        """Whether the costs of all targets must be known; otherwise costs only break ties."""
        return True

    @property
    def words(self) -> str:
        """By what a target is chosen, such as "cheapest within 0.2 of the best"."""
        return str(self)

    @abc.abstractmethod
    def _choose(self, rows: "PolicyInputs", keys: Sequence[str] | None) -> np.ndarray:
        """[N] indices of targets; `keys` as in `coins`."""

    def _fit(
        self, rows: "PolicyInputs", correct_NM: np.ndarray | None, paid_NM: np.ndarray | None
    ) -> Any:
        """The value of the field `learns`; arguments as in `fit`."""
        raise TypeError(f"{type(self).__name__} learns {self.learns!r} and has no _fit")

    def to_json(self) -> dict[str, Any]:
        """The policy as JSON values; `policy_from_json` reads it back."""
        values = {
            key: value
            for key, value in dataclasses.asdict(self).items()
            if key not in self.options or value is not None
        }
        return {"name": self.name} | {key: _plain(value) for key, value in values.items()}

    def __str__(self) -> str:
        names = [field.name for field in dataclasses.fields(self)[:1]] + list(self.options)
        numbers = [value for name in names if (value := getattr(self, name)) is not None]
        return ":".join([self.name, *(f"{number:g}" for number in numbers)])


@dataclasses.dataclass(frozen=True, eq=False)
class PolicyInputs:
    """Checked rows.

    Attributes:
      p_NM: [N, M] float64 P(correct).
      cost_NM: [N, M] float64 expected USD per query, infinite where unknown.
      allowed_NM: [N, M] bool, who may answer; at least one in each row.
      groups: [N] the group of each row fitted on; None where every row is its own.
    """

    p_NM: np.ndarray
    cost_NM: np.ndarray
    allowed_NM: np.ndarray
    groups: Sequence[str] | None = None

    @classmethod
    def checked(
        cls, p_NM: np.ndarray, cost_NM: np.ndarray | None, allowed_NM: np.ndarray | None = None
    ) -> "PolicyInputs":
        """The arguments of `Policy.choose`, checked.

        Raises:
          ValueError: A probability is NaN or outside [0, 1], a cost negative, the shapes differ, or
            nobody is allowed to answer a query.
        """
        p_NM = check_probabilities(p_NM)
        if cost_NM is None:
            cost_NM = np.full(p_NM.shape, np.inf)
        cost_NM = np.asarray(cost_NM, np.float64)
        if cost_NM.shape != p_NM.shape:
            raise ValueError(
                f"cost_NM, USD per query of each target: expected the shape of p_NM, {p_NM.shape}, "
                f"got {cost_NM.shape}"
            )
        if (cost_NM < 0).any():
            raise ValueError(
                f"cost_NM, USD per query of each target: expected numbers >= 0, got {cost_NM.min()}"
            )
        cost_NM = np.where(np.isnan(cost_NM), np.inf, cost_NM)
        return cls(p_NM, cost_NM, _check_allowed(allowed_NM, p_NM.shape))

    def refuse_unknown_costs(self, name: str) -> None:
        """Refuses rows with an unknown cost, for a policy that compares costs.

        Args:
          name: Of the policy.

        Raises:
          ValueError: A target that may answer has no cost; names all of them.
        """
        unknown_M = (np.isinf(self.cost_NM) & self.allowed_NM).any(axis=0)
        if unknown_M.any():
            raise ValueError(
                f"cost_NM: the {name} policy compares costs, but those of targets "
                f"{np.flatnonzero(unknown_M).tolist()} (counted from 0) are unknown: give every "
                f"target a price in pool.json, or use the argmax policy"
            )

    def best(self, score_NM: np.ndarray) -> np.ndarray:
        """[N] int64 the allowed target of the largest score; ties as in `cheapest`."""
        score_NM = np.where(self.allowed_NM, score_NM, -np.inf)
        return cheapest(score_NM == score_NM.max(axis=1, keepdims=True), self.cost_NM, self.p_NM)


def cheapest(
    eligible_NM: np.ndarray, cost_NM: np.ndarray, p_NM: np.ndarray | None = None
) -> np.ndarray:
    """[N] int64 the cheapest eligible target; of equal costs the most probable, then the first.

    Args:
      eligible_NM: [N, M] bool, at least one of each row.
      cost_NM: [N, M] any unit; infinite where unknown.
      p_NM: [N, M] probabilities; None where only the order of the targets should break ties.
    """
    cost_NM = np.where(eligible_NM, cost_NM, np.inf)
    best_NM = eligible_NM & (cost_NM == cost_NM.min(axis=1, keepdims=True))
    return (best_NM if p_NM is None else np.where(best_NM, p_NM, -np.inf)).argmax(axis=1)


def take(value_NM: np.ndarray, choice_N: np.ndarray) -> np.ndarray:
    """[N] the value of each row's chosen target."""
    return np.take_along_axis(value_NM, choice_N[:, None], axis=1)[:, 0]


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
    # A mean of float32 sigmoids may round to just past 1. NaN is in no range.
    lowest, highest = -1e-6, 1 + 1e-6
    if not (p_NM.min(initial=0.0) >= lowest and p_NM.max(initial=0.0) <= highest):
        bad_NM = ~((p_NM >= lowest) & (p_NM <= highest))
        n, m = np.argwhere(bad_NM)[0]
        raise ValueError(
            f"p_NM, P(correct) of each query and target: expected numbers in [0, 1], got "
            f"{p_NM[n, m]} for query {n}, target {m} (and {bad_NM.sum() - 1} more); NaN comes from "
            f"features or weights that are not finite, other values from logits without a sigmoid"
        )
    return p_NM


def coins(keys: Sequence[str] | None, n: int) -> np.ndarray:
    """[n] float64 a number in [0, 1) for each query, a function of its key alone (BLAKE2b).

    A policy that mixes two settings compares it with their shares. The same query is decided alike
    at all times, alone and among others, and no random generator has to be kept.

    Args:
      keys: [n] what identifies each query, such as its text; None takes the rows' numbers.
      n: Number of queries.

    Raises:
      ValueError: There is another number of keys.
    """
    keys = [str(i) for i in range(n)] if keys is None else keys
    if len(keys) != n:
        raise ValueError(f"keys: expected one for each of the {n} queries, got {len(keys)}")
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=4).digest() for key in keys)
    return np.frombuffer(digests, "<u4") / 2.0**32


def is_number(value: Any, low: float, high: float = np.inf) -> bool:
    """Whether this is a finite number (no bool) in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return False
    return bool(np.isfinite(value) and low <= value <= high)


def check_share(value: Any, meaning: str) -> None:
    """Refuses what is not a number in [0, 1]; `meaning` names it in the ValueError."""
    if not is_number(value, 0, 1):
        raise ValueError(f"{meaning}: expected a number in [0, 1], got {value!r}")


def _plain(value: Any) -> Any:
    """A field's value as JSON has it: dicts without None, tuples as lists, numbers as floats."""
    if isinstance(value, dict):
        return {key: number for key, number in value.items() if number is not None}
    if value is None:
        return value
    return list(map(float, value)) if isinstance(value, tuple) else float(value)


def _check_allowed(allowed_NM: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if allowed_NM is None:
        return np.ones(shape, bool)
    allowed_NM = np.asarray(allowed_NM)
    if allowed_NM.shape != shape or allowed_NM.dtype != bool:
        raise ValueError(
            f"allowed_NM, who may answer each query: expected bool of the shape of p_NM, {shape}, "
            f"got {allowed_NM.dtype} of shape {allowed_NM.shape}"
        )
    nobody_N = ~allowed_NM.any(axis=1)
    if nobody_N.any():
        raise ValueError(
            f"allowed_NM, who may answer each query: expected at least one target for each, got "
            f"none for query {np.flatnonzero(nobody_N)[0]} (and {nobody_N.sum() - 1} more)"
        )
    return allowed_NM
