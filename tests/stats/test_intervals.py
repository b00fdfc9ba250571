"""Intervals: closed forms, coverage, and groups that count once."""

import sys

import numpy as np
import pytest
from scipy.stats import binom

from routerjax.stats.intervals import (
    mean_interval,
    mean_reaches_zero,
    ratio_interval,
    share_interval,
)


def test_a_plain_mean_has_the_textbook_interval():
    x_N = np.random.default_rng(0).random(500)
    low, high = ratio_interval(x_N, 1.0, np.arange(500))
    half = 1.959964 * x_N.std(ddof=1) / np.sqrt(500)
    assert (low, high) == pytest.approx((x_N.mean() - half, x_N.mean() + half))


def test_repeated_rows_of_a_group_teach_nothing():
    rng = np.random.default_rng(0)
    a_N, b_N = rng.random(200), 1 + rng.random(200)
    once = ratio_interval(a_N, b_N, np.arange(200))
    thrice = ratio_interval(np.tile(a_N, 3), np.tile(b_N, 3), np.tile(np.arange(200), 3))
    assert thrice == pytest.approx(once)


def test_a_ratio_is_covered_as_often_as_promised():
    """Headroom captured of 300 queries in groups of 1 to 3, drawn a thousand times."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        group_N = np.repeat(np.arange(150), rng.integers(1, 4, 150))
        level_G = rng.beta(2, 2, 150)
        oracle_N = rng.random(len(group_N)) < 0.4
        gain_N = oracle_N & (rng.random(len(group_N)) < level_G[group_N])
        low, high = ratio_interval(gain_N, oracle_N.astype(float), group_N)
        covered += low <= 0.5 <= high
    assert 925 <= covered <= 970


@pytest.mark.parametrize("share", [0.005, 0.5])
def test_a_share_is_covered_as_often_as_promised(share):
    """Of 200 groups of three rows that are alike, drawn three hundred times."""
    rng, group_N = np.random.default_rng(0), np.repeat(np.arange(200), 3)
    covered = 0
    for _ in range(300):
        low, high = share_interval((rng.random(200) < share)[group_N], group_N)
        assert 0 <= low < high <= 1
        covered += low <= share <= high
    assert covered >= 280


def test_a_share_of_independent_rows_has_the_exact_interval():
    """At each end 2.5% of the draws have as many hits, or as few, as were seen."""
    hit_N = np.arange(400) < 12
    for rows_per_group in (1, 3):  # Rows of a group that are alike count once.
        hits, group_N = (np.repeat(each_N, rows_per_group) for each_N in (hit_N, np.arange(400)))
        low, high = share_interval(hits, group_N)
        assert binom.sf(11, 400, low) == pytest.approx(0.025)
        assert binom.cdf(12, 400, high) == pytest.approx(0.025)
        low, high = share_interval(0 * hits, group_N)
        assert low == 0 and (1 - high) ** 400 == pytest.approx(0.025)
        low, high = share_interval(hits | True, group_N)
        assert high == 1 and low**400 == pytest.approx(0.025)


def test_nothing_to_tell_is_nan():
    assert np.isnan(share_interval(np.ones(3), ["a", "a", "a"])).all()
    assert np.isnan(ratio_interval(np.ones(3), 1.0, ["a", "a", "a"])).all()
    assert np.isnan(ratio_interval(np.ones(3), np.zeros(3), ["a", "b", "c"])).all()
    assert np.isnan(ratio_interval(np.ones(0), 1.0, [])).all()


def test_a_mean_of_a_few_is_covered_as_often_as_promised():
    value_DN = np.random.default_rng(0).normal(3, 2, (2000, 4))
    ends_D2 = np.array([mean_interval(value_N)[1:] for value_N in value_DN])
    assert 0.94 <= ((ends_D2[:, 0] <= 3) & (3 <= ends_D2[:, 1])).mean() <= 0.96


def test_a_mean_of_a_few_by_the_table():
    """12.706 is Student's quantile of one degree of freedom, 1.960 that of very many."""
    mean, low, high = mean_interval(np.array([0.0, 2.0]))
    assert mean == 1 and (high - low) / 2 == pytest.approx(12.706, abs=5e-4)
    value_N = np.tile([-1.0, 1.0], 5000)
    low, high = mean_interval(value_N)[1:]
    assert (high - low) / 2 * 100 == pytest.approx(1.960, abs=1e-3)


def test_a_mean_of_a_few_has_its_interval_in_a_script_too(monkeypatch):
    """Where torch is left out, functions of scipy that look for it fail."""
    monkeypatch.setitem(sys.modules, "torch", None)
    assert mean_interval(np.array([0.0, 2.0]))[0] == 1


@pytest.mark.parametrize("n", [20, 200])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_mean_of_nothing_passes_as_seldom_as_promised(n, share):
    """Leads of 1 or -1 on a few or on all rows, and right answers at the very accuracy wanted."""
    rng = np.random.default_rng(n)
    passed = 0
    for _ in range(1000):
        if share:
            lead_N = (rng.random(n) < share) - share
        else:
            lead_N = rng.choice([-1, 0, 1], n, p=[0.1, 0.8, 0.1])
        passed += mean_reaches_zero(lead_N, -share or -1.0, 0.95)
    assert passed <= 50 + 3 * 7  # Of 1,000 at 5%, and three standard errors.
    if n == 200:
        assert passed > 15
