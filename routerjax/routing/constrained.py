"""Budget and Quality: policies that hold a mean, of spending or of accuracy.

Budget maximises the mean P(correct) at a mean cost of at most `usd_per_query`; Quality minimises
the mean cost at a mean accuracy of at least `min_accuracy`. By Lagrange's rule the best choices are
those of a utility lam p - (1 - lam) c for some lam; fitting finds the lam at which the mean on
held-out rows meets the bound. That mean moves in steps, and one step can be large where many
queries look alike. So two neighbouring lam on either side of the bound are kept, and a fixed share
of queries is decided by each: the mean is met exactly in expectation, as a mixture of two points of
the frontier. Who decides on a query depends on a hash of its text (`coins`), so that it is decided
alike each time.

A mean that is met on the rows fitted to is missed on others about half of the time. With a stated
confidence the settings are therefore tested, from the most accurate one by the predictions (argmax)
to the cheapest, until one fails; the last that passed is kept. This is fixed-sequence testing, the
order of the tests does not depend on outcomes: the chance that the setting kept does not hold is
at most 1 - confidence without any correction for the number of settings, because the first setting
in the order that does not hold would have to pass its own test.

References:
  Angelopoulos et al., Learn then Test, arXiv 2110.01052, section 3 (fixed-sequence testing).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from routerjax.data.groups import numbered
from routerjax.routing.policies import choose_by_utility, cost_range
from routerjax.routing.policy_rows import Policy, PolicyInputs, check_share, coins, is_number, take
from routerjax.stats.intervals import mean_reaches_zero

# Where the bracket is looked for: rates of exchange over sixteen decades, and both extremes.
_ODDS = np.geomspace(1e-8, 1e8, 33)
_LAMS = np.concatenate([[0.0], _ODDS / (1 + _ODDS), [1.0]])
_BISECTIONS = 40
# The settings that are tested for a confidence, from the most accurate to the cheapest: utilities,
# an eighth of a decade apart, and between two neighbours mixtures of these shares of the former.
_TESTED_ODDS = np.geomspace(1e8, 1e-8, 129)
_TESTED_LAMS = np.concatenate([[1.0], _TESTED_ODDS / (1 + _TESTED_ODDS), [0.0]])
_TESTED_SHARES = (0.75, 0.5, 0.25, 0.0)
SAVING_CONFIDENCE = 0.95  # With which `confident_saving` is as accurate as a single target.


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
      holds: Whether the setting passed the test of the confidence asked for; None where none was.

    Raises:
      ValueError: A number is out of range.
    """

    lam_low: float
    lam_high: float
    share_high: float
    low: float
    high: float
    holds: bool | None = None

    def __post_init__(self) -> None:
        if self.holds is not None and not isinstance(self.holds, bool):
            raise ValueError(f"holds: expected true, false or null, got {self.holds!r}")
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
            names = sorted({field.name for field in dataclasses.fields(Mixture)} - {"holds"})
            if sorted(set(self.fitted) - {"holds"}) != names:
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

    With a `confidence`, `fit` keeps the cheapest setting that passes the tests described at the top
    of this module, each at that confidence over whole groups of rows. Where none passes, it keeps
    the most accurate setting, with `fitted.holds` False: nothing is promised then.

    Attributes:
      min_accuracy: Mean accuracy to hold, in [0, 1].
      fitted: What `fit` learnt; None until then.
      confidence: Probability, over the rows it is fitted on, that the accuracy holds on others, in
        [0.5, 1); None for the setting that meets it on the rows it is fitted on.

    Raises:
      ValueError: The accuracy or the confidence is out of range.
    """

    min_accuracy: float
    fitted: Mixture | None = None
    confidence: float | None = None
    name: ClassVar[str] = "quality"
    options: ClassVar[tuple[str, ...]] = ("confidence",)

    def __post_init__(self) -> None:
        check_share(self.min_accuracy, "min_accuracy, the mean accuracy to hold")
        if self.confidence is not None:
            _check_confidence(self.confidence)
        super().__post_init__()

    @property
    def words(self) -> str:
        """See `Policy.words`."""
        if self.confidence is None:
            return f"cheapest at a mean accuracy of {self.min_accuracy:g}"
        what = f"a mean accuracy of {self.min_accuracy:g} with {self.confidence:.4g} confidence"
        if self.fitted is not None and not self.fitted.holds:
            return f"most accurate, as no setting was shown to hold {what}"
        return f"cheapest shown to hold {what}"

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

        if self.confidence is not None:
            return self._fit_confident(rows, error_NM, ends)
        accuracy_G = np.array([accuracy(lam) for lam in _LAMS])
        if accuracy_G.max() < self.min_accuracy - 1e-9:
            raise Unreachable(
                f"min_accuracy: a mean accuracy of {self.min_accuracy:g} cannot be held: on the "
                f"{len(rows.p_NM)} rows it is fitted on, {accuracy_G[0]:.4f} (always the cheapest "
                f"target) to {accuracy_G.max():.4f} can be reached"
            )
        wanted = min(self.min_accuracy, accuracy_G.max())
        return Mixture(*_between(accuracy, accuracy_G, wanted), *ends)

    def _fit_confident(
        self, rows: PolicyInputs, error_NM: np.ndarray | None, ends: tuple[float, float]
    ) -> Mixture:
        assert self.confidence is not None
        if error_NM is None:
            raise ValueError(
                "correct_NM: a confidence is a statement about outcomes: give those of the rows, "
                "or a policy without a confidence"
            )
        held = _last_that_holds(
            rows, ends, lambda choice_N: _values(rows, error_NM, choice_N) - self.min_accuracy,
            -self.min_accuracy, self.confidence,
        )  # fmt: skip
        if held is None:
            return Mixture(1.0, 1.0, 1.0, *ends, holds=False)
        return Mixture(*held, *ends, holds=True)


def confident_saving(
    p_NM: np.ndarray,
    cost_NM: np.ndarray,
    correct_NM: np.ndarray,
    single_N: np.ndarray,
    groups: Sequence[str] | None = None,
    allowed_NM: np.ndarray | None = None,
    confidence: float = SAVING_CONFIDENCE,
) -> Quality | None:
    """The cheapest setting that is shown to be as accurate as the best single target.

    As `Quality` with a confidence, but paired: what is tested is the mean lead over the single
    target on the same rows, which varies far less than either accuracy.

    Args:
      p_NM, cost_NM, correct_NM, allowed_NM, groups: As in `Policy.fit`.
      single_N: [N] the target to be as accurate as, on each row.
      confidence: In [0.5, 1).

    Returns:
      A fitted policy, its `min_accuracy` the single target's on these rows; None where no setting
      passes: then the single target should be asked.

    Raises:
      ValueError: An argument is out of range or a cost is unknown.
    """
    _check_confidence(confidence)
    rows = dataclasses.replace(PolicyInputs.checked(p_NM, cost_NM, allowed_NM), groups=groups)
    rows.refuse_unknown_costs(Quality.name)
    error_NM = np.asarray(correct_NM, np.float64) - rows.p_NM
    single_value_N = _values(rows, error_NM, single_N)
    ends = cost_range(rows)
    held = _last_that_holds(
        rows, ends, lambda choice_N: _values(rows, error_NM, choice_N) - single_value_N,
        -1.0, confidence,
    )  # fmt: skip
    if held is None:
        return None
    wanted = float(single_value_N.mean().clip(0, 1))
    return Quality(wanted, Mixture(*held, *ends, holds=True), confidence)


def _check_confidence(value: float) -> None:
    if not is_number(value, 0.5, 1) or value == 1:
        raise ValueError(
            f"confidence, the probability that an accuracy holds on other rows: expected a number "
            f"in [0.5, 1) such as 0.95, got {value!r}"
        )


def _values(rows: PolicyInputs, error_NM: np.ndarray, choice_N: np.ndarray) -> np.ndarray:
    """[N] what counts as each choice's outcome, whose mean is the accuracy as `Quality` counts it.

    Args:
      rows: With p.
      error_NM: Outcome - p; NaN = not observed.
      choice_N: Of which at least one outcome must be observed, or all are NaN.
    """
    error_N = take(error_NM, choice_N)
    seen_N = ~np.isnan(error_N)
    share = seen_N.mean() or np.nan
    return take(rows.p_NM, choice_N) + np.where(seen_N, error_N, 0.0) / share


def _last_that_holds(
    rows: PolicyInputs,
    ends: tuple[float, float],
    lead: Callable[[np.ndarray], np.ndarray],
    worst: float,
    confidence: float,
) -> tuple[float, float, float] | None:
    """(lam_low, lam_high, share_high) of the last setting that passes; None where the first fails.

    Args:
      rows: With known costs.
      ends: The costs that count as 0 and 1.
      lead: From [N] choices to [N] what each adds to a mean that should be at least 0.
      worst: The least that a row can add.
      confidence: Of each test.
    """
    n = len(rows.p_NM)
    group_N = np.arange(n) if rows.groups is None else numbered(rows.groups)[1]
    held: tuple[float, float, float] | None = None
    before: tuple[float, np.ndarray] | None = None
    for lam in _TESTED_LAMS.tolist():
        sum_G = np.bincount(group_N, lead(choose_by_utility(rows, lam, ends)))
        high, sum_high_G = (lam, sum_G) if before is None else before
        for share in (1.0,) if before is None else _TESTED_SHARES:
            mixed_G = share * sum_high_G + (1 - share) * sum_G
            if not mean_reaches_zero(mixed_G, worst * n / len(sum_G), confidence):
                return held
            held = lam, high, share
        before = lam, sum_G
    return held


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
