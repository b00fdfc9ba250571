"""Budget and Quality: policies that hold a mean, of spending or of accuracy.

Budget maximises the mean P(correct) at a mean cost of at most `usd_per_query`; Quality minimises
the mean cost at a mean accuracy of at least `min_accuracy`. By Lagrange's rule the best choices are
those of a utility lam p - (1 - lam) c for some lam; fitting finds the lam at which the mean on
held-out rows meets the bound. That mean moves in steps, and one step can be large where many
queries look alike. So two neighbouring lam on either side of the bound are kept, and a fixed share
of queries is decided by each: the mean is met exactly in expectation, as a mixture of two points of
the frontier. Who decides on a query depends on a hash of its text (`coins`), so that it is decided
alike each time.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from routerjax.routing.policies import choose_by_utility, cost_range
from routerjax.routing.policy_rows import Policy, PolicyInputs, check_share, coins, is_number, take

# Where the bracket is looked for: rates of exchange over sixteen decades, and both extremes.
_ODDS = np.geomspace(1e-8, 1e8, 33)
_LAMS = np.concatenate([[0.0], _ODDS / (1 + _ODDS), [1.0]])
_BISECTIONS = 40


class Unreachable(ValueError):
    """No setting of a policy holds the mean it should hold on the rows it is fitted on."""


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Two utilities, and the share of queries that the second decides.

    Attributes:
      lam_low: Weight of being right in the cheaper one, in [0, 1].
      lam_high: In the dearer one.
      share_high: Of queries decided by the dearer one, in [0, 1].
      low: USD per query that counts as 0.
      high: USD per query that counts as 1.

    Raises:
      ValueError: A number is out of range.
    """

    lam_low: float
    lam_high: float
    share_high: float
    low: float
    high: float

    def __post_init__(self) -> None:
        for name in ("lam_low", "lam_high", "share_high"):
            check_share(getattr(self, name), name)
        if not is_number(self.low, 0) or not is_number(self.high, self.low):
            raise ValueError(
                f"low and high, costs in USD: expected ascending numbers from 0 up, got "
                f"{self.low!r} and {self.high!r}"
            )

    def choose(self, rows: PolicyInputs, keys: Sequence[str] | None) -> np.ndarray:
        """[N] choices; `keys` as in `coins`."""
        high_N = coins(keys, len(rows.p_NM)) < self.share_high
        lam_N1 = np.where(high_N, self.lam_high, self.lam_low)[:, None]
        return choose_by_utility(rows, lam_N1, (self.low, self.high))


class _Constrained(Policy):
    """Holds a mean by a mixture of two utilities."""

    fitted: Mixture | None
    learns: ClassVar[str] = "fitted"

    def __post_init__(self) -> None:
        if isinstance(self.fitted, dict):  # As JSON has a mixture.
            names = sorted(field.name for field in dataclasses.fields(Mixture))
            if sorted(self.fitted) != names:
                raise ValueError(f"fitted: expected the numbers {names}, got {sorted(self.fitted)}")
            object.__setattr__(self, "fitted", Mixture(**self.fitted))

    def _choose(self, rows: PolicyInputs, keys: Sequence[str] | None) -> np.ndarray:
        assert self.fitted is not None
        return self.fitted.choose(rows, keys)


@dataclasses.dataclass(frozen=True)
class Budget(_Constrained):
    """The best accuracy at a mean spending of `usd_per_query`.

    Where even the most probable targets cost less than the budget, they are taken, and what is left
    of it stays unspent. The mean is over all queries of the kind it was fitted on; one query may
    cost more, and a subset of allowed targets moves the mean. `fit` counts spending as paid, where
    that is known; it raises Unreachable where even the cheapest targets cost more.

    Attributes:
      usd_per_query: Mean USD per query, above 0.
      fitted: What `fit` learnt; None until then.

    Raises:
      ValueError: The budget is out of range.
    """

    usd_per_query: float
    fitted: Mixture | None = None
    name: ClassVar[str] = "budget"

    def __post_init__(self) -> None:
        if not is_number(self.usd_per_query, 0) or self.usd_per_query == 0:
            raise ValueError(
                f"usd_per_query, what a query may cost on the mean in USD: expected a finite "
                f"number above 0, got {self.usd_per_query!r}"
            )
        super().__post_init__()

    @property
    def words(self) -> str:
        """See `Policy.words`."""
        return f"most accurate at a mean of {self.usd_per_query:g} USD a query"

    def _fit(
        self, rows: PolicyInputs, correct_NM: np.ndarray | None, paid_NM: np.ndarray | None
    ) -> Mixture:
        ends = cost_range(rows)
        spent_NM = rows.cost_NM if paid_NM is None else np.asarray(paid_NM, np.float64)

        def mean_spending(lam: float) -> float:
            return float(take(spent_NM, choose_by_utility(rows, lam, ends)).mean())

        spending_G = np.array([mean_spending(lam) for lam in _LAMS])
        if spending_G[0] > self.usd_per_query * (1 + 1e-9):
            raise Unreachable(
                f"usd_per_query: a budget of {self.usd_per_query:g} USD cannot be held: on the "
                f"{len(rows.p_NM)} rows it is fitted on, {spending_G[0]:.6g} (always the cheapest "
                f"target) to {spending_G.max():.6g} USD per query can be reached"
            )
        return Mixture(*_between(mean_spending, spending_G, self.usd_per_query), *ends)


@dataclasses.dataclass(frozen=True)
class Quality(_Constrained):
    """The least spending at a mean accuracy of `min_accuracy`.

    Where even the cheapest targets are more accurate, they are taken. The mean is over all queries
    of the kind it was fitted on, and as sure as the rows it was fitted on are many: on n of them an
    accuracy a is known to about sqrt(a (1 - a) / n).

    `fit` counts accuracy by outcomes, not by p: of several predictions the largest is the most
    likely to be too large, however well each is calibrated. Where outcomes are missing, accuracy is
    the mean p of all choices plus the mean of outcome - p over those observed, which is the mean
    outcome where none is missing. It raises Unreachable where no setting is as accurate.

    Attributes:
      min_accuracy: Mean accuracy to hold, in [0, 1].
      fitted: What `fit` learnt; None until then.

    Raises:
      ValueError: The accuracy is out of range.
    """

    min_accuracy: float
    fitted: Mixture | None = None
    name: ClassVar[str] = "quality"

    def __post_init__(self) -> None:
        check_share(self.min_accuracy, "min_accuracy, the mean accuracy to hold")
        super().__post_init__()

    @property
    def words(self) -> str:
        """See `Policy.words`."""
        return f"cheapest at a mean accuracy of {self.min_accuracy:g}"

    def _fit(
        self, rows: PolicyInputs, correct_NM: np.ndarray | None, paid_NM: np.ndarray | None
    ) -> Mixture:
        ends = cost_range(rows)
        error_NM = None if correct_NM is None else np.asarray(correct_NM, np.float64) - rows.p_NM

        def accuracy(lam: float) -> float:
            choice_N = choose_by_utility(rows, lam, ends)
            mean = float(take(rows.p_NM, choice_N).mean())
            if error_NM is None:
                return mean
            error_N = take(error_NM, choice_N)
            seen_N = ~np.isnan(error_N)
            return mean + (float(error_N[seen_N].mean()) if seen_N.any() else 0.0)

        accuracy_G = np.array([accuracy(lam) for lam in _LAMS])
        if accuracy_G.max() < self.min_accuracy - 1e-9:
            raise Unreachable(
                f"min_accuracy: a mean accuracy of {self.min_accuracy:g} cannot be held: on the "
                f"{len(rows.p_NM)} rows it is fitted on, {accuracy_G[0]:.4f} (always the cheapest "
                f"target) to {accuracy_G.max():.4f} can be reached"
            )
        wanted = min(self.min_accuracy, accuracy_G.max())
        return Mixture(*_between(accuracy, accuracy_G, wanted), *ends)


def _between(
    measure: Callable[[float], float], value_G: np.ndarray, wanted: float
) -> tuple[float, float, float]:
    """(lam_low, lam_high, share): lam_low and lam_high enclose the first lam at which `measure`
    reaches `wanted`, and lam_high decides on that share of the queries.

    (0, 0, 1) where the first value of the grid reaches it already, (1, 1, 1) where none does.
    """
    reached_G = value_G >= wanted
    if reached_G[0] or not reached_G.any():
        end = 0.0 if reached_G[0] else 1.0
        return end, end, 1.0
    above = int(reached_G.argmax())
    (low, high), (at_low, at_high) = _LAMS[above - 1 : above + 1], value_G[above - 1 : above + 1]
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        value = measure(middle)
        if value >= wanted:
            high, at_high = middle, value
        else:
            low, at_low = middle, value
    return float(low), float(high), float((wanted - at_low) / (at_high - at_low))
