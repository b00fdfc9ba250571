"""Policies that weigh, hold a budget or a quality: what they say, and whether it holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from routerjax.data.simulated.simulate import simulate
from routerjax.routing.constrained import Budget, Mixture, Quality, confident_saving
from routerjax.routing.policies import Argmax, Tolerance, Utility, Value
from routerjax.routing.policy_rows import coins

FITTED = Mixture(0.3, 0.6, 0.5, 0.0, 8.0)
POLICIES = [Argmax(), Tolerance(0.25), Value(4.0), Utility(0.75, (1.0, 7.0)), Budget(1, FITTED),
            Quality(0.5, FITTED)]  # fmt: skip


@st.composite
def _tables(draw):
    # Sixteenths and small whole costs: sums are exact, ties are many.
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 5)))
    p_NM = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 16))) / 16
    cost_NM = draw(hnp.arrays(np.float64, shape, elements=st.sampled_from([0.0, 1, 1, 2, 7])))
    allowed_NM = draw(hnp.arrays(bool, shape))
    allowed_NM[np.arange(shape[0]), draw(st.integers(0, shape[1] - 1))] = True
    return p_NM, cost_NM, allowed_NM


@given(_tables(), st.integers(0, 64))
def test_value_is_what_it_says(tables, usd):
    p_NM, cost_NM, _ = tables
    worth_NM = usd * p_NM - cost_NM
    by_hand = [
        min(range(len(w_M)), key=lambda m: (-w_M[m], c_M[m], -p_M[m], m))
        for w_M, c_M, p_M in zip(worth_NM, cost_NM, p_NM, strict=True)
    ]
    assert Value(usd).choose(p_NM, cost_NM).tolist() == by_hand


@given(_tables(), st.sampled_from([0.25, 0.5, 0.75, 0.9375]))
def test_utility_is_a_value_at_its_rate_of_exchange(tables, lam):
    """With costs from 0 to 8 that count as 0 to 1: all of it in binary fractions."""
    p_NM, cost_NM, _ = tables
    rate = Value(lam / (1 - lam) * 8.0)
    found_N = Utility(lam, (0.0, 8.0)).choose(p_NM, cost_NM)
    np.testing.assert_array_equal(found_N, rate.choose(p_NM, cost_NM))


@given(_tables())
def test_extremes(tables):
    p_NM, cost_NM, _ = tables
    np.testing.assert_array_equal(Utility(1).choose(p_NM, None), Argmax().choose(p_NM, None))
    for policy in (Utility(0, (0.0, 7.0)), Value(0)):
        np.testing.assert_array_equal(
            policy.choose(p_NM, cost_NM), Tolerance(1).choose(p_NM, cost_NM)
        )


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
@given(_tables())
def test_a_subset_is_as_if_there_were_no_others(policy, tables):
    """Even where the others have no price."""
    p_NM, cost_NM, allowed_NM = tables
    found_N = policy.choose(p_NM, np.where(allowed_NM, cost_NM, np.nan), allowed_NM)
    keys = [str(n) for n in range(len(p_NM))]
    for n, found in enumerate(found_N):
        some = np.flatnonzero(allowed_NM[n])
        alone = policy.choose(p_NM[n : n + 1, some], cost_NM[n : n + 1, some], keys=keys[n : n + 1])
        assert found == some[alone[0]]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
def test_bad_subsets_are_refused(policy):
    p_NM, cost_NM = np.full((2, 2), 0.5), np.ones((2, 2))
    with pytest.raises(ValueError, match="at least one target for each, got none for query 1"):
        policy.choose(p_NM, cost_NM, np.array([[True, False], [False, False]]))
    for mask in (np.ones((2, 3), bool), np.ones((2, 2))):
        with pytest.raises(ValueError, match="expected bool of the shape"):
            policy.choose(p_NM, cost_NM, mask)


@pytest.mark.parametrize("policy", POLICIES[2:], ids=lambda p: p.name)
def test_unknown_costs_are_refused(policy):
    for cost_NM in (None, np.array([[1.0, np.nan]])):
        with pytest.raises(ValueError, match=f"the {policy.name} policy compares costs.*1\\]"):
            policy.choose(np.array([[0.8, 0.7]]), cost_NM)
        if policy.name != "value":
            with pytest.raises(ValueError, match="compares costs"):
                policy.fit(np.array([[0.8, 0.7]]), cost_NM)


@pytest.mark.parametrize("policy", [Utility(0.5), Budget(1.0), Quality(0.5)])
def test_unfitted_policies_say_what_to_do(policy):
    with pytest.raises(ValueError, match=r"fit_router, or .*fit_policy"):
        policy.choose(np.array([[0.8, 0.7]]), np.ones((1, 2)))


@pytest.fixture(scope="module")
def pool():
    """True p, costs and outcomes of 20,000 simulated rows, and a split of them in three folds."""
    data = simulate(20_000, seed=3)
    usd_NM = 50 * data.prices_M2[None, :, 0] + data.output_tokens_NM * data.prices_M2[None, :, 1]
    fold_N = np.random.default_rng(0).integers(0, 3, len(data))
    return data.p_NM.astype(np.float64), usd_NM / 1e6, data.correct_NM.astype(np.float64), fold_N


@pytest.fixture(scope="module")
def tolerances(pool):
    """Mean P(correct) and mean cost of 21 tolerances."""
    p_NM, cost_NM, *_ = pool
    choices = [Tolerance(tau).choose(p_NM, cost_NM) for tau in np.linspace(0, 1, 21)]
    return [(_mean(p_NM, choice_N), _mean(cost_NM, choice_N)) for choice_N in choices]


def _chosen(value_NM, choice_N):
    return np.take_along_axis(value_NM, choice_N[:, None], 1)[:, 0]


def _mean(value_NM, choice_N):
    return _chosen(value_NM, choice_N).mean()


def _out_of_fold(policy, pool, by_outcomes=True):
    """Choices on each fold, by the policy fitted on the others."""
    p_NM, cost_NM, y_NM, fold_N = pool
    choice_N = np.zeros(len(p_NM), np.int64)
    for f in range(3):
        fit_N, test_N = fold_N != f, fold_N == f
        y_nM = y_NM[fit_N] if by_outcomes else None
        choice_N[test_N] = policy.fit(p_NM[fit_N], cost_NM[fit_N], y_nM).choose(
            p_NM[test_N], cost_NM[test_N]
        )
    return choice_N


def _assert_within_noise(fit_N, test_N, wanted):
    """Half of the rows fitted on, half judged: apart by no more than 4 standard errors."""
    assert fit_N.mean() == pytest.approx(wanted, rel=2e-3)
    error = np.hypot(fit_N.std() / len(fit_N) ** 0.5, test_N.std() / len(test_N) ** 0.5)
    assert abs(test_N.mean() - wanted) < 4 * error


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_budget_holds(pool, tolerances, share):
    p_NM, cost_NM, _, fold_N = pool
    low, high = cost_NM.min(axis=1).mean(), _mean(cost_NM, p_NM.argmax(axis=1))
    usd = low + share * (high - low)
    choice_N = _out_of_fold(Budget(usd), pool)
    assert _mean(cost_NM, choice_N) == pytest.approx(usd, rel=0.01)
    # And it is spent well: no tolerance that costs as little is as accurate.
    for p, cost in tolerances:
        if cost <= usd:
            assert p < _mean(p_NM, choice_N)
    half_N = np.arange(len(p_NM)) % 2 == 0
    policy = Budget(usd).fit(p_NM[half_N], cost_NM[half_N])
    spent_N = _chosen(cost_NM, policy.choose(p_NM, cost_NM))
    _assert_within_noise(spent_N[half_N], spent_N[~half_N], usd)


@pytest.mark.parametrize("share, by_outcomes", [(0.1, True), (0.6, False), (0.95, True)])
def test_a_quality_holds(pool, tolerances, share, by_outcomes):
    p_NM, cost_NM, y_NM, _ = pool
    low, high = _mean(p_NM, cost_NM.argmin(axis=1)), p_NM.max(axis=1).mean()
    wanted = low + share * (high - low)
    choice_N = _out_of_fold(Quality(wanted), pool, by_outcomes)
    for value_NM in (p_NM, y_NM):
        assert _mean(value_NM, choice_N) == pytest.approx(wanted, abs=0.005)
    # And no tolerance that is as accurate costs as little.
    for p, cost in tolerances:
        if p >= _mean(p_NM, choice_N):
            assert cost > _mean(cost_NM, choice_N)
    half_N = np.arange(len(p_NM)) % 2 == 0
    policy = Quality(wanted).fit(p_NM[half_N], cost_NM[half_N], y_NM[half_N])
    right_N = _chosen(y_NM, policy.choose(p_NM, cost_NM))
    _assert_within_noise(right_N[half_N], right_N[~half_N], wanted)


def test_two_settings_are_mixed_where_one_step_is_too_large():
    """All queries look alike: one utility takes the cheap target for all, the next the dear one."""
    n = 20_000
    p_NM, cost_NM = np.tile([0.4, 0.9], (n, 1)), np.tile([1.0, 3.0], (n, 1))
    keys = [f"query {i}" for i in range(n)]
    budget = Budget(1.5).fit(p_NM, cost_NM)
    assert budget.fitted.share_high == pytest.approx(0.25)
    assert _mean(cost_NM, budget.choose(p_NM, cost_NM, keys=keys)) == pytest.approx(1.5, rel=0.01)
    quality = Quality(0.5).fit(p_NM, cost_NM)
    assert quality.fitted.share_high == pytest.approx(0.2)
    assert _mean(p_NM, quality.choose(p_NM, cost_NM, keys=keys)) == pytest.approx(0.5, abs=0.005)
    # The same queries go the same way in any company and order.
    some = np.random.default_rng(0).permutation(n)[:500]
    choice_N = budget.choose(p_NM, cost_NM, keys=keys)
    again_N = budget.choose(p_NM[some], cost_NM[some], keys=[keys[i] for i in some])
    np.testing.assert_array_equal(again_N, choice_N[some])


def test_what_cannot_be_reached_is_refused_with_the_range():
    p_NM, cost_NM = np.array([[0.4, 0.9], [0.2, 0.7]]), np.array([[1.0, 3.0], [2.0, 4.0]])
    with pytest.raises(ValueError, match=r"1.5 \(always the cheapest target\) to 3.5 USD"):
        Budget(1.49).fit(p_NM, cost_NM)
    with pytest.raises(ValueError, match=r"0.3000 \(always the cheapest target\) to 0.8000"):
        Quality(0.81).fit(p_NM, cost_NM)
    # What is more than enough is no error: the best there is, the cheapest there is.
    assert Budget(100.0).fit(p_NM, cost_NM).choose(p_NM, cost_NM).tolist() == [1, 1]
    assert Quality(0.1).fit(p_NM, cost_NM).choose(p_NM, cost_NM).tolist() == [0, 0]
    assert Budget(1.5).fit(p_NM, cost_NM).choose(p_NM, cost_NM).tolist() == [0, 0]
    assert Quality(0.8).fit(p_NM, cost_NM).choose(p_NM, cost_NM).tolist() == [1, 1]


def test_a_budget_counts_what_was_paid(pool):
    """Expected costs that are half of what is paid mislead no budget."""
    p_NM, cost_NM = pool[0][:5000], pool[1][:5000]
    usd = 0.5 * (cost_NM.min(axis=1).mean() + _mean(cost_NM, p_NM.argmax(axis=1)))
    policy = Budget(usd).fit(p_NM, 0.5 * cost_NM, paid_NM=cost_NM)
    spent = _mean(cost_NM, policy.choose(p_NM, 0.5 * cost_NM))
    assert spent == pytest.approx(usd, rel=5e-3)


def test_quality_counts_outcomes_and_not_boasts(pool):
    """Predictions 0.1 too high, half of the outcomes missing: the accuracy is held all the same."""
    p_NM, cost_NM, y_NM = (a[:20_000] for a in pool[:3])
    boast_NM = np.minimum(p_NM + 0.1, 1)
    missing_NM = np.where(np.random.default_rng(1).random(y_NM.shape) < 0.5, np.nan, y_NM)
    policy = Quality(0.6).fit(boast_NM, cost_NM, missing_NM)
    assert _mean(p_NM, policy.choose(boast_NM, cost_NM)) == pytest.approx(0.6, abs=0.01)


def test_more_confidence_is_more_accurate_and_dearer(pool):
    p_NM, cost_NM, y_NM = (a[:2000] for a in pool[:3])
    wanted = 0.3 * _mean(p_NM, cost_NM.argmin(axis=1)) + 0.7 * p_NM.max(axis=1).mean()
    bold = Quality(wanted).fit(p_NM, cost_NM, y_NM)
    sure = [Quality(wanted, confidence=c).fit(p_NM, cost_NM, y_NM) for c in (0.8, 0.95, 0.99)]
    assert [policy.fitted.holds for policy in sure] == [True] * 3
    spent = [_mean(cost_NM, policy.choose(p_NM, cost_NM)) for policy in (bold, *sure)]
    accuracy = [_mean(y_NM, policy.choose(p_NM, cost_NM)) for policy in (bold, *sure)]
    assert spent == sorted(spent) and spent[0] < spent[1] < spent[3]
    # On the rows it is fitted on it lies above what is wanted by its quantiles of the error.
    error = (wanted * (1 - wanted) / 2000) ** 0.5
    for quantile, value in zip((0.84, 1.64, 2.33), accuracy[1:], strict=True):
        assert value - wanted == pytest.approx(quantile * error, abs=0.4 * error)


def test_rows_of_one_group_show_no_more_than_one(pool):
    p_NM, cost_NM, y_NM = (a[:400] for a in pool[:3])
    wanted = 0.4 * _mean(p_NM, cost_NM.argmin(axis=1)) + 0.6 * p_NM.max(axis=1).mean()
    policy = Quality(wanted, confidence=0.95)
    once = policy.fit(p_NM, cost_NM, y_NM)
    many = [np.tile(a, (5, 1)) for a in (p_NM, cost_NM, y_NM)]
    grouped = policy.fit(*many, groups=[f"g{i % 400}" for i in range(2000)])
    assert grouped.fitted == once.fitted
    alone = policy.fit(*many)
    assert _mean(cost_NM, alone.choose(p_NM, cost_NM)) < _mean(cost_NM, once.choose(p_NM, cost_NM))


def test_what_is_not_shown_is_not_promised(pool):
    p_NM, cost_NM, y_NM = (a[:200] for a in pool[:3])
    policy = Quality(_mean(y_NM, p_NM.argmax(axis=1)), confidence=0.95)
    fitted = policy.fit(p_NM, cost_NM, y_NM)  # Bold it would hold, at argmax.
    assert fitted.fitted.holds is False
    np.testing.assert_array_equal(fitted.choose(p_NM, cost_NM), Argmax().choose(p_NM, cost_NM))
    with pytest.raises(ValueError, match="a confidence is a statement about outcomes"):
        policy.fit(p_NM, cost_NM)
    with pytest.raises(ValueError, match=r"confidence, .* in \[0.5, 1\) such as 0.95, got 1"):
        Quality(0.8, confidence=1)
    with pytest.raises(ValueError, match="confidence"):
        confident_saving(p_NM, cost_NM, y_NM, p_NM.argmax(axis=1), confidence=0.2)
    # No router that knows nothing is shown to be as accurate as the best single target.
    even_NM = np.random.default_rng(0).random(p_NM.shape)
    best_N = np.full(200, y_NM.mean(axis=0).argmax())
    assert confident_saving(even_NM, cost_NM, y_NM, best_N) is None
    nothing_NM = np.where(np.arange(y_NM.shape[1]) == best_N[0], y_NM, np.nan)
    assert confident_saving(1 - p_NM, cost_NM, nothing_NM, best_N) is None


def test_a_confident_saving_holds_on_other_rows_with_half_of_the_outcomes(pool):
    p_NM, cost_NM, y_NM = (a[8_000:] for a in pool[:3])
    best_N = np.full(len(p_NM), p_NM.mean(axis=0).argmax())
    half_NM = np.where(np.random.default_rng(2).random(y_NM.shape) < 0.5, np.nan, y_NM)
    policy = confident_saving(p_NM[:3000], cost_NM[:3000], half_NM[:3000], best_N[:3000])
    choice_n = policy.choose(p_NM[3000:], cost_NM[3000:])
    assert _mean(p_NM[3000:], choice_n) >= _mean(p_NM[3000:], best_N[3000:])
    assert _mean(cost_NM[3000:], choice_n) < 0.9 * _mean(cost_NM[3000:], best_N[3000:])
    assert policy.min_accuracy == pytest.approx(np.nanmean(half_NM[:3000, best_N[0]]), abs=0.02)


def test_coins_are_even_and_of_the_key_alone():
    coin_N = coins(None, 20_000)
    assert (coin_N >= 0).all() and (coin_N < 1).all()
    counts = np.histogram(coin_N, 20, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # 0.1% point of chi-squared(19)
    np.testing.assert_array_equal(coins(["7", "a"], 2)[0], coins(None, 8)[7])
    with pytest.raises(ValueError, match="one for each of the 3 queries, got 2"):
        coins(["a", "b"], 3)
