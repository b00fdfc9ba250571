"""Frontiers by hand, and the hull against scipy's and against its own definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from routerjax.evaluation.frontier import (
    accuracy_at_cost,
    aiq,
    at_choices,
    cost_at_accuracy,
    hull,
    oracle_choice,
    router_aiq,
    tolerance_choices,
    utility_choices,
)
from routerjax.routing.policy_rows import take

# Costs 1, 2, 4, 8: the second lies under the segment from the first to the third, the last below.
_POINTS = np.array([[8.0, 0.6], [1.0, 0.4], [4.0, 0.7], [2.0, 0.45]])


def test_hull_by_hand():
    np.testing.assert_array_equal(hull(_POINTS), [[1, 0.4], [4, 0.7]])


def test_hull_of_one_point_and_of_equal_points():
    np.testing.assert_array_equal(hull([[2.0, 0.5]]), [[2, 0.5]])
    np.testing.assert_array_equal(hull([[2.0, 0.5], [2.0, 0.7], [2.0, 0.7]]), [[2, 0.7]])
    np.testing.assert_array_equal(hull([[1.0, 0.5], [2.0, 0.5]]), [[1, 0.5]])


def test_points_on_a_line_leave_its_ends():
    np.testing.assert_array_equal(hull([[0.0, 0.0], [1.0, 0.25], [2.0, 0.5]]), [[0, 0], [2, 0.5]])


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=12))
def test_hull_is_the_best_mixture_of_two(points):
    """At every cost: the best of all segments between two points, and of the points below it."""
    points_P2 = np.array(points, float)
    found_V2 = hull(points_P2)
    assert (np.diff(found_V2, axis=0) > 0).all()
    slope_V = np.diff(found_V2[:, 1]) / np.diff(found_V2[:, 0])
    assert (np.diff(slope_V) < 0).all()
    assert {tuple(v) for v in found_V2.tolist()} <= {tuple(p) for p in points_P2.tolist()}
    for cost in np.linspace(points_P2[:, 0].min(), 41, 23):
        best = max(accuracy for c, accuracy in points if c <= cost)
        for c1, a1 in points:
            for c2, a2 in points:
                if c1 < cost < c2:
                    best = max(best, a1 + (a2 - a1) * (cost - c1) / (c2 - c1))
        assert accuracy_at_cost(found_V2, cost) == pytest.approx(best)


@given(st.data())
def test_several_hulls_and_areas_are_those_of_each(data):
    n = data.draw(st.integers(1, 7))
    elements = st.integers(1, 9)
    points_BP2 = data.draw(hnp.arrays(np.int64, (3, n, 2), elements=elements)).astype(float)
    low_B, high_B = points_BP2[..., 0].min(axis=1), points_BP2[..., 0].max(axis=1) + 1.5
    areas_B = aiq(points_BP2, low_B, high_B)
    for several_V2, points_P2, area, low, high in zip(
        hull(points_BP2), points_BP2, areas_B, low_B, high_B, strict=True
    ):
        own_V2 = hull(points_P2)
        np.testing.assert_array_equal(several_V2[: len(own_V2)], own_V2)
        np.testing.assert_array_equal(several_V2[len(own_V2) :] - own_V2[-1], 0)
        # Exact: the hull is straight between its vertices.
        knots_K = np.append(own_V2[:, 0], high)
        exact = np.trapezoid(np.interp(knots_K, *own_V2.T), knots_K) / (high - low)
        assert area == pytest.approx(exact)


@pytest.mark.parametrize("points", [np.zeros((0, 2)), np.zeros(3), [[1.0, np.nan]]])
def test_bad_points_are_refused(points):
    with pytest.raises(ValueError, match="points: expected"):
        hull(points)


@pytest.mark.parametrize(
    "accuracy, cost", [(0.4, 1), (0.3, 1), (0.55, 2.5), (0.7, 4), (0.71, float("nan"))]
)
def test_cost_at_accuracy_by_hand(accuracy, cost):
    assert cost_at_accuracy(hull(_POINTS), accuracy) == pytest.approx(cost, nan_ok=True)


@pytest.mark.parametrize(
    "cost, accuracy", [(1, 0.4), (2.5, 0.55), (4, 0.7), (100, 0.7), (0.9, float("nan"))]
)
def test_accuracy_at_cost_by_hand(cost, accuracy):
    assert accuracy_at_cost(hull(_POINTS), cost) == pytest.approx(accuracy, nan_ok=True)


def test_aiq_by_hand():
    """0.4 to 0.7 over costs 1 to 4, then 0.7 up to 8: (3 x 0.55 + 4 x 0.7) / 7."""
    assert aiq(_POINTS, 1, 8) == pytest.approx((3 * 0.55 + 4 * 0.7) / 7)
    assert aiq(_POINTS, 2, 3) == pytest.approx(0.55)
    assert aiq(_POINTS, 5, 6) == pytest.approx(0.7)
    assert np.isnan(aiq(_POINTS, 0.5, 3))  # no mixture is that cheap
    assert np.isnan(aiq(_POINTS, 2, 2))


def test_oracle_by_hand():
    correct_NM = np.array([[1.0, 1, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1]])
    cost_NM = np.array([[2.0, 1, 0.5], [0.1, 3, 2], [2, 1, 3], [1, 2, 9]])
    assert oracle_choice(correct_NM, cost_NM).tolist() == [1, 2, 1, 2]


def test_oracle_of_scores_takes_the_highest():
    assert oracle_choice(np.array([[0.5, 0.9, 0.9]]), np.array([[1.0, 3, 2]])).tolist() == [2]


def test_oracle_needs_every_outcome():
    with pytest.raises(ValueError, match="keep the rows"):
        oracle_choice(np.array([[1.0, np.nan]]), np.ones((1, 2)))


def test_sweep_by_hand():
    """Within 0.15 the second row turns to the cheap target, within 0.5 the first one too."""
    p_NM = np.array([[0.4, 0.9], [0.5, 0.6]])
    correct_NM = np.array([[0.0, 1], [1, 1]])
    cost_NM = np.array([[1.0, 10], [2, 20]])
    choice_TN = tolerance_choices(p_NM, cost_NM, [0, 0.15, 0.5])
    points_T2 = at_choices(choice_TN, cost_NM, correct_NM).mean(axis=0)
    np.testing.assert_allclose(points_T2, [[15, 1], [6, 1], [1.5, 0.5]])


def test_a_sweep_decides_by_expected_and_pays_the_other_cost():
    p_NM, correct_NM = np.array([[0.6, 0.6]]), np.array([[0.0, 1.0]])
    paid_NM, expected_NM = np.array([[1.0, 9.0]]), np.array([[5.0, 4.0]])
    choice_TN = tolerance_choices(p_NM, expected_NM, [0.1])
    points_T2 = at_choices(choice_TN, paid_NM, correct_NM).mean(axis=0)
    np.testing.assert_array_equal(points_T2, [[9, 1]])


def test_utility_goes_from_the_cheapest_to_argmax():
    rng = np.random.default_rng(0)
    p_NM, cost_NM = rng.random((50, 3)), rng.random((50, 3))
    choice_SN = utility_choices(p_NM, cost_NM)
    np.testing.assert_array_equal(choice_SN[0], cost_NM.argmin(axis=1))
    np.testing.assert_array_equal(choice_SN[-1], p_NM.argmax(axis=1))


def test_router_aiq_by_hand():
    """The router's one point, (4, 0.9), is reached from the cheapest target, (1, 0.4)."""
    singles_M2 = np.array([[1.0, 0.4], [9, 0.8]])
    router, zero = router_aiq(np.array([[4.0, 0.9]]), singles_M2)
    assert router == pytest.approx((3 * 0.65 + 5 * 0.9) / 8)
    assert zero == pytest.approx(0.6)
    assert np.isnan(router_aiq(singles_M2, singles_M2[:1])).all()


def test_take():
    assert take(np.array([[1, 2], [3, 4]]), np.array([1, 0])).tolist() == [2, 3]
