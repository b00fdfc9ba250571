"""Drift: what is found where it is, and nothing where it is not."""

import dataclasses
import types

import numpy as np
import pytest
from scipy.special import expit, logit

from routerjax.evaluation.drift import _by_chance, drift, drift_lines
from routerjax.features.feature_map import FeatureMap
from routerjax.features.part import Part
from routerjax.features.recipe import Recipe
from routerjax.routing.fit import distance_of
from routerjax.trunk.config import TrunkConfig

WIDTH = 8


def make_router(n_training=2000):
    """Of two targets, whose P(correct) are known functions of the features."""
    eye = np.eye(WIDTH, dtype=np.float32)[None]
    part = Part(
        mean_SD=np.zeros((1, WIDTH), np.float32), scale_SD=np.ones((1, WIDTH), np.float32),
        components_SDC=eye, eigenvalues_C=np.ones(WIDTH, np.float32), total_variance=WIDTH,
        residual=0.0, encoder=0, sites=((1, "mean"),),
    )  # fmt: skip
    features = FeatureMap(Recipe.layers((1,), pca_dim=WIDTH), (part,))
    x_NC = np.random.default_rng(9).normal(size=(n_training, WIDTH)).astype(np.float32)
    return types.SimpleNamespace(
        features=features, targets=("a", "b"), trunk_config=TrunkConfig(),
        training={"distance": distance_of(features, x_NC)},
        read=lambda stores, ids: stores[[int(name) for name in ids]],
        predict=lambda x_NC: expit(x_NC[:, :2]),
    )  # fmt: skip


def make_log(make_pool, n=1500, scale=1.0, shift=0.0, seed=1):
    """Logged outcomes of a and b, each of half the queries, and the features of the queries.

    Args:
      scale: By which features are larger than in training.
      shift: Of the logits of b, which the router does not know.
    """
    rng = np.random.default_rng(seed)
    x_NC = (rng.normal(size=(n, WIDTH)) * scale).astype(np.float32)
    p_NM = expit(logit(expit(x_NC[:, :2])) + np.array([0, shift]))
    y_NM = (rng.random((n, 2)) < p_NM).astype(np.float32)
    y_NM[np.arange(n), rng.integers(0, 2, n)] = np.nan
    data, _, _ = make_pool(n, 2)
    changed = {"targets": ("a", "b"), "y_NM": y_NM, "ids": tuple(map(str, range(n))), "p_NM": None}
    return dataclasses.replace(data, **changed), x_NC


def test_queries_like_the_training_s_give_no_reason(make_pool):
    for seed in range(5):
        logged, x_NC = make_log(make_pool, seed=seed)
        result = drift(make_router(), logged, x_NC)
        assert result["reasons"] == []
        assert 0.002 < result["beyond"]["share"] < 0.02
        assert [target["n"] for target in result["targets"].values()] == pytest.approx(
            [750, 750], abs=60
        )
        assert drift_lines(result)[-1] == "no reason to train again"


def test_queries_unlike_the_training_s_are_seen(make_pool):
    logged, x_NC = make_log(make_pool, scale=1.4)
    result = drift(make_router(), logged, x_NC)
    assert result["beyond"]["low"] > 0.1
    (reason,) = result["reasons"]
    assert "unlike those of the training, more than 2.0%" in reason
    assert drift_lines(result)[-1] == f"train again: {reason}"


def test_no_query_or_every_query_beyond_is_no_certainty(make_pool):
    for scale, share in ((0.1, 0), (100, 1)):
        logged, x_NC = make_log(make_pool, scale=scale)
        beyond = drift(make_router(), logged, x_NC)["beyond"]
        assert beyond["share"] == share
        width = 1 - 0.025 ** (1 / len(set(logged.groups)))
        ends = (0, width) if share == 0 else (1 - width, 1)
        assert (beyond["low"], beyond["high"]) == pytest.approx(ends)


def test_a_target_that_became_worse_is_named(make_pool):
    logged, x_NC = make_log(make_pool, shift=-1)
    result = drift(make_router(), logged, x_NC)
    (reason,) = result["reasons"]
    assert reason.startswith("b is right in") and "more than 5.0%" in reason
    known = np.isfinite(logged.y_NM[:, 1])
    target, p_N = result["targets"]["b"], expit(x_NC[known, 1])
    assert target["n"] == known.sum() and target["predicted"] == pytest.approx(p_N.mean())
    assert target["observed"] == pytest.approx(logged.y_NM[known, 1].mean())
    assert target["low"] < target["gap"] < target["high"]
    assert drift(make_router(), logged, x_NC, most_gap=0.5)["reasons"] == []


def test_a_few_queries_say_nothing(make_pool):
    logged, x_NC = make_log(make_pool, n=40, scale=3, shift=-3)
    result = drift(make_router(), logged, x_NC)
    assert result["reasons"] == []
    assert drift_lines(result)[-2:] == [
        "not judged, as there are fewer than 50: the queries, a, b",
        "no reason to train again",
    ]


def test_a_router_of_before_needs_its_training_rows(make_pool):
    router = make_router()
    known = router.training.pop("distance")
    logged, x_NC = make_log(make_pool)
    with pytest.raises(ValueError, match="--store, --data"):
        drift(router, logged, x_NC)
    rows, x_train_NC = make_log(make_pool, seed=5)
    result = drift(router, logged, x_NC, (x_train_NC, rows))
    held, _ = rows.split(router.trunk_config.val_fraction, router.trunk_config.split_seed)
    distance = result["beyond"]["distance"]
    assert distance["n_queries"] == len(held.ids)
    assert distance["p99"] == pytest.approx(known["p99"], rel=0.1)


def test_outcomes_of_unknown_targets_are_refused(make_pool):
    data, _, _ = make_pool(60, 2)
    with pytest.raises(ValueError, match="outcomes of target-0, target-1.*knows a, b"):
        drift(make_router(), data, np.zeros((60, WIDTH), np.float32))


@pytest.mark.parametrize("n", [100, 1000])
def test_what_chance_explains_by_simulation(n):
    quantile = np.quantile(np.random.default_rng(0).random((2000, n)), 0.99, axis=1)
    assert _by_chance(n) == pytest.approx(np.quantile(1 - quantile, 0.975), rel=0.05)
