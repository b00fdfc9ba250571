"""Policies: ties, limits, what they refuse, how they are written down."""

import dataclasses
import json
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from routerjax.routing.constrained import Budget, Mixture, Quality
from routerjax.routing.policies import Argmax, Tolerance, Utility, Value
from routerjax.routing.policy import POLICIES, Policy, parse_policy, policy_from_json
from routerjax.routing.policy_rows import cheapest


def _by_hand(p_NM, cost_NM, tau):
    """One row at a time, as the docstring says it."""
    choices = []
    for p_M, cost_M in zip(p_NM, cost_NM, strict=True):
        near = [m for m in range(len(p_M)) if p_M[m] >= p_M.max() - tau]
        choices.append(min(near, key=lambda m: (cost_M[m], -p_M[m], m)))
    return choices


MIXTURE_JSON = {"lam_low": 0.1, "lam_high": 0.2, "share_high": 0.5, "low": 0.0, "high": 1.0}


@st.composite
def _tables(draw):
    # Few values, so that there are many ties; sixteenths are exact, so the oracle is too.
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 5)))
    p_NM = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 16))) / 16
    return p_NM, draw(hnp.arrays(np.float64, shape, elements=st.sampled_from([0.0, 1, 1, 2, 7])))


@given(_tables(), st.integers(0, 16))
def test_tolerance_is_what_it_says(tables, sixteenths):
    tau = sixteenths / 16
    choice_N = Tolerance(tau).choose(*tables)
    assert choice_N.dtype == np.int64
    assert choice_N.tolist() == _by_hand(*tables, tau)


@given(_tables())
def test_argmax_is_a_tolerance_of_nothing(tables):
    np.testing.assert_array_equal(Argmax().choose(*tables), Tolerance(0).choose(*tables))


@given(_tables())
def test_a_tolerance_of_one_takes_the_cheapest(tables):
    p_NM, cost_NM = tables
    chosen_N = np.take_along_axis(cost_NM, Tolerance(1).choose(*tables)[:, None], 1)[:, 0]
    np.testing.assert_array_equal(chosen_N, cost_NM.min(axis=1))


@given(_tables(), st.permutations(range(5)))
def test_the_order_of_targets_matters_only_in_full_ties(tables, order):
    p_NM, cost_NM = tables
    order = [m for m in order if m < p_NM.shape[1]]
    before_N = Tolerance(0.25).choose(p_NM, cost_NM)
    after_N = Tolerance(0.25).choose(p_NM[:, order], cost_NM[:, order])
    for table_NM in tables:
        np.testing.assert_array_equal(
            np.take_along_axis(table_NM, before_N[:, None], 1),
            np.take_along_axis(table_NM[:, order], after_N[:, None], 1),
        )


def test_equal_prices_go_to_the_higher_probability():
    assert Tolerance(0.5).choose(np.array([[0.6, 0.8, 0.9]]), np.array([[1.0, 1.0, 2.0]])) == [1]


def test_equal_probabilities_go_to_the_cheaper():
    assert Argmax().choose(np.array([[0.8, 0.8]]), np.array([[2.0, 1.0]])) == [1]


def test_the_edge_of_the_tolerance_is_inside_despite_rounding():
    """0.9 - 0.7 is 0.20000000000000007, and in float32 it is 0.19999999."""
    for dtype in (np.float32, np.float64):
        p_NM = np.array([[0.7, 0.9]], dtype)
        assert Tolerance(0.2).choose(p_NM, np.array([[1.0, 2.0]])) == [0]


def test_argmax_needs_no_cost_and_prefers_a_known_one():
    p_NM = np.array([[0.8, 0.8, 0.1]])
    assert Argmax().choose(p_NM, None) == [0]
    assert Argmax().choose(p_NM, np.array([[np.nan, 5.0, 1.0]])) == [1]


def test_tolerance_refuses_unknown_costs():
    p_NM = np.array([[0.8, 0.7]])
    for cost_NM in (None, np.array([[1.0, np.nan]])):
        with pytest.raises(ValueError, match="costs.*targets \\[.*1\\].*price in pool.json"):
            Tolerance(0.2).choose(p_NM, cost_NM)


@pytest.mark.parametrize(
    "policy",
    [Argmax(), Tolerance(0.3), Value(1.0), Utility(0.5, (0.0, 1.0)), Utility(1.0),
     Budget(1.0, Mixture(0.4, 0.5, 0.5, 0.0, 1.0))],
)  # fmt: skip
@pytest.mark.parametrize(
    "p, cost, message",
    [
        ([[0.5, np.nan]], [[1.0, 1.0]], "query 0, target 1"),
        ([[0.5, 2.1]], [[1.0, 1.0]], "logits without a sigmoid"),
        ([0.5, 0.2], [[1.0, 1.0]], r"\[N, M\]"),
        (np.zeros((2, 0)), np.zeros((2, 0)), "M >= 1"),
        ([[0.5, 0.4]], [[1.0]], r"the shape of p_NM, \(1, 2\)"),
        ([[0.5, 0.4]], [[1.0, -1.0]], ">= 0, got -1"),
    ],
)
def test_bad_arrays_are_refused(policy, p, cost, message):
    with pytest.raises(ValueError, match=message):
        policy.choose(np.array(p), np.array(cost))


def test_no_rows_make_no_choices():
    for policy in (Argmax(), Tolerance(0.1), Value(1.0), Utility(0.5, (0, 1))):
        assert policy.choose(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0,)


@pytest.mark.parametrize("tau", [-0.1, 1.1, float("nan"), "0.2", True, None])
def test_a_tolerance_out_of_range_is_refused(tau):
    with pytest.raises(ValueError, match=r"tau.*\[0, 1\]"):
        Tolerance(tau)


MIXTURE = Mixture(0.25, 0.5, 0.125, 0.001, 0.1)


@pytest.mark.parametrize(
    "policy",
    [Argmax(), Tolerance(), Tolerance(0.05), Tolerance(1), Value(0.002), Utility(0.5), Utility(1),
     Budget(0.01), Quality(0.75), Utility(0.5, (0.001, 0.1)), Budget(0.01, MIXTURE),
     Quality(0.75, MIXTURE), Quality(0.75, confidence=0.9),
     Quality(0.75, dataclasses.replace(MIXTURE, holds=False), 0.9)],
)  # fmt: skip
def test_policies_are_read_back(policy):
    assert policy_from_json(json.loads(json.dumps(policy.to_json()))) == policy
    assert type(parse_policy(str(policy))) is type(policy)
    if getattr(policy, "fitted", None) is None and getattr(policy, "cost_range", None) is None:
        assert parse_policy(str(policy)) == policy


def test_flags():
    assert parse_policy("tolerance") == Tolerance(0.2)
    assert parse_policy(" Tolerance:0.35 ") == Tolerance(0.35)
    assert parse_policy("quality:0.8:0.95") == Quality(0.8, confidence=0.95)
    # What was written before there were confidences stays as it was.
    before = {"name": "quality", "min_accuracy": 0.75, "fitted": MIXTURE_JSON}
    assert policy_from_json(before).to_json() == before


@pytest.mark.parametrize("text", ["", "best", "argmax:0.2", "tolerance:", "tolerance:x",
                                  "tolerance:nan", "tolerance:2", "tolerance:0.1:0.2", "value",
                                  "value:-1", "value:inf", "utility:1.1", "budget", "budget:0",
                                  "quality:2", "quality:", "quality:0.8:", "quality:0.8:1",
                                  "quality:0.8:0.3", "quality:0.8:0.9:0.9"])  # fmt: skip
def test_bad_flags_are_refused(text):
    with pytest.raises(ValueError, match="expected"):
        parse_policy(text)


@pytest.mark.parametrize(
    "value",
    [None, {}, {"name": "best"}, {"name": "tolerance"}, {"name": "argmax", "tau": 0.2},
     {"name": "tolerance", "tau": "0.2"}, {"name": "budget", "usd_per_query": 1},
     {"name": "budget", "usd_per_query": 1, "fitted": {"lam_low": 0}},
     {"name": "quality", "min_accuracy": 1,
      "fitted": MIXTURE_JSON | {"share_high": 1.5}},
     {"name": "quality", "min_accuracy": 1, "fitted": MIXTURE_JSON | {"holds": 2}},
     {"name": "quality", "min_accuracy": 1, "fitted": MIXTURE_JSON | {"holds": 1}},
     {"name": "quality", "min_accuracy": 1, "fitted": MIXTURE_JSON | {"holds": 0.0}},
     {"name": "utility", "lam": 0.5, "cost_range": [2, 1]}],
)  # fmt: skip
def test_bad_json_is_refused(value):
    with pytest.raises(ValueError, match="expected"):
        policy_from_json(value)


def test_cheapest_without_probabilities_takes_the_first():
    eligible_NM = np.array([[False, True, True], [True, True, True]])
    assert cheapest(eligible_NM, np.array([[0.0, 2, 2], [np.inf] * 3])).tolist() == [1, 0]


@dataclasses.dataclass(frozen=True)
class Floor(Policy):
    """The cheapest target of at least this probability, or else the most probable."""

    least: float
    name: ClassVar[str] = "floor"

    def _choose(self, rows, keys):
        above_NM = rows.allowed_NM & (rows.p_NM >= self.least)
        none_N1 = ~above_NM.any(axis=1, keepdims=True)
        return rows.best(np.where(none_N1, rows.p_NM, np.where(above_NM, -rows.cost_NM, -np.inf)))


def test_a_policy_is_added_by_a_class_and_a_line_of_the_table(monkeypatch):
    with pytest.raises(ValueError, match="quality:MIN_ACCURACY"):
        parse_policy("floor:0.6")
    monkeypatch.setitem(POLICIES, "floor", Floor)
    policy = parse_policy("floor:0.6")
    assert str(policy) == "floor:0.6" and policy_from_json(policy.to_json()) == policy
    p_NM, cost_NM = np.array([[0.9, 0.7], [0.5, 0.4]]), np.array([[2.0, 1.0], [2.0, 1.0]])
    assert policy.choose(p_NM, cost_NM).tolist() == [1, 0]
    assert policy.fit(p_NM, cost_NM) is policy
    with pytest.raises(ValueError, match="the floor policy compares costs"):
        policy.choose(p_NM, None)
    with pytest.raises(ValueError, match="or floor:LEAST"):
        parse_policy("floor")


def test_a_policy_that_lacks_a_half_is_refused_by_what_it_lacks():
    @dataclasses.dataclass(frozen=True)
    class Without(Policy):
        name = "without"

    with pytest.raises(TypeError, match="_choose"):
        Without()

    @dataclasses.dataclass(frozen=True)
    class Unlearnt(Floor):
        seen: float | None = None
        learns = "seen"

    with pytest.raises(TypeError, match="Unlearnt learns 'seen' and has no _fit"):
        Unlearnt(0.5).fit(np.array([[0.5, 0.6]]), np.array([[1.0, 2.0]]))


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Argmax(), "most probable to be right"),
        (Tolerance(0.25), "cheapest within 0.25 of the best"),
        (Value(0.01), "most valuable, a right answer being worth 0.01 USD"),
        (Utility(0.5), "largest utility, being right weighted 0.5"),
        (Budget(0.002), "most accurate at a mean of 0.002 USD a query"),
        (Quality(0.8), "cheapest at a mean accuracy of 0.8"),
        (
            Quality(0.8, confidence=0.9),
            "cheapest shown to hold a mean accuracy of 0.8 with 0.9 confidence",
        ),
        (
            Quality(0.8, dataclasses.replace(MIXTURE, holds=False), 0.9),
            "most accurate, as no setting was shown to hold a mean accuracy of 0.8 with 0.9 "
            "confidence",
        ),
    ],
)
def test_every_policy_says_why(policy, words):
    assert policy.words == words
