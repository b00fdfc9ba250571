"""Baselines: each against its definition, and none looks where it may not."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from routerjax.data.dataset import RoutingDataset
from routerjax.evaluation.frontier import oracle_choice
from routerjax.routing.costs import CostModel
from routerjax.stats.item_response import cautious_accuracy
from routerjax.studies import embedding_baselines as embedding
from routerjax.studies.contestants import BASELINES
from routerjax.trunk.config import TrunkConfig

CONFIG = TrunkConfig(hidden=(16,), dropout=(0.1,), epochs=30, seeds=(1, 2), keep=2, batch_size=64)
N, WIDTH = 900, 12


@pytest.fixture(scope="module")
def rows(fake_store):
    """Layer 1 tells the outcomes of three targets; a fourth is always right."""
    rng = np.random.default_rng(5)
    h_NLPD = rng.normal(size=(2, 1, N, WIDTH)).transpose(2, 0, 1, 3)
    dataset_N = rng.integers(0, 3, N)
    logit_NM = 1.5 * h_NLPD[:, 1, 0, :3] + np.array([-0.5, 0.3, 0.8]) + (dataset_N - 1)[:, None]
    y_NM = (rng.random((N, 3)) < 1 / (1 + np.exp(-logit_NM))).astype(np.float32)
    y_NM[rng.random((N, 3)) < 0.1] = np.nan
    y_NM = np.concatenate([y_NM, np.ones((N, 1), np.float32)], axis=1)
    ids = tuple(f"q{i}" for i in range(N))
    data = RoutingDataset(
        ids, ids, ("a", "b", "c", "sure"), y_NM, tuple(f"g{i // 2}" for i in range(N)),
        tuple(f"set-{k}" for k in dataset_N),
        prices_M2=np.array([[1.0, 2], [0.1, 0.2], [3, 3], [9, 9]]),
    )  # fmt: skip
    store = fake_store(h_NLPD, ids, block_rows=N, poolings=("mean",))
    store.query_tokens_N = np.full(N, 10)
    return store, *data.split(0.3, 0)[::-1]


def auc(p_nM, test) -> float:
    y_nM = np.asarray(test.correct_NM)
    seen = [np.isfinite(y_nM[:, m]) for m in range(3)]
    return np.mean([roc_auc_score(y_nM[s, m], p_nM[s, m]) for m, s in enumerate(seen)])


@pytest.mark.parametrize("name", list(BASELINES))
def test_each_scores_every_row_and_sees_no_outcome_but_the_oracle(name, rows):
    store, train, test = rows
    baseline = BASELINES[name]
    config = dataclasses.replace(CONFIG, epochs=3)
    p_nM = baseline.predict(store, train, test, config)
    assert p_nM.shape == (len(test), 4) and p_nM.dtype == np.float32
    assert np.isfinite(p_nM).all() and p_nM.min() >= 0 and p_nM.max() <= 1
    flipped = dataclasses.replace(test, y_NM=1 - test.y_NM)
    same = np.array_equal(baseline.predict(store, train, flipped, config), p_nM)
    assert same != baseline.hindsight
    np.testing.assert_array_equal(baseline.predict(store, train, test, config), p_nM)


def test_those_that_read_the_text_find_what_is_there(rows, fake_store):
    store, train, test = rows
    found = {name: auc(BASELINES[name].predict(store, train, test, CONFIG), test)
             for name in ("knn", "logistic", "mlp", "matrix_factorisation", "dataset")}  # fmt: skip
    assert all(value > 0.6 for value in found.values()), found
    assert found["logistic"] > 0.75 and found["mlp"] > 0.73
    assert found["matrix_factorisation"] > 0.73
    noise_NLPD = np.random.default_rng(1).normal(size=(N, 2, 1, WIDTH))
    noise = fake_store(noise_NLPD, store.ids, block_rows=N, poolings=("mean",))
    noise.query_tokens_N = store.query_tokens_N
    assert abs(auc(BASELINES["logistic"].predict(noise, train, test, CONFIG), test) - 0.5) < 0.07


def test_neighbours_are_scikit_learns():
    rng = np.random.default_rng(0)
    x_NC, x_nC = rng.normal(size=(300, 6)), rng.normal(size=(1100, 6))
    y_NM = (rng.random((300, 2)) < 0.4).astype(np.float32)
    (p_nM,) = embedding._neighbours(x_NC, y_NM, x_nC, [15])
    for m in range(2):
        model = KNeighborsClassifier(15, metric="cosine").fit(x_NC, y_NM[:, m])
        share_n = model.predict_proba(x_nC)[:, 1]
        np.testing.assert_allclose(p_nM[:, m], (15 * share_n + y_NM[:, m].mean()) / 16, atol=1e-6)
    y_NM[::3, 0] = np.nan  # What was not observed is no neighbour's answer.
    (masked_nM,) = embedding._neighbours(x_NC, y_NM, x_nC[:5], [300])
    np.testing.assert_allclose(masked_nM[:, 0], np.nanmean(y_NM[:, 0]), atol=1e-6)


def test_regression_is_scikit_learns():
    rng = np.random.default_rng(0)
    x_NC, x_nC = (rng.normal(size=(n, 6)).astype(np.float32) for n in (400, 50))
    y_NM = (rng.random((400, 2)) < 1 / (1 + np.exp(-2 * x_NC[:, :2]))).astype(np.float32)
    p_nM = embedding._logistic(x_NC, y_NM, x_nC, 10.0)
    for m in range(2):
        model = LogisticRegression(C=0.1, tol=1e-8).fit(x_NC - x_NC.mean(0), y_NM[:, m])
        expected = model.predict_proba(x_nC - x_NC.mean(0))[:, 1]
        np.testing.assert_allclose(p_nM[:, m], expected, atol=2e-3)


def test_simple_ones_are_their_definitions(rows):
    store, train, test = rows
    skill_M = cautious_accuracy(train.correct_NM, train.datasets)
    best = BASELINES["best_single"].predict(store, train, test, CONFIG)
    np.testing.assert_allclose(best, np.tile(skill_M, (len(test), 1)), atol=1e-6)
    # A tenth is hidden at random, of the first three: the mean of what is seen is not far.
    np.testing.assert_allclose(skill_M, np.nanmean(train.correct_NM, axis=0), atol=0.03)
    assert skill_M[3] == 1
    cheap = BASELINES["cheapest"].predict(store, train, test, CONFIG)
    assert (cheap.argmax(axis=1) == 1).all()
    by_dataset = BASELINES["dataset"].predict(store, train, test, CONFIG)
    at = np.asarray(train.datasets) == "set-2"
    expected = np.nanmean(np.asarray(train.correct_NM)[at], axis=0)
    row = test.datasets.index("set-2")
    np.testing.assert_allclose(by_dataset[row], expected, atol=0.01)
    choice = BASELINES["oracle"].predict(store, train, test, CONFIG).argmax(axis=1)
    y_nM = np.nan_to_num(test.correct_NM)
    assert (y_nM[np.arange(len(test)), choice] == 1).all()
    assert (choice[y_nM[:, 1] == 1] == 1).all()  # The cheapest of the right ones.


def test_cheap_is_what_costs_least_not_what_lists_least(rows):
    """The first target lists lower and answers ten times as long; long answers differ by query."""
    store, train, test = rows
    prices_M2 = np.array([[1.0, 2], [1, 3], [4, 4], [9, 9]])

    def with_lengths(data):
        lengths_NM = np.tile([1000.0, 100, 120, 100], (len(data), 1))
        lengths_NM[::2, 1] = 900
        return dataclasses.replace(data, prices_M2=prices_M2, output_tokens_NM=lengths_NM)

    train, test = with_lengths(train), with_lengths(test)
    cheap = BASELINES["cheapest"].predict(store, train, test, CONFIG)
    assert (cheap.argmax(axis=1) == 2).all()  # Medians of 1000, 500, 120 and 100 tokens.
    tokens_N = store.query_tokens_N[store.rows_of(test.ids)]
    paid_NM, basis = CostModel.fit(train).paid(tokens_N, test)
    assert basis == "recorded"
    complete = np.isfinite(test.correct_NM).all(axis=1)
    choice = BASELINES["oracle"].predict(store, train, test, CONFIG).argmax(axis=1)
    expected = oracle_choice(test.correct_NM[complete], paid_NM[complete])
    np.testing.assert_array_equal(choice[complete], expected)


def test_what_a_baseline_lacks_is_named(rows):
    store, train, test = rows
    with pytest.raises(ValueError, match="do not name their datasets"):
        bare = dataclasses.replace(train, datasets=None)
        BASELINES["dataset"].predict(store, bare, test, CONFIG)
    with pytest.raises(ValueError, match="prices are unknown"):
        BASELINES["cheapest"].predict(
            store, dataclasses.replace(train, prices_M2=None), test, CONFIG
        )
    with pytest.raises(ValueError, match="some or all prices are unknown: give every target one"):
        some_M2 = np.array([[1.0, 1], [np.nan, np.nan], [1, 1], [1, 1]])
        BASELINES["cheapest"].predict(
            store, dataclasses.replace(train, prices_M2=some_M2), test, CONFIG
        )
