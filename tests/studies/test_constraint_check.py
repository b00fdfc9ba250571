"""Budget and Quality on rows they were not fitted on: real outcomes and simulated ones."""

import dataclasses
import hashlib
import itertools
import json
import tracemalloc
import types

import numpy as np
import pytest
from scipy.special import expit

from routerjax.data import groups as grouping
from routerjax.data.readers import read_dataset
from routerjax.data.simulated.simulate import simulate
from routerjax.features.recipe import Recipe
from routerjax.runtime import resume
from routerjax.studies import constraint_check as lib
from routerjax.studies import embedding_baselines
from routerjax.studies.constraint_check import (
    confident_rows,
    constraint_check,
    constraint_check_lines,
    constraint_rows,
)
from routerjax.trunk.config import TrunkConfig


def _words(queries, width=256):
    """[N, width] counts of hashed words, damped: a cheap stand-in for hidden states."""
    x_NC = np.zeros((len(queries), width), np.float32)
    for n, query in enumerate(queries):
        for word in query.lower().split()[:200]:
            x_NC[n, hashlib.blake2b(word.encode(), digest_size=2).digest()[0] % width] += 1
    x_NC = np.log1p(x_NC)
    return (x_NC - x_NC.mean(axis=0)) / (x_NC.std(axis=0) + 1e-6)


@pytest.mark.slow
def test_twenty_splits_of_real_outcomes_hold(shared_data):
    folder = shared_data / "routing9"
    data = read_dataset(folder / "train.jsonl", pool=folder / "pool.json")
    x_NC, p_NM = _words(data.queries), np.zeros(data.y_NM.shape)
    fold_N = grouping.folds(data.groups, 5, 0)
    for f in range(5):
        train = data.select(fold_N != f)
        p_NM[fold_N == f] = embedding_baselines.logistic(
            x_NC[fold_N != f], train, x_NC[fold_N == f], TrunkConfig()
        )
    tokens_N = np.array([len(query) / 4 for query in data.queries])
    usd_NM = (tokens_N[:, None] + 256) * data.prices_M2[None, :, 0] / 1e6
    found = constraint_rows(p_NM, usd_NM, usd_NM, data.correct_NM, data.groups, data.queries,
                    places=(0.5,))  # fmt: skip
    budget, quality = found["policies"]
    assert found["n"] == 4608 and len(budget["deviation"]) == 20
    assert budget["largest_deviation"] < 0.01 and budget["covered"] >= 18
    assert quality["largest_deviation"] < 0.005 and quality["covered"] >= 18


@pytest.mark.slow
def test_a_single_split_of_many_rows_holds():
    data = simulate(50_000, seed=3)
    prices_M2, tokens_NM = data.prices_M2, data.output_tokens_NM
    paid_NM = (50 * prices_M2[None, :, 0] + tokens_NM * prices_M2[None, :, 1]) / 1e6
    median_M = np.median(tokens_NM, axis=0)
    expected_M = (50 * prices_M2[:, 0] + median_M * prices_M2[:, 1]) / 1e6
    expected_NM = np.tile(expected_M, (len(data), 1))
    found = constraint_rows(data.p_NM, expected_NM, paid_NM, data.correct_NM, data.ids, n_splits=1,
                    places=(0.5,))  # fmt: skip
    budget, quality = found["policies"]
    assert budget["largest_deviation"] < 0.01
    assert quality["largest_deviation"] < 0.005


@pytest.mark.slow
def test_a_confidence_holds_on_a_hundred_pools():
    """Pools of other targets, prices and skills, by predictions that are off: by the true P."""
    rng = np.random.default_rng(0)
    below, n_found = np.zeros((2, 2), int), 0
    for pool in range(100):
        n, m = 4000, int(rng.integers(2, 9))
        names = [f"{i}" for i in range(n)]
        dataset_N = rng.integers(0, 6, n)
        logit_NM = (
            rng.normal(0.5, 0.8, m) + rng.normal(0, 1, (6, 1))[dataset_N]
            + rng.normal(0, 0.7, (6, m))[dataset_N] + rng.normal(0, 1, (n, m))
        )  # fmt: skip
        true_NM = expit(logit_NM)
        noisy_NM = expit(rng.uniform(0.6, 1.5) * logit_NM + rng.normal(0, 0.8, (n, m)))
        usd_NM = np.geomspace(1, rng.uniform(5, 1000), m) * rng.lognormal(0, 0.3, (n, m))
        y_NM = (rng.random((n, m)) < true_NM).astype(float)
        found = confident_rows(noisy_NM, usd_NM, usd_NM, y_NM, names, true_NM=true_NM,
                               n_deals=1, share=0.15, places=(0.7,), seed=pool)  # fmt: skip
        for i, row in enumerate(found["policies"]):
            below[i] += [row[kind]["n_below"] for kind in ("confident", "bold")]
        n_found += found["policies"][1]["confident"]["n_found"]
    assert (below[:, 0] <= 5).all()  # 5%; of 200 pools 4 of either kind.
    assert (below[:, 1] >= 20).all()
    assert n_found > 60


def test_a_confidence_is_judged_on_other_rows(make_pool):
    data, p_NM, cost_NM = make_pool(n=900, m=3, missing=0.02)
    rows = p_NM, cost_NM, cost_NM, data.correct_NM, data.groups
    found = confident_rows(*rows, n_deals=4, share=0.5, places=(0.5,))
    assert found["n_fitted"] == pytest.approx(0.5 * (~np.isnan(data.y_NM).any(axis=1)).sum(), abs=2)
    quality, saving = found["policies"]
    assert quality["policy"].startswith("quality:") and saving["policy"] == "saving"
    for row in found["policies"]:
        sure, bold = row["confident"], row["bold"]
        assert len(sure["lead"]) == len(bold["lead"]) == 4
        known = [lead for lead in sure["lead"] if lead is not None]
        assert sure["n_found"] == len(known) > 0
        assert sure["n_below"] == sum(lead < -0.005 for lead in known)
        assert sure["saving"] < bold["saving"]
        assert np.mean(known) > np.mean(bold["lead"])
    text = "\n".join(constraint_check_lines({"n": 1, "n_folds": 2, "policies": []}
                                            | {"confident": found}))  # fmt: skip
    assert "4 deals" in text and "0.95 confidence" in text


def test_what_is_reported_is_what_came_out(make_pool):
    data, p_NM, cost_NM = make_pool(n=400, m=3, missing=0.05)
    found = constraint_rows(
        p_NM, cost_NM, cost_NM, data.correct_NM, data.groups, n_splits=3, n_folds=4, places=(0.4,)
    )
    at = ~np.isnan(data.correct_NM).any(axis=1)
    assert found["n"] == at.sum()
    budget, quality = found["policies"]
    low, high = cost_NM[at].min(axis=1).mean(), cost_NM[at][
        np.arange(at.sum()), p_NM[at].argmax(axis=1)
    ].mean()  # fmt: skip
    assert budget["wanted"] == pytest.approx(low + 0.4 * (high - low))
    assert budget["largest_deviation"] == max(abs(d) for d in budget["deviation"])
    assert 0 < budget["largest_deviation"] < 0.1 and quality["largest_deviation"] < 0.03
    text = "\n".join(constraint_check_lines(found))
    assert "budget:" in text and "points" in text and "of 3" in text
    # A policy that believes in other costs than are paid does not hold, and it shows.
    wrong = constraint_rows(
        p_NM, cost_NM, cost_NM, data.correct_NM, data.groups, n_splits=1, places=(0.4,)
    )
    off = dataclasses.replace(data, y_NM=np.full_like(data.y_NM, np.nan))
    assert wrong["policies"][0]["covered"] == 1
    with pytest.raises(ValueError, match="no row has an outcome of every target"):
        constraint_rows(p_NM, cost_NM, cost_NM, off.correct_NM, off.groups)


def test_a_target_that_cannot_take_a_query_is_not_chosen(make_pool, monkeypatch):
    """Its outcomes would cost a million dollars."""
    data, p_NM, cost_NM = make_pool(n=240, m=3, missing=0.0)
    allowed_NM = np.ones(p_NM.shape, bool)
    allowed_NM[::2, [0, 2]] = False
    paid_NM = np.where(allowed_NM, cost_NM, 1e6)
    given = p_NM, cost_NM, paid_NM, data.correct_NM, data.groups
    found = constraint_rows(*given, allowed_NM=allowed_NM, n_splits=2, places=(0.5,))
    budget, quality = found["policies"]
    assert budget["wanted"] < cost_NM.max() < 1e5 < constraint_rows(
        *given, n_splits=1, places=(0.5,)
    )["policies"][0]["wanted"]  # fmt: skip
    assert budget["n_reached"] == 2 and budget["largest_deviation"] < 0.1
    assert quality["n_reached"] == 2
    # What pool.json says comes from the data set.
    monkeypatch.setattr(lib, "out_of_fold", lambda *_: p_NM)
    told = dataclasses.replace(
        data, prices_M2=np.array([[1.0, 1], [2, 2], [8, 8]]), context_windows_M=np.array([9.0] * 3)
    )
    store = types.SimpleNamespace(
        query_tokens_N=np.full(240, 5), rows_of=lambda ids: np.arange(len(ids))
    )
    short = constraint_check(store, told, n_splits=1)
    windows_M = np.array([3.0, 9, 3])  # Only the second one takes five tokens.
    long = constraint_check(
        store, dataclasses.replace(told, context_windows_M=windows_M), n_splits=1
    )
    accuracy = data.correct_NM[:, 1].mean()
    assert [row["wanted"] for row in long["policies"][3:]] == pytest.approx([accuracy] * 3)
    assert short["policies"][5]["wanted"] != pytest.approx(accuracy)


@pytest.mark.slow
def test_trainings_that_were_stopped_go_on(make_pool, monkeypatch, tmp_path):
    data, p_NM, _ = make_pool(n=300, m=3)
    data = dataclasses.replace(data, prices_M2=np.array([[1.0, 1], [2, 2], [8, 8]]))
    row = {name: n for n, name in enumerate(data.ids)}
    store = types.SimpleNamespace(
        ids=data.ids, layers=(0,), poolings=("mean",), width=3, n_blocks=1,
        identity={"encoder_id": "e", "store_dtype": "float32"}, query_tokens_N=np.full(300, 40),
        rows_of=lambda ids: np.array([row[name] for name in ids]),
        block_slice=lambda block: slice(0, 300),
        blocks=lambda *_, **__: [(slice(0, 300), p_NM[None, None])],
    )  # fmt: skip
    config = TrunkConfig(hidden=(8,), dropout=(0.1,), epochs=12, patience=12, seeds=(1,), keep=1)
    given = store, data, Recipe.all_layers(pca_dim=3), config
    whole = constraint_check(*given, n_splits=1)
    calls = itertools.count()
    monkeypatch.setattr(resume, "stop_requested", lambda: next(calls) == 15)
    with pytest.raises(resume.Stopped, match="Stopped after epoch 4 of"):  # Of the second fold.
        constraint_check(*given, n_splits=1, workdir=tmp_path)
    assert constraint_check(*given, n_splits=1, workdir=tmp_path) == whole


def test_what_some_folds_cannot_reach_is_told_and_the_rest_is_kept(make_pool):
    """The router is no better than chance: what all rows reach, four fifths of them may not."""
    data, p_NM, cost_NM = make_pool(n=300, m=3, missing=0.0)
    even_NM = np.random.default_rng(0).random(p_NM.shape)
    found = constraint_rows(even_NM, cost_NM, cost_NM, data.correct_NM, data.groups, n_splits=4,
                    places=(0.0, 0.5, 1.0))  # fmt: skip
    budgets, qualities = found["policies"][:3], found["policies"][3:]
    assert [row["n_reached"] for row in budgets[1:]] == [4, 4]
    missed = [row for row in found["policies"] if row["n_reached"] < 4]
    assert missed and any(row["n_reached"] == 4 for row in qualities + budgets)
    for row in found["policies"]:
        known = [abs(off) for off in row["deviation"] if off is not None]
        assert len(row["deviation"]) == 4 and len(known) == row["n_reached"]
        assert row["largest_deviation"] == max(known, default=None)
    assert "splits a fold cannot reach it" in "\n".join(constraint_check_lines(found))
    json.dumps(found, allow_nan=False)
    unknown_NM = np.where(np.arange(3) == 1, np.nan, cost_NM)
    with pytest.raises(ValueError, match="compares costs, but those of targets"):
        constraint_rows(p_NM, unknown_NM, cost_NM, data.correct_NM, data.groups)


def test_one_long_query_costs_its_own_length(make_pool):
    data, p_NM, cost_NM = make_pool(n=300, m=3, missing=0.0)
    queries = [*data.queries[:-1], "x" * 1_000_000]
    tracemalloc.start()
    constraint_rows(
        p_NM, cost_NM, cost_NM, data.correct_NM, data.groups, queries, n_splits=1, places=(0.5,)
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6  # 300 rows as wide as the longest: 1.2 GB.
