"""Limits: targets that can take a query, by its length and by what it holds."""

import dataclasses

import numpy as np
import pytest

from routerjax.data.conversation import Conversation
from routerjax.routing.constrained import Budget, Quality
from routerjax.routing.limits import Limits
from routerjax.routing.policies import Argmax, Tolerance, Utility, Value

NAN = np.nan
TARGETS = ("small", "large", "unknown")
LIMITS = Limits(np.array([100, 1000, NAN]), (("text",), ("text", "image"), ()))
PARTS = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
PICTURE = Conversation([{"role": "user", "content": PARTS}])


def test_length_and_modalities_decide():
    queries = ["a", "b", "c", PICTURE]
    found_NM = LIMITS.candidates(np.array([99, 100, 5000, 5]), queries, TARGETS)
    assert found_NM.tolist() == [[True] * 3, [False, True, True], [False, False, True],
                                 [False, True, True]]  # fmt: skip


@pytest.mark.parametrize(
    "policy", [Argmax(), Tolerance(1.0), Utility(0.5), Value(1e9), Budget(0.5), Quality(0.3)]
)
def test_every_policy_chooses_among_them(policy):
    """The target that each policy likes best, of the highest P and the lowest cost, cannot."""
    allowed_NM = LIMITS.candidates(np.array([500, 5]), ["a", PICTURE], TARGETS)
    p_NM, cost_NM = np.array([[0.9, 0.5, 0.2]] * 2), np.array([[0.1, 0.2, 0.9]] * 2)
    policy = policy.fit(p_NM, cost_NM)
    assert policy.choose(p_NM, cost_NM).tolist() == [0, 0]
    assert policy.choose(p_NM, cost_NM, allowed_NM).min() > 0


def test_none_left_is_an_error_that_tells_what_each_takes():
    both_NM = np.array([[True, True, False]])
    with pytest.raises(
        ValueError, match=r"no target can take the query 'long' \(text; 5,000 tok"
    ) as e:
        LIMITS.candidates(np.array([5000]), ["long"], TARGETS, both_NM)
    assert "small: context window 100, takes text; large: context window 1000" in str(e.value)
    assert "unknown" not in str(e.value)
    with pytest.raises(ValueError, match="text, image; 5 tokens"):
        LIMITS.candidates(np.array([5]), [PICTURE], TARGETS, np.array([[True, False, False]]))


def test_rows_with_outcomes_that_none_can_take_are_left_to_all_and_said(caplog):
    limits = Limits(np.array([100.0, 1000]), ((), ()))
    takes_NM = limits.takes_or_all(np.array([500, 5000, 50]), ["a", "b", "c"])
    assert takes_NM.tolist() == [[False, True], [True, True], [True, True]]
    assert "that no target can take" in caplog.text
    assert "1 of 3, such as 'b' (5000 tokens)" in caplog.text
    caplog.clear()
    limits.takes_or_all(np.array([500, 50]), ["a", "c"])
    assert not caplog.records


def test_a_data_set_tells_them_and_json_keeps_them(tiny_data):
    assert Limits.of(tiny_data) is None
    told = dataclasses.replace(tiny_data, context_windows_M=np.array([1, NAN, 3]))
    limits = Limits.of(told.select_targets(told.targets[::-1]))
    np.testing.assert_array_equal(limits.context_windows_M, [3, NAN, 1])
    again = Limits.from_json(
        {key: value.tolist() if hasattr(value, "tolist") else value
         for key, value in limits.with_target().to_json().items()}
    )  # fmt: skip
    np.testing.assert_array_equal(again.context_windows_M, [3, NAN, 1, NAN])
    assert again.modalities == ((),) * 4


def test_a_mean_is_held_among_them():
    rng = np.random.default_rng(0)
    p_NM, cost_NM = rng.uniform(size=(4000, 3)), np.tile([0.1, 1.0, 3.0], (4000, 1))
    allowed_NM = np.ones((4000, 3), bool)
    allowed_NM[:2000, 0] = False  # Half of the queries are too long for the cheapest.

    def spent(policy):
        choice_N = policy.choose(p_NM, cost_NM, allowed_NM)
        assert allowed_NM[np.arange(4000), choice_N].all()
        return cost_NM[np.arange(4000), choice_N].mean()

    assert spent(Budget(0.9).fit(p_NM, cost_NM, allowed_NM=allowed_NM)) == pytest.approx(0.9, 0.02)
    assert spent(Budget(0.9).fit(p_NM, cost_NM)) > 1.0
    # What may not answer sets no end of the costs.
    nobody_NM = allowed_NM & [True, True, False]
    unknown_NM = np.where(nobody_NM, cost_NM, np.nan)
    assert Utility(0.5).fit(p_NM, unknown_NM, allowed_NM=nobody_NM).cost_range == (0.1, 1.0)
