"""Router: one query or many, saved and loaded, and only on the encoder it was trained on."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from routerjax.encoder.encoder import Encoder
from routerjax.encoder.extract import extract
from routerjax.features.recipe import Recipe
from routerjax.routing.fit import evaluate, fit_router
from routerjax.routing.policy import Argmax, Tolerance
from routerjax.routing.router import Router
from routerjax.trunk.config import TrunkConfig

CONFIG = TrunkConfig(hidden=(16, 8), batch_size=128, epochs=8, seeds=(1, 2, 3), keep=2)


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder):
    return Encoder.from_pretrained(tiny_encoder_folder)


@pytest.fixture(scope="module")
def parts(encoder, tiny_data, tmp_path_factory):
    store = extract(encoder, tiny_data, tmp_path_factory.mktemp("router") / "store")
    return store, *tiny_data.split(0.3, seed=1)


@pytest.fixture(scope="module")
def router(parts, encoder):
    store, _, train = parts
    router = fit_router(store, train, Recipe.all_layers(pca_dim=20), CONFIG)
    router.use_encoder(encoder)
    return router


def test_routing_a_text_is_what_the_store_predicts(router, parts):
    store, test, _ = parts
    some = test.select(range(50))
    p_NM = router.predict_store(store, some.ids)
    decisions = router.route(list(some.queries))
    routed_NM = [[decision.probabilities[t] for t in router.targets] for decision in decisions]
    np.testing.assert_allclose(routed_NM, p_NM, atol=0.01)  # The store's are float16.
    for decision in decisions:
        assert decision.target == max(decision.probabilities, key=decision.probabilities.get)
        assert all(0 <= spread < 0.5 for spread in decision.spreads.values())


def test_one_text_or_many(router):
    one = router.route("abc def?")
    assert router.route(["abc def?", "jjj"])[0].target == one.target
    assert router.route([]) == []
    json.dumps(one.to_json())


def test_costs_are_tokens_times_prices(router, encoder, tiny_data):
    query = "abcde?"
    costs = router.route(query).costs
    n_input = encoder.prompter([query]).query_tokens_N[0]
    for m, target in enumerate(router.targets):
        price_in, price_out = tiny_data.prices_M2[m]
        assert costs[target] == pytest.approx((n_input * price_in + 256 * price_out) / 1e6)


def test_the_policy_of_a_call_goes_before_the_routers_own(router):
    assert router.route("abc", policy=Tolerance(1.0)).target == "cheap"
    assert router.route("abc", policy=Tolerance(1.0)).policy == {"name": "tolerance", "tau": 1.0}
    assert router.route("abc").policy == {"name": "argmax"}


def test_saved_and_loaded_it_decides_the_same(router, tmp_path, tiny_data):
    router.save(tmp_path / "router")
    queries = list(tiny_data.queries[:20])
    loaded = Router.load(tmp_path / "router")  # Finds the encoder by itself.
    for ours, theirs in zip(router.route(queries), loaded.route(queries), strict=True):
        assert ours == theirs
    router.save(tmp_path / "router")  # Over itself.
    assert Router.load(tmp_path / "router").policy == Argmax()


def test_half_a_router_is_refused(router, tmp_path):
    router.save(tmp_path / "router")
    (tmp_path / "router/router.json").rename(tmp_path / "kept.json")
    with pytest.raises(ValueError, match="holds no router"):
        Router.load(tmp_path / "router")
    value = json.loads((tmp_path / "kept.json").read_text())
    for change, message in (
        ({"schema_version": 99}, "schema version 1"),
        ({"arrays_digest": "0"}, "not what router.json was written with"),
    ):
        (tmp_path / "router/router.json").write_text(json.dumps(value | change))
        with pytest.raises(ValueError, match=message):
            Router.load(tmp_path / "router")
    (tmp_path / "router/router.json").write_text(json.dumps(value))
    shutil.rmtree(tmp_path / "router/arrays")
    with pytest.raises(ValueError, match="holds no whole arrays"):
        Router.load(tmp_path / "router")


def test_other_encoder_weights_are_refused(router, tiny_encoder_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_encoder_folder, other)
    weights = load_file(other / "model.safetensors")
    name = sorted(weights)[0]
    weights[name] = weights[name] + np.float32(1e-3)
    save_file(weights, other / "model.safetensors", metadata={"format": "np"})
    with pytest.raises(ValueError, match=r"another encoder: weights_digest"):
        router.use_encoder(Encoder.from_pretrained(other))
    router.save(tmp_path / "router")
    with pytest.raises(ValueError, match="weights_digest"):
        Router.load(tmp_path / "router", encoder=Encoder.from_pretrained(other))
    with pytest.raises(ValueError, match="compute_dtype"):
        router.use_encoder(Encoder.from_pretrained(tiny_encoder_folder, compute_dtype="bfloat16"))


def test_a_store_of_another_encoder_is_refused(router, parts, monkeypatch):
    store, test, _ = parts
    monkeypatch.setitem(store.meta["identity"], "weights_digest", "0")
    with pytest.raises(ValueError, match="the store's encoder '0'"):
        router.predict_store(store, test.ids)


def test_the_router_learns_and_is_measured(router, parts):
    store, test, _ = parts
    metrics = evaluate(router, store, test)
    assert metrics["mean_auc"] > 0.7
    assert metrics["cost_basis"] == "assumed"
    assert sum(metrics["routed_share"].values()) == pytest.approx(1)
    shuffled = test.select_targets(("dear", "cheap", "middle"))
    again = evaluate(router, store, shuffled)
    assert again["auc"] == metrics["auc"]
    with pytest.raises(ValueError, match="the router knows the targets"):
        evaluate(router, store, test.select_targets(("dear", "cheap")))


def test_validation_rows_train_nothing(parts):
    """Other outcomes on the validation rows change neither features nor first-epoch losses."""
    store, _, train = parts
    val, fit = train.split(CONFIG.val_fraction, CONFIG.split_seed)
    y_NM = train.y_NM.copy()
    in_val = np.isin(train.ids, val.ids)
    y_NM[in_val] = 1 - y_NM[in_val]
    import dataclasses

    flipped = dataclasses.replace(train, y_NM=y_NM)
    one, other = (
        fit_router(store, d, Recipe.all_layers(pca_dim=20), CONFIG) for d in (train, flipped)
    )
    np.testing.assert_array_equal(one.features.components_SDC, other.features.components_SDC)
    losses = [r.training["history"]["train_loss_EK"][0] for r in (one, other)]
    np.testing.assert_array_equal(*losses)
    assert len(fit) + len(val) == len(train)


def test_a_target_without_outcomes_is_refused(parts):
    import dataclasses

    store, _, train = parts
    y_NM = train.y_NM.copy()
    y_NM[:, 1] = np.nan
    with pytest.raises(ValueError, match="'middle' has no outcome"):
        fit_router(store, dataclasses.replace(train, y_NM=y_NM), config=CONFIG)


def test_scores_can_be_trained_on_as_they_are(parts):
    import dataclasses

    store, _, train = parts
    scored = dataclasses.replace(train, y_NM=(0.2 + 0.5 * train.y_NM).astype(np.float32))
    config = dataclasses.replace(CONFIG, trunk_target="score")
    router = fit_router(store, scored, Recipe.all_layers(pca_dim=20), config)
    assert router.predict_store(store, train.ids).max() < 0.85
