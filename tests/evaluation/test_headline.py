"""AUC within datasets beside AUC, headroom, and the intervals around the headline."""

import numpy as np
import pytest

from routerjax.evaluation.estimated import Estimated
from routerjax.evaluation.headline import (
    accuracy,
    best_possible,
    discrimination,
    headroom_captured,
    intervals,
    observed_accuracy,
)
from routerjax.stats.bootstrap import value_and_draws


def test_headroom_by_hand():
    assert headroom_captured(0.7, 0.6, 0.8) == pytest.approx(0.5)
    assert headroom_captured(0.5, 0.6, 0.8) == pytest.approx(-0.5)
    assert headroom_captured(0.6, 0.6, 0.6) is None
    assert headroom_captured(None, 0.6, 0.8) is None


def test_best_single_is_given_and_the_best_in_hindsight_is_found():
    correct_NM = np.array([[1.0, 0], [1, 0], [0, 1]])
    found, reasons = accuracy(
        Estimated(correct_NM), Estimated(correct_NM), np.array([1, 1, 1]), 1, ("x", "y")
    )
    assert (found["best_single"], found["best_single_in_hindsight"]) == ("y", "x")
    assert found["headroom_captured"] == 0.0
    assert found["headroom_captured_in_hindsight"] == pytest.approx((1 / 3 - 2 / 3) / (1 / 3))
    assert not found["scores_are_fractional"] and reasons == {}


def test_observed_accuracies_by_hand():
    correct_NM = np.array([[1.0, np.nan], [np.nan, 0], [0, 1]])
    found = observed_accuracy(correct_NM, np.array([0, 0, 1]), ("x", "y"))
    assert found["accuracy_observed"] == {"x": 0.5, "y": 0.5}
    assert found["n_observed"] == {"x": 2, "y": 2}
    assert (found["router_accuracy_observed"], found["n_router_observed"]) == (1.0, 2)


def test_small_datasets_are_left_out_and_counted():
    """Five right and five wrong rows are just enough; four of either are not."""
    label_NM = np.array([[1.0]] * 5 + [[0.0]] * 5 + [[1.0]] * 4 + [[0.0]] * 9)
    p_NM = np.concatenate([label_NM[:10] * 0.5 + 0.2, 0.9 - 0.5 * label_NM[10:]])
    found, _ = discrimination(p_NM, label_NM, ["a"] * 10 + ["b"] * 13, ("x",))
    assert found["within_dataset_auc"] == {"x": 1.0}
    assert (found["within_dataset_left_out"], found["n_datasets"]) == ({"x": 1}, 2)
    found, reasons = discrimination(p_NM[10:], label_NM[10:], ["b"] * 13, ("x",))
    assert found["within_dataset_auc"] == {"x": None}
    assert found["mean_within_dataset_auc"] is None
    assert "five observed rows" in reasons["within_dataset_auc/x"]


def test_best_possible_by_hand():
    true_p_NM, correct_NM = np.array([[0.9, 0.2], [0.3, 0.4]]), np.array([[1.0, 0], [0, 1]])
    found = best_possible(true_p_NM, Estimated(correct_NM), 0)
    assert found == {
        "router_accuracy": 1.0, "headroom_captured": 1.0, "mean_auc": 1.0,
        "mean_within_dataset_auc": None,
    }  # fmt: skip


def test_best_possible_within_datasets_by_hand():
    # Wrong rows 0.2 and right ones 0.6 in "a", 0.7 and 0.9 in "b".
    true_p_NM = np.repeat([0.2, 0.6, 0.7, 0.9], 5)[:, None]
    correct_NM = np.repeat([0.0, 1, 0, 1], 5)[:, None]
    found = best_possible(true_p_NM, Estimated(correct_NM, ["a"] * 10 + ["b"] * 10), 0)
    assert found["mean_within_dataset_auc"] == 1.0
    assert found["mean_auc"] == 0.75  # A right row of "a" is below the wrong ones of "b".


@pytest.mark.slow
def test_headroom_is_covered_as_often_as_promised():
    """Of 150 groups of 1 to 3 queries, drawn four hundred times."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(400):
        group_N = np.repeat(np.arange(150), rng.integers(1, 4, 150))
        level_G = rng.beta(2, 2, 150)
        oracle_N = rng.random(len(group_N)) < 0.4
        gain_N = oracle_N & (rng.random(len(group_N)) < level_G[group_N])
        correct_N3 = np.stack([np.zeros(len(group_N)), oracle_N, gain_N], axis=1)
        groups = [str(g) for g in group_N]
        weight_BN = value_and_draws(groups, 400, seed)
        router_N = np.full(len(group_N), 2)
        found = intervals(Estimated(correct_N3), router_N, 0, weight_BN, None, groups)
        low, high = found["headroom_captured"]
        covered += low <= 0.5 <= high
    assert 368 <= covered <= 392


def test_intervals_of_a_single_group_are_none():
    found = intervals(
        Estimated(np.eye(2)), np.array([0, 1]), 0, value_and_draws("gg", 50), np.ones((2, 2)), "gg"
    )
    assert found.pop("level") == 0.95
    assert set(found.values()) == {None}
    assert "cost_saving_vs_most_expensive" in found


def test_an_accuracy_of_0_or_1_has_an_interval_of_some_width():
    correct_N2 = np.tile([[0.0, 1.0]], (40, 1))
    groups = [str(n // 2) for n in range(40)]
    weight_BN = value_and_draws(groups, 50)
    found = intervals(Estimated(correct_N2), np.ones(40, int), 0, weight_BN, None, groups)
    least = 0.025 ** (1 / 20)  # Of twenty groups.
    assert found["router_accuracy"] == pytest.approx([least, 1])
    assert found["oracle_accuracy"] == pytest.approx([least, 1])
    assert found["best_single_accuracy"] == pytest.approx([0, 1 - least])
