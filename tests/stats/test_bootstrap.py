"""The bootstrap: its weights, its replicates against resampling itself, and its coverage."""

import tracemalloc

import numpy as np
import pytest

from routerjax.data.dataset import RoutingDataset
from routerjax.stats.auc_replicates import auc_replicates, within_auc_replicates
from routerjax.stats.bootstrap import (
    group_weights,
    reverse_percentile,
    value_and_draws,
    weighted_means,
    weighted_sums,
)
from routerjax.stats.fisher import RIDGE
from routerjax.stats.fisher_replicates import fisher_replicates, fisher_shuffled
from routerjax.stats.roc_auc import roc_auc, within_dataset_auc
from routerjax.sweeps.evaluator import SiteEvaluator


def groups_of(n, size):
    return [f"g{i // size}" for i in range(n)]


def weighted_auc(score_N, y_N, weight_N):
    """AUC of rows that count as often as their weight says, pair by pair."""
    right, wrong = y_N == 1, y_N == 0
    gap = score_N[right][:, None] - score_N[wrong][None]
    wins = (gap > 0) + 0.5 * (gap == 0)
    w1, w0 = weight_N[right], weight_N[wrong]
    return w1 @ wins @ w0 / (w1.sum() * w0.sum())


def test_weights_belong_to_groups_not_to_places():
    groups = groups_of(600, 3)
    weight_BN = group_weights(groups, 400, seed=1)
    assert (weight_BN[:, 0::3] == weight_BN[:, 2::3]).all()
    order = np.random.default_rng(0).permutation(600)
    shuffled = group_weights([groups[i] for i in order], 400, seed=1)
    np.testing.assert_array_equal(shuffled, weight_BN[:, order])
    # Poisson(1): mean 1, variance 1, and e^-1 of it 0.
    draws = weight_BN[:, 0::3]
    assert abs(draws.mean() - 1) < 0.02 and abs(draws.var() - 1) < 0.03
    assert abs((draws == 0).mean() - np.exp(-1)) < 0.01
    assert not np.array_equal(weight_BN, group_weights(groups, 400, seed=2))


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_that_no_program_takes_is_refused(seed):
    group_weights(["g"], 1, 2**31 - 1)
    with pytest.raises(ValueError, match=f"seed: expected 0 to 2147483647, got {seed}"):
        group_weights(["g"], 1, seed)


@pytest.mark.parametrize("who", ["group_weights", "within_dataset_auc", "SiteEvaluator.of"])
def test_one_long_name_costs_no_memory_in_the_other_rows(who):
    names = (*(f"g{i}" for i in range(999)), "passage " * 8000)
    y_NM, p_NM = np.arange(1000)[:, None] % 2.0, np.zeros((1000, 1))
    group_weights(names, 3, 0)  # Compiled already.
    tracemalloc.start()
    if who == "group_weights":
        group_weights(names, 3, 0)
    elif who == "within_dataset_auc":
        within_dataset_auc(p_NM, y_NM, names)
    else:
        SiteEvaluator.of(RoutingDataset(names, names, ("a",), y_NM, names, names), 2, 0, draws=3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6  # Padded to the longest it was 256 MB.


def test_the_interval_turns_the_replicates_round():
    draws = np.linspace(0, 1, 1001)[:, None] * np.array([1.0, 2.0])
    low, high = reverse_percentile(np.array([0.8, 1.0]), draws)
    np.testing.assert_allclose(low, [1.6 - 0.975, 2.0 - 1.95], atol=1e-6)
    np.testing.assert_allclose(high, [1.6 - 0.025, 2.0 - 0.05], atol=1e-6)
    assert np.isnan(reverse_percentile(np.nan, draws[:, 0])).all()
    assert np.isnan(reverse_percentile(0.5, np.full(10, np.nan))).all()


@pytest.fixture(scope="module")
def scored():
    rng = np.random.default_rng(4)
    n = 1200
    y_NQ = (rng.random((n, 3)) < np.array([0.5, 0.3, 0.7])).astype(np.float32)
    score_NQ = (rng.normal(size=(n, 3)) + np.array([0.0, 1.0, 2.0]) * y_NQ).round(1)
    y_NQ[rng.random((n, 3)) < 0.05] = np.nan
    return score_NQ.astype(np.float32), y_NQ, rng.integers(0, 4, n), rng.integers(0, 3, n)


def test_replicates_stand_for_resampling_itself(scored):
    score_NQ, y_NQ, fold_N, _ = scored
    weight_BN = group_weights(groups_of(1200, 2), 500, seed=0)
    found = auc_replicates(score_NQ, y_NQ, fold_N, 4, weight_BN)
    for q in range(3):
        folds = [(fold_N == f) & np.isfinite(y_NQ[:, q]) for f in range(4)]
        each = [roc_auc(score_NQ[at, q], y_NQ[at, q]) for at in folds]
        np.testing.assert_allclose(found.fold_FQ[:, q], each, atol=1e-5)
        assert found.value_Q[q] == pytest.approx(np.mean(each), abs=1e-5)
        whole_B = np.array([
            np.mean([weighted_auc(score_NQ[at, q], y_NQ[at, q], w[at]) for at in folds])
            for w in weight_BN
        ])  # fmt: skip
        assert np.corrcoef(whole_B, found.draws_BQ[:, q])[0, 1] > 0.99
        assert found.draws_BQ[:, q].std() == pytest.approx(whole_B.std(), rel=0.05)
        ends = [reverse_percentile(found.value_Q[q], draws)
                for draws in (whole_B, found.draws_BQ[:, q])]  # fmt: skip
        np.testing.assert_allclose(*ends, atol=0.006)


def test_within_datasets_counts_pairs_of_equal_dataset_and_fold(scored):
    score_NQ, y_NQ, fold_N, dataset_N = scored
    y_NQ = y_NQ.copy()
    y_NQ[dataset_N == 2, 0] = 1.0  # One class: the dataset is left out of column 0.
    weight_BN = group_weights(groups_of(1200, 1), 300, seed=3)
    found = within_auc_replicates(score_NQ, y_NQ, fold_N, 4, dataset_N, 3, weight_BN)
    for q in range(3):
        wins, pairs = 0.0, 0
        for f in range(4):
            for d in range(2 if q == 0 else 3):
                at = (fold_N == f) & (dataset_N == d) & np.isfinite(y_NQ[:, q])
                n = (y_NQ[at, q] == 1).sum() * (y_NQ[at, q] == 0).sum()
                wins, pairs = wins + n * roc_auc(score_NQ[at, q], y_NQ[at, q]), pairs + n
        assert found.value_Q[q] == pytest.approx(wins / pairs, abs=1e-5)
    assert np.abs(found.draws_BQ.mean(axis=0) - found.value_Q).max() < 0.01


def test_replicates_within_datasets_are_near_resampling_itself(scored):
    """The linear part of it: the same draws, a little less spread in strata of few rows."""
    score_NQ, y_NQ, fold_N, dataset_N = scored
    weight_BN = group_weights(groups_of(1200, 2), 400, seed=0)
    found = within_auc_replicates(score_NQ, y_NQ, fold_N, 4, dataset_N, 3, weight_BN)
    for q in range(3):
        wins_B, pairs_B = np.zeros((2, len(weight_BN)))
        for f, d in np.ndindex(4, 3):
            at = (fold_N == f) & (dataset_N == d) & np.isfinite(y_NQ[:, q])
            score_R, right_R = score_NQ[at, q], y_NQ[at, q] == 1
            gap = score_R[right_R][:, None] - score_R[~right_R][None]
            w1, w0 = weight_BN[:, at][:, right_R], weight_BN[:, at][:, ~right_R]
            wins_B += ((w1 @ ((gap > 0) + 0.5 * (gap == 0))) * w0).sum(axis=1)
            pairs_B += w1.sum(axis=1) * w0.sum(axis=1)
        whole_B = wins_B / pairs_B
        assert np.corrcoef(whole_B, found.draws_BQ[:, q])[0, 1] > 0.97
        assert 0.875 <= found.draws_BQ[:, q].std() / whole_B.std() <= 1.03


def test_intervals_within_datasets_cover():
    """Strata of 15 rows, difficulty differing between datasets."""
    rng = np.random.default_rng(13)
    n_datasets, per_dataset, repetitions = 8, 15, 300
    n = n_datasets * per_dataset
    dataset_N = np.repeat(np.arange(n_datasets), per_dataset)
    ease_N1 = np.linspace(-0.8, 0.8, n_datasets)[dataset_N][:, None]
    y_NR = (rng.normal(size=(n, repetitions)) < ease_N1).astype(np.float32)
    score_NR = (rng.normal(size=y_NR.shape) + y_NR + 2 * ease_N1).astype(np.float32)
    truth = 0.7602499389065233  # Phi(1 / sqrt(2)), in each dataset.
    weight_BN = group_weights(groups_of(n, 1), 400, seed=6)
    found = within_auc_replicates(
        score_NR, y_NR, np.zeros(n, int), 1, dataset_N, n_datasets, weight_BN
    )
    low, high = reverse_percentile(found.value_Q, found.draws_BQ, smallest=0, largest=1)
    assert 0.91 <= ((low <= truth) & (truth <= high)).mean() <= 0.98


def test_j_is_resampled_whole():
    rng = np.random.default_rng(0)
    x_ND = rng.normal(size=(200, 6)).astype(np.float32)
    shrunk_DD = np.linalg.inv(x_ND.T @ x_ND / 200 + RIDGE * np.eye(6))
    effective_rank = 6 - RIDGE * np.trace(shrunk_DD)
    y_NM = (rng.random((200, 2)) < 0.4).astype(np.float32)
    y_NM[:20, 1] = np.nan
    weight_BN = group_weights(groups_of(200, 2), 30, seed=0)
    found = fisher_replicates(x_ND, y_NM, weight_BN)
    for b in (0, 7, 29):
        times = weight_BN[b].astype(int)
        x, y = np.repeat(x_ND, times, axis=0).astype(np.float64), np.repeat(y_NM, times, axis=0)
        for m in range(2):
            right, wrong = x[y[:, m] == 1], x[y[:, m] == 0]
            gap = np.square(right.mean(axis=0) - wrong.mean(axis=0)).sum()
            j = gap / (right.var(axis=0).sum() + wrong.var(axis=0).sum())
            assert found.draws_BM[b, m] == pytest.approx(j, rel=1e-4)
            gap_D = right.mean(axis=0) - wrong.mean(axis=0)
            n1, n0, w_D = len(right), len(wrong), shrunk_DD @ gap_D
            gap = gap_D @ w_D - (1 / n1 + 1 / n0) * effective_rank
            within = w_D @ (x_ND.T @ x_ND / 200) @ w_D
            within -= n1 * n0 / (n1 + n0) ** 2 * (gap_D @ w_D) ** 2
            by_ridge = np.sign(gap) * gap**2 / within
            assert found.ridge_draws_BM[b, m] == pytest.approx(by_ridge, rel=1e-4, abs=1e-6)
    chance_M = fisher_shuffled(x_ND, y_NM, 200, seed=0)
    # Under shuffled labels E|gap|^2 is (1/n1 + 1/n0) tr S, and tr S0 + tr S1 about 2 tr S.
    for m in range(2):
        n1, n0 = (y_NM[:, m] == 1).sum(), (y_NM[:, m] == 0).sum()
        assert chance_M[m] == pytest.approx((1 / n1 + 1 / n0) / 2, rel=0.15)


def covered(size, by_groups, repetitions=250, n_groups=60):
    """Share of 95% intervals that hold the true AUC, rows in groups of `size` equal ones."""
    rng = np.random.default_rng(11)
    delta, n = 1.0, n_groups * size
    truth = 0.7602499389065233  # The normal distribution's Phi(1 / sqrt(2)).
    y_GR = (rng.random((n_groups, repetitions)) < 0.5).astype(np.float32)
    score_GR = rng.normal(size=y_GR.shape) + delta * y_GR
    y_NR, score_NR = (np.repeat(a, size, axis=0) for a in (y_GR, score_GR))
    weight_BN = group_weights(groups_of(n, size if by_groups else 1), 400, seed=5)
    found = auc_replicates(score_NR, y_NR, np.zeros(n, int), 1, weight_BN)
    low, high = reverse_percentile(found.value_Q, found.draws_BQ, smallest=0, largest=1)
    return ((low <= truth) & (truth <= high)).mean()


def test_intervals_of_auc_cover():
    assert 0.91 <= covered(1, True) <= 0.98
    assert 0.91 <= covered(5, True) <= 0.98
    # Rows taken as independent that are not: far too narrow.
    assert covered(5, False) < 0.75


@pytest.mark.slow
def test_intervals_of_j_cover():
    rng = np.random.default_rng(2)
    width, n, hits = 5, 150, 0
    shift_D = np.full(width, 0.35)
    truth = np.square(shift_D).sum() / (2 * width)
    weight_BN = group_weights(groups_of(n, 1), 300, seed=0)
    for _ in range(600):
        y_N1 = (rng.random((n, 1)) < 0.5).astype(np.float32)
        x_ND = rng.normal(size=(n, width)) + y_N1 * shift_D
        found = fisher_replicates(x_ND - x_ND.mean(axis=0), y_N1, weight_BN)
        low, high = reverse_percentile(found.value_M, found.draws_BM, smallest=0)
        hits += bool(low[0] <= truth <= high[0])
    assert 0.91 <= hits / 600 <= 0.985


def test_weighted_means_by_hand():
    """A draw of no row has no mean; values keep their further axes."""
    weight_BN = np.array([[1, 1, 1], [2, 0, 1], [0, 0, 0]], np.float32)
    value_N2 = np.array([[0.0, 1], [3, 1], [6, 4]])
    np.testing.assert_array_equal(weighted_sums(weight_BN, value_N2), [[9, 6], [6, 6], [0, 0]])
    np.testing.assert_array_equal(
        weighted_means(weight_BN, value_N2), [[3, 2], [2, 2], [np.nan, np.nan]]
    )
    np.testing.assert_array_equal(weighted_means(weight_BN, value_N2[:, 0]), [3, 2, np.nan])


def test_the_value_comes_before_its_draws():
    weight_BN = value_and_draws(["a", "b", "b"], 5, seed=3)
    np.testing.assert_array_equal(weight_BN[0], 1)
    np.testing.assert_array_equal(weight_BN[1:], group_weights(["a", "b", "b"], 5, 3))
    assert value_and_draws([], 5).shape == (6, 0)
