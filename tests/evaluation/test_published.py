"""Each metric of the field against a hand-computed example, and limits that must hold."""

import numpy as np
import pytest

from routerjax.evaluation import published as field

# Four queries by falling advantage. Weak right on the last two, strong on all but the third.
ADVANTAGE = np.array([0.4, 0.1, 0.3, 0.2])[[0, 2, 3, 1]]
WEAK, STRONG = np.array([0, 0, 1, 1]), np.array([1, 1, 0, 1])


def test_apgr_and_cpt_by_hand():
    """Accuracies 0.5, 0.75, 1, 0.75, 0.75 at shares 0, 1/4, ... 1.

    Area (0.625 + 0.875 + 0.875 + 0.75) / 4 = 0.78125; recovered (0.78125 - 0.5) / 0.25. Half of the
    gap, 0.625, is met half way to the first quarter; 80%, 0.7, at 0.8 of that quarter.
    """
    curve = field.strong_share_curve(ADVANTAGE, WEAK, STRONG, np.ones(4))
    np.testing.assert_allclose(curve[0], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curve[1], [0.5, 0.75, 1, 0.75, 0.75])
    assert field.apgr(*curve) == pytest.approx(1.125)
    assert field.cpt(*curve, 50) == pytest.approx(0.125)
    assert field.cpt(*curve, 80) == pytest.approx(0.2)
    assert field.cpt(*curve, 100) == pytest.approx(0.25)
    for percent in (0, 101):
        with pytest.raises(ValueError, match=r"\(0, 100\]"):
            field.cpt(*curve, percent)


def test_two_targets_told_apart_by_nothing_are_a_coin():
    curve = field.strong_share_curve(np.zeros(4), WEAK, STRONG, np.ones(4))
    assert field.apgr(*curve) == pytest.approx(0.5)
    assert field.cpt(*curve, 80) == pytest.approx(0.8)


def test_without_a_stronger_one_there_is_no_gap():
    curve = field.strong_share_curve(ADVANTAGE, STRONG, WEAK, np.ones(4))
    assert np.isnan(field.apgr(*curve)) and np.isnan(field.cpt(*curve, 50))


def test_a_weight_is_a_row_repeated():
    weight_BN = np.array([[2.0, 0, 1, 1], [1, 3, 0, 2]])
    curves = field.strong_share_curve(ADVANTAGE, WEAK, STRONG, weight_BN)
    for b, weight_N in enumerate(weight_BN):
        rows = np.repeat(np.arange(4), weight_N.astype(int))
        plain = field.strong_share_curve(
            ADVANTAGE[rows], WEAK[rows], STRONG[rows], np.ones(4 + 2 * b)
        )
        for metric in (field.apgr, lambda *c: field.cpt(*c, 70)):
            assert metric(*(c[b] for c in curves)) == pytest.approx(
                float(metric(*plain)), nan_ok=True
            )


def test_means_over_datasets_by_hand():
    """Three of four and one of ten right: (0.75 + 0.1) / 2. An empty dataset counts nothing."""
    right_D, n_D = np.array([3.0, 1, 0]), np.array([4.0, 10, 0])
    assert field.mean_over_datasets(right_D, n_D) == pytest.approx(0.425)
    assert field.gain_at_best(0.6, 0.5) == pytest.approx(0.2)
    assert field.gap_at_oracle(0.6, 0.8) == pytest.approx(0.25)
    assert field.cost_save(0.3, 1.2) == pytest.approx(0.75)
    assert np.isnan(field.cost_save(0.3, 0.0))


def test_pareto_distance_by_hand():
    """Points (1, 0.2), (2, 0.6), (5, 0.7), (5, 0.5): costs span 4, accuracies 0.5.

    (4, 0.5) is dominated by (2, 0.6) alone: 2 / 4 dearer and 0.1 / 0.5 worse.
    """
    cost, accuracy = np.array([1.0, 2, 5, 5]), np.array([0.2, 0.6, 0.7, 0.5])
    found = field.pareto_distance(4.0, 0.5, cost, accuracy)
    assert found == pytest.approx(np.hypot(0.5, 0.2))
    assert field.pareto_distance(2.0, 0.6, cost, accuracy) == 0  # on it
    assert field.pareto_distance(1.5, 0.5, cost, accuracy) == 0  # beyond it
    both = field.pareto_distance(np.array([4.0, 1.5]), np.array([0.5, 0.5]), cost[None], accuracy)
    np.testing.assert_allclose(both, [found, 0])


def test_router_arena_by_hand():
    """At $200 per 1,000 there is no thrift, at $0.0044 it is whole; half way C = 1/2."""
    assert field.router_arena_score(0.8, 0.2) == 0
    assert field.router_arena_score(0.8, 4.4e-6) == pytest.approx(1.1 * 0.8 / 1.08)
    assert field.router_arena_score(0.8, 0.0) == field.router_arena_score(0.8, 1e-9)
    middle = np.sqrt(200 * 0.0044) / 1000
    assert field.router_arena_score(0.8, middle) == pytest.approx(1.1 * 0.8 * 0.5 / 0.58)
    np.testing.assert_allclose(field.router_arena_score(np.zeros(2), np.array([0.2, 1e-5])), 0)
