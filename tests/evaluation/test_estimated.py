"""Estimated outcomes: by hand, exact where nothing is missing, and covered as often as promised."""

import numpy as np
import pytest
from scipy.special import expit

from routerjax.data.dataset import RoutingDataset
from routerjax.evaluation.estimated import Estimated, known_queries
from routerjax.evaluation.frontier import oracle_choice
from routerjax.evaluation.metrics import evaluate_predictions
from routerjax.routing.judged import Judged
from routerjax.routing.policies import Argmax
from routerjax.stats.item_response import best_single_target, fit_item_response


def _outcomes(n=300, m=4, seen=0.7, seed=0):
    rng = np.random.default_rng(seed)
    dataset_N = rng.integers(0, 3, n)
    logit_NM = np.linspace(-0.5, 1, m) + dataset_N[:, None] - 1 + rng.normal(size=(n, 1))
    y_NM = (rng.random((n, m)) < expit(logit_NM)) * 1.0
    return y_NM, np.where(rng.random((n, m)) < seen, y_NM, np.nan), dataset_N


def test_values_by_the_formula():
    _, y_NM, dataset_N = _outcomes()
    outcomes = Estimated(y_NM, dataset_N)
    expected_NM = fit_item_response(y_NM, dataset_N).expected()
    for n, m in ((0, 0), (1, 1), (2, 3), (5, 2)):
        share = np.isfinite(y_NM[dataset_N == dataset_N[n], m]).mean()
        value = expected_NM[n, m]
        if np.isfinite(y_NM[n, m]):
            value += (y_NM[n, m] - value) / share
        assert outcomes.value_NM[n, m] == pytest.approx(value)


def test_what_is_complete_stays_to_the_last_bit():
    y_NM, holed_NM, dataset_N = _outcomes()
    whole = Estimated(y_NM, dataset_N)
    assert whole.value_NM is y_NM and whole.n_oracle == len(y_NM)
    np.testing.assert_array_equal(whole.oracle_N, y_NM.max(axis=1))
    assert not whole.noise(np.zeros((2, len(y_NM)), int), 50).any()
    holed_NM[:, 1] = y_NM[:, 1]
    np.testing.assert_array_equal(Estimated(holed_NM, dataset_N).value_NM[:, 1], y_NM[:, 1])


def test_the_oracle_asks_the_cheapest_right_one():
    y_NM, holed_NM, dataset_N = _outcomes(n=2000)
    cost_NM = np.random.default_rng(1).integers(1, 5, y_NM.shape).astype(float)
    chance_NM = Estimated(y_NM, dataset_N).oracle_NM(cost_NM)
    np.testing.assert_array_equal(chance_NM.argmax(axis=1), oracle_choice(y_NM, cost_NM))
    assert set(np.unique(chance_NM)) == {0, 1}
    outcomes = Estimated(holed_NM, dataset_N)
    guessed_NM = outcomes.oracle_NM(cost_NM)
    np.testing.assert_allclose(guessed_NM.sum(axis=1), 1)
    np.testing.assert_allclose(guessed_NM.mean(axis=0), chance_NM.mean(axis=0), atol=0.03)
    # Where all outcomes of a query are known, there is no doubt.
    known_N = np.isfinite(holed_NM).all(axis=1)
    np.testing.assert_allclose(guessed_NM[known_N], chance_NM[known_N], atol=1e-12)
    assert outcomes.oracle_N.mean() == pytest.approx(y_NM.max(axis=1).mean(), abs=0.02)
    right_N = (holed_NM == 1).any(axis=1)
    np.testing.assert_allclose(outcomes.oracle_N[right_N], 1)
    assert outcomes.n_oracle == (right_N | known_N).sum()


def test_noise_is_of_what_was_never_tried():
    """A choice of a target that was tried everywhere has hardly any; the oracle little."""
    _, y_NM, dataset_N = _outcomes(n=600)
    y_NM[dataset_N == 0, 3] = np.nan
    choice_QN = np.stack([np.full(600, 2), np.full(600, 3)])
    noise_BQ = Estimated(y_NM, dataset_N).noise(choice_QN, 400)
    assert (noise_BQ[0] == 0).all()
    tried, untried, oracle = noise_BQ[1:].std(axis=0)
    assert tried < 0.01 and oracle < untried and 0.07 < untried < 0.15


@pytest.mark.parametrize(
    "metrics, text",
    [
        ({"n_queries": 1000, "n_complete": 1000}, "1,000 queries"),
        ({"n_queries": 1000, "n_complete": 7}, "7 of 1,000 queries"),
        ({"n_queries": 9, "n_complete": 7, "n_known": {"router": 8}}, "8 of 9 queries"),
        ({"n_queries": 9, "n_complete": 7, "n_known": {"router": 9}}, "9 queries"),
    ],
)
def test_words(metrics, text):
    assert known_queries(metrics, "router") == text


# Six targets, a specialist that is good on one dataset and tried there alone, and a newcomer.
_TARGETS, _DATASETS = 8, 5


def _pool(rng):
    """(logit_GM of each dataset and target, what a router knows of it, the specialist's home)."""
    level_G1 = rng.normal(0.3, 0.8, (_DATASETS, 1))
    ability_M = np.append(np.linspace(-0.6, 0.9, 6), [0.0, rng.normal(0.6, 0.5)])
    own_GM = rng.normal(0, 0.4, (_DATASETS, _TARGETS))
    home = int(rng.integers(_DATASETS))
    own_GM[home, 6] += 1.2
    # A router knows each target up to an error, the newcomer badly, and takes the specialist to be
    # everywhere what it is at home.
    known_GM = own_GM + rng.normal(0, 0.15, own_GM.shape)
    known_GM[:, 6], known_GM[:, 7] = own_GM[home, 6], 0
    error_M = rng.normal(0, np.append(np.full(7, 0.15), 0.6))
    return level_G1 + ability_M + own_GM, level_G1 + ability_M + known_GM + error_M, home


def _draw(rng, pool, n):
    """(dataset, ease, true p, outcome, a router's p) of n queries."""
    logit_GM, known_GM, _ = pool
    dataset_N, ease_N1 = rng.integers(0, _DATASETS, n), rng.normal(size=(n, 1))
    shape = n, _TARGETS
    rest_NM = rng.normal(0, 0.7, shape)
    p_NM = expit(logit_GM[dataset_N] + ease_N1 + rest_NM)
    known_NM = known_GM[dataset_N] + 0.5 * ease_N1 + 0.3 * rest_NM + rng.normal(0, 0.4, shape)
    y_NM = (rng.random(shape) < p_NM) * 1.0
    return dataset_N, ease_N1, p_NM, y_NM, expit(0.85 * known_NM)


def _tried(rng, pool, dataset_N, ease_N1):
    """[N, M] bool: each target more on queries on which it is good, some far more than others."""
    logit_GM, _, home = pool
    good_NM = expit(logit_GM[dataset_N] + ease_N1)
    chance_NM = np.clip(rng.uniform(0.3, 0.95, _TARGETS) * good_NM / 0.55, 0.02, 1)
    seen_NM = rng.random(good_NM.shape) < chance_NM
    seen_NM[:, 6] = (dataset_N == home) & (rng.random(len(dataset_N)) < 0.8)
    seen_NM[:, 7] = False
    seen_NM[np.argsort(np.log(rng.random(len(dataset_N))) / good_NM[:, 7])[-5:], 7] = True
    return seen_NM


def coverage(draws, seed=0, n=400):
    """Shares of draws in which the interval holds the truth, of router and best single target.

    The truth is of 20,000 other queries of the same kind, by their true P(correct).
    """
    covered_D2 = np.zeros((draws, 2), bool)
    for d in range(draws):
        rng = np.random.default_rng([seed, d])
        pool = _pool(rng)
        dataset_N, ease_N1, _, y_NM, _ = _draw(rng, pool, 600)
        seen_NM = _tried(rng, pool, dataset_N, ease_N1)
        single = best_single_target(np.where(seen_NM, y_NM, np.nan), dataset_N)
        *_, true_NM, _, p_NM = _draw(rng, pool, 20_000)
        truth_2 = (
            np.take_along_axis(true_NM, p_NM.argmax(axis=1)[:, None], axis=1).mean(),
            (true_NM[:, single].mean()),
        )
        dataset_N, ease_N1, _, y_NM, p_NM = _draw(rng, pool, n)
        seen_NM = _tried(rng, pool, dataset_N, ease_N1)
        names = tuple(str(i) for i in range(n))
        data = RoutingDataset(
            names, names, tuple("abcdefgh"), np.where(seen_NM, y_NM, np.nan).astype(np.float32),
            names, tuple(f"set-{g}" for g in dataset_N),
        )  # fmt: skip
        found = evaluate_predictions(p_NM, Judged(data), policy=Argmax(), best_single=single)
        for i, name in enumerate(("router_accuracy", "best_single_accuracy")):
            low, high = found["intervals"][name]
            covered_D2[d, i] = low <= truth_2[i] <= high
    return covered_D2.mean(axis=0)


@pytest.mark.slow
def test_accuracies_are_covered_where_targets_are_tried_where_they_are_good():
    """In small; of 200 draws see docs/decisions.md."""
    assert (coverage(30) >= 0.86).all()
