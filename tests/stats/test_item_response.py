"""The item response fit: known truth, leave one out by hand, and who is the best single target."""

import numpy as np
import pytest
from scipy.special import expit, logit

from routerjax.stats.item_response import (
    best_single_target,
    cautious_accuracy,
    comparable_accuracy,
    fit_item_response,
)


def _simulated(n=1500, seed=0, abilities=(-1.0, 0.0, 0.5, 1.0)):
    """Outcomes of Rasch's model on two datasets of different level; (y_NM, ease_N, datasets)."""
    rng = np.random.default_rng(seed)
    dataset_N = rng.integers(0, 2, n)
    ease_N = rng.normal(size=n)
    p_NM = expit(np.array(abilities) + ease_N[:, None] + np.array([-0.7, 0.7])[dataset_N][:, None])
    return (rng.random(p_NM.shape) < p_NM) * 1.0, ease_N, dataset_N


def test_abilities_and_levels_are_found_where_a_third_is_missing():
    abilities = np.array([-1.0, 0.0, 0.5, 1.0])
    y_NM, _, dataset_N = _simulated(6000)
    y_NM[np.random.default_rng(1).random(y_NM.shape) < 0.33] = np.nan
    fit = fit_item_response(y_NM, dataset_N)
    logit_GM = fit.logit_GMQ[:, :, fit.logit_GMQ.shape[2] // 2]  # The point of mean difficulty.
    np.testing.assert_allclose(logit_GM, abilities + np.array([[-0.7], [0.7]]), atol=0.15)


def test_an_expectation_leaves_its_own_outcome_out():
    """By changing it alone: only what it adds to the fit of all rows may move its expectation."""
    y_NM, _, dataset_N = _simulated(400)
    other_NM = y_NM.copy()
    other_NM[0, 0] = 1 - y_NM[0, 0]
    before_NM, after_NM = (fit_item_response(y, dataset_N).expected() for y in (y_NM, other_NM))
    assert abs(after_NM[0, 0] - before_NM[0, 0]) < 0.02
    assert np.abs(after_NM[0, 1:] - before_NM[0, 1:]).min() > 0.05


def test_an_expectation_of_one_row_by_hand():
    """With the parameters given: a sum over points of prior, others' likelihood and chance."""
    y_NM, _, dataset_N = _simulated(300)
    y_NM[np.random.default_rng(1).random(y_NM.shape) < 0.2] = np.nan
    fit = fit_item_response(y_NM, dataset_N)
    at = int(np.flatnonzero(~np.isnan(y_NM[:, 0]))[0])
    p_Q = expit(fit.logit_GMQ[fit.dataset_N[at], 0])
    own_Q = p_Q if y_NM[at, 0] else 1 - p_Q
    chance_Q = fit.chance_NQ[at] / own_Q
    assert fit.expected()[at, 0] == pytest.approx((chance_Q * p_Q).sum() / chance_Q.sum())


def test_trying_easy_queries_shows_in_expectations():
    """Each query is tried as its difficulty has it: hidden outcomes are worse than those seen."""
    y_NM, ease_N, dataset_N = _simulated(4000, abilities=(-0.5, 0, 0.2, 0.4, 0.6, 0.8))
    seen_NM = np.random.default_rng(1).random(y_NM.shape) < expit(1.2 * ease_N)[:, None]
    accuracy_M, error_M = comparable_accuracy(np.where(seen_NM, y_NM, np.nan), dataset_N)
    naive_M = (y_NM * seen_NM).sum(axis=0) / seen_NM.sum(axis=0)
    assert (naive_M - y_NM.mean(axis=0) > 0.08).all()
    np.testing.assert_allclose(accuracy_M, y_NM.mean(axis=0), atol=0.025)
    assert (0 < error_M).all() and (error_M < 0.02).all()


def test_complete_outcomes_have_their_plain_means():
    y_NM, _, dataset_N = _simulated(200)
    accuracy_M, error_M = comparable_accuracy(y_NM, dataset_N)
    np.testing.assert_array_equal(accuracy_M, y_NM.mean(axis=0))
    np.testing.assert_array_equal(error_M, 0)
    y_NM[:100, 1] = np.nan
    accuracy_M, error_M = comparable_accuracy(y_NM, dataset_N)
    np.testing.assert_allclose(accuracy_M[[0, 2, 3]], y_NM[:, [0, 2, 3]].mean(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(error_M > 0, [False, True, False, False])


def test_a_small_model_on_easy_queries_does_not_win():
    """Target 0 is the worst by far; it is tried on easy queries, the others on the hard ones."""
    y_NM, ease_N, dataset_N = _simulated(900)
    y_NM[(ease_N < 0.8) | (dataset_N == 0), 0] = np.nan
    y_NM[(ease_N > 0.4) & (np.arange(900) % 10 > 0), 2:] = np.nan
    assert np.nanmean(y_NM, axis=0).argmax() == 0
    assert best_single_target(y_NM, dataset_N) == 3


def test_neither_a_specialist_nor_a_newcomer_wins_by_what_was_not_tried():
    y_NM, _, dataset_N = _simulated(600, abilities=(0.0, 1.0, 0.0, 0.0))
    y_NM[:, 2] = np.where(dataset_N == 1, np.arange(600) % 20 > 0, np.nan)  # 95% on one dataset
    y_NM[5:, 3], y_NM[:5, 3] = np.nan, 1  # five of five
    assert np.nanmean(y_NM, axis=0).argmax() == 3
    assert best_single_target(y_NM, dataset_N) == 1


def test_a_deviation_of_untried_targets_by_hand():
    """Of a target never tried all is prior: N(0, 1) and N(0, 1) on each dataset."""
    y_NM, _, dataset_N = _simulated(300)
    y_NM[:, 0] = np.nan
    fit = fit_item_response(y_NM, dataset_N)
    slope_XGM = np.zeros((3, 2, 4))
    slope_XGM[0, 0, 0], slope_XGM[1, :, 0], slope_XGM[2, 0, 1] = 1, 0.5, 1
    deviation_XC = fit.deviations(slope_XGM)
    covariance_XX = deviation_XC @ deviation_XC.T
    np.testing.assert_allclose(covariance_XX[:2, :2], [[2, 1.5], [1.5, 1.5]])
    assert covariance_XX[2, 2] < 0.1 and covariance_XX[0, 2] == 0


def test_what_nobody_tried_is_no_error():
    accuracy_M = cautious_accuracy(np.full((4, 2), np.nan))
    assert np.isfinite(accuracy_M).all() and best_single_target(np.full((4, 2), np.nan)) == 0
    one = comparable_accuracy(np.array([[1.0, np.nan]]))[0]
    assert one[0] == 1 and logit(one[1]) > 0


def test_datasets_of_a_few_queries_are_taken_together():
    """As many datasets as queries would leave nothing to learn a target's own from."""
    y_NM, _, _ = _simulated(120)
    y_NM[::3, 0] = np.nan
    alone = fit_item_response(y_NM, [f"query {n}" for n in range(120)])
    assert alone.logit_GMQ.shape[0] == 1
    np.testing.assert_array_equal(alone.expected(), fit_item_response(y_NM).expected())
    names = ["large"] * 100 + [f"query {n}" for n in range(20)]
    assert np.bincount(fit_item_response(y_NM, names).dataset_N).tolist() == [20, 100]
