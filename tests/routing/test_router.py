"""Router: one query or many, saved and loaded, and only on the encoder it was trained on."""

import contextlib
import copy
import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from routerjax.encoder.encoder import Encoder
from routerjax.encoder.extraction.extract import extract
from routerjax.encoder.selection import Selection
from routerjax.evaluation.calibration import expected_calibration_error
from routerjax.evaluation.evaluate import evaluate
from routerjax.features.feature_map import FeatureMap
from routerjax.features.recipe import Recipe
from routerjax.features.row_blocks import read_rows
from routerjax.report.verify import find_damage
from routerjax.routing import fit as fit_module
from routerjax.routing import router_files
from routerjax.routing.add_target import add_target
from routerjax.routing.cascades.fit import cascade_of, fit_cascade
from routerjax.routing.constrained import Budget, Quality
from routerjax.routing.fit import fit_policy, fit_router
from routerjax.routing.judged import judge
from routerjax.routing.limits import Limits
from routerjax.routing.policies import Argmax, Tolerance
from routerjax.routing.router import Router
from routerjax.runtime import provenance
from routerjax.runtime.devices import make_mesh
from routerjax.runtime.files import Folder
from routerjax.stats.item_response import comparable_accuracy
from routerjax.stats.roc_auc import auc_per_target, within_dataset_auc
from routerjax.sweeps.select import select
from routerjax.trunk.calibrate import Calibration, Curve, fit_calibration
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.trust import Metric, Trust

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


@pytest.mark.parametrize("mesh", ["data:1", "data:4"])
def test_a_single_text_takes_another_way_to_the_same_decision(
    router, encoder, tiny_encoder_folder, mesh, request
):
    there = Encoder.from_pretrained(tiny_encoder_folder, mesh=make_mesh(mesh))
    request.addfinalizer(lambda: router.use_encoder(encoder))
    router.use_encoder(there)
    texts = ["abc def?", "jjj"]
    together, alone = router.route(texts), [router.route(text) for text in texts]
    for many, one in zip(together, alone, strict=True):
        assert one.target == many.target
        for name in ("probabilities", "spreads", "costs"):
            assert getattr(one, name) == pytest.approx(getattr(many, name), abs=1e-5)
    for text, one in zip(texts, alone, strict=True):
        p_1M = router.predict(router.read_texts([text]))
        assert list(one.probabilities.values()) == pytest.approx(p_1M[0], abs=1e-5)


def test_a_single_text_is_read_where_the_features_are_not(
    router, encoder, tiny_encoder_folder, request
):
    here = router.route("abc def?")
    mesh = make_mesh("data:1", jax.devices()[3:])
    request.addfinalizer(lambda: router.use_encoder(encoder))
    router.use_encoder(Encoder.from_pretrained(tiny_encoder_folder, mesh=mesh))
    assert router.route("abc def?").probabilities == pytest.approx(here.probabilities, abs=1e-5)


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


def test_only_allowed_targets_answer(router):
    queries = ["abc def?", "jjj"]
    assert router.route("abc", allowed=["dear"]).target == "dear"
    routed = router.route(queries, allowed=["dear", "middle"])
    for decision in routed:
        p = decision.probabilities
        assert decision.target == max(("dear", "middle"), key=p.get)
    routed = router.route(queries, allowed=[["dear"], ["cheap", "middle"]], policy=Tolerance(1.0))
    assert [decision.target for decision in routed] == ["dear", "cheap"]
    for allowed, message in ((["best"], "'best'"), ([], "none"), ([["dear"]], "2 queries, got 1")):
        with pytest.raises(ValueError, match=f"allowed: .*{message}"):
            router.route(queries, allowed=allowed)


def test_a_policy_is_fitted_with_the_router_or_after_it(router, parts, tmp_path, caplog):
    """On the tiny pool every answer has 256 tokens: costs are those of the prices, nearly."""
    store, test, train = parts
    usd = 0.0002
    with pytest.raises(ValueError, match=r"budget:0.0002 has not been fitted.*fit_policy"):
        router.route("abc", policy=Budget(usd))
    own = fit_router(store, train, Recipe.all_layers(pca_dim=20), CONFIG, policy=Budget(usd))
    val, _ = train.split(CONFIG.val_fraction, CONFIG.split_seed)
    after = fit_policy(Budget(usd), router, store, val)
    assert own.policy == after and after.fitted is not None
    # The mixture of its two settings spends the budget; the hash that mixes them, but for chance.
    p_NM, tokens_N = own.predict_store(store, val.ids), store.query_tokens_N[store.rows_of(val.ids)]
    cost_NM = own.costs.expected(tokens_N)
    rows, share = np.arange(len(val)), own.policy.fitted.share_high

    def spent(share_high):
        fitted = dataclasses.replace(own.policy.fitted, share_high=share_high)
        policy = dataclasses.replace(own.policy, fitted=fitted)
        return cost_NM[rows, policy.choose(p_NM, cost_NM, None, val.queries)]

    low_N, high_N = spent(0.0), spent(1.0)
    mean = (1 - share) * low_N.mean() + share * high_N.mean()
    assert mean == pytest.approx(usd, rel=1e-6)
    chance = np.sqrt(share * (1 - share) * np.square(high_N - low_N).sum()) / len(val)
    assert abs(spent(share).mean() - usd) <= 4 * chance + 1e-12
    own.save(tmp_path / "router")
    assert Router.load(tmp_path / "router").policy == own.policy
    assert fit_policy(Tolerance(0.1), router, store, test) == Tolerance(0.1)
    with pytest.raises(ValueError, match="cannot be held.*USD per query can be reached"):
        fit_policy(Budget(1e-6), router, store, val)
    assert not fit_policy(Quality(1.0, confidence=0.9), router, store, val).fitted.holds
    assert "quality:1:0.9: no setting is shown to be as accurate" in caplog.text


def test_a_cascade_is_fitted_to_a_router_whatever_the_order_of_the_targets(router, parts):
    store, _, train = parts
    with pytest.raises(ValueError, match="data: expected confidences of answers, none is recorded"):
        fit_cascade(router, store, train)
    # Each target is certain of its answers; in the data the targets stand in another order.
    sure = dataclasses.replace(train, confidences_NM=train.correct_NM)
    cascade = fit_cascade(router, store, sure.select_targets(train.targets[::-1]))
    own = cascade_of(
        router.targets, router.predict_store(store, train.ids), sure.confidences_NM,
        np.asarray(sure.correct_NM, np.float64), train.groups,
    )  # fmt: skip
    assert cascade.to_json() == own.to_json() and (cascade.weight_M > 0).all()
    decision = router.route(train.queries[0])
    first = cascade.step(decision, 1.0)
    assert first.ask in router.targets and first.answer is None
    held = cascade.step(decision, 1e-3, {first.ask: 1.0})
    assert held.ask is None and held.answer == first.ask and held.p > 0.9
    assert cascade.step(decision, 1.0, {first.ask: 0.0}).ask not in (None, first.ask)


def test_a_policy_is_fitted_among_the_targets_that_can_take_each_query(router, parts):
    store, _, train = parts
    val, _ = train.split(CONFIG.val_fraction, CONFIG.split_seed)
    windows_M = np.full(len(train.targets), np.nan)
    cheap = int(train.prices_M2[:, 1].argmin())
    windows_M[cheap] = np.median(store.query_tokens_N)
    limited = dataclasses.replace(train, context_windows_M=windows_M)
    own = fit_router(store, limited, Recipe.all_layers(pca_dim=20), CONFIG, policy=Budget(0.0004))
    assert own.policy == fit_policy(Budget(0.0004), own, store, val)
    assert own.policy != fit_policy(Budget(0.0004), router, store, val)


def test_the_setting_that_saves_is_chosen_on_calibration_rows(router, parts, tmp_path):
    store, test, train = parts
    val, _ = train.split(CONFIG.val_fraction, CONFIG.split_seed)
    best = float(comparable_accuracy(val.correct_NM, val.datasets)[0][router.best_single])
    expected = fit_policy(Quality(best), router, store, val)
    assert router.saving_policy.min_accuracy == pytest.approx(best)
    router.save(tmp_path / "router")
    again = Router.load(tmp_path / "router")
    assert again.saving_policy == router.saving_policy
    assert again.confident_saving_policy == router.confident_saving_policy
    assert router.saving_policy.fitted.lam_high == pytest.approx(expected.fitted.lam_high, rel=1e-3)
    saving = evaluate(again, store, test)["field"]["cost_save"]
    assert saving["low"] < saving["value"] < saving["high"] < 1


def test_a_cost_head_prices_each_query(parts, encoder, tmp_path):
    """Answers as long as the query: the head reads it off the states, the median cannot."""
    store, test, train = parts
    some = train.select(range(900))
    rng = np.random.default_rng(0)

    def with_tokens(data):
        letters_N = np.array([len(q) for q in data.queries])
        tokens_NM = 20 * letters_N[:, None] * np.exp(0.2 * rng.normal(size=data.y_NM.shape))
        tokens_NM[:, 1] = 300 * np.exp(rng.normal(size=len(data)))
        tokens_NM[:, 2] = np.nan
        return dataclasses.replace(data, output_tokens_NM=tokens_NM.astype(np.float32))

    recipe = Recipe.all_layers(pca_dim=20)
    router = fit_router(store, with_tokens(some), recipe, CONFIG)
    assert router.costs.sources == ("head", "median", "assumed")
    router.save(tmp_path / "router")
    again = Router.load(tmp_path / "router", encoder)
    long, short = again.route(["a" * 55 + "?", "abc?"])
    price_in, price_out = train.prices_M2[0]
    for decision, letters, n in ((long, 56, 55), (short, 4, 3)):
        tokens = (decision.costs["cheap"] * 1e6 - (n + 1) * price_in) / price_out
        assert tokens == pytest.approx(20 * letters, rel=0.5)
    assert again.route(["abc?"])[0] == router.route(["abc?"])[0]
    both = with_tokens(test).select_targets(("cheap", "middle", "dear"))
    metrics = evaluate(again, store, both)
    assert metrics["output_tokens_from"] == {"cheap": "head", "middle": "median", "dear": "assumed"}


def test_saved_and_loaded_it_decides_the_same(router, tmp_path, tiny_data):
    router.save(tmp_path / "router")
    queries = list(tiny_data.queries[:20])
    loaded = Router.load(tmp_path / "router")  # Finds the encoder by itself.
    for ours, theirs in zip(router.route(queries), loaded.route(queries), strict=True):
        assert ours == theirs
    value = json.loads((tmp_path / "router/router.json").read_text())
    assert value["versions"] == provenance.versions()
    router.save(tmp_path / "router")  # Over itself.
    assert Router.load(tmp_path / "router").policy == Argmax()


@pytest.mark.slow
def test_a_kernel_answers_with_the_ensemble_and_goes_to_disk_with_it(
    router, parts, encoder, tmp_path
):
    alone, (store, test, train) = router, parts
    config = dataclasses.replace(CONFIG, kernel=True)
    router = fit_router(store, train, Recipe.all_layers(pca_dim=20), config)
    x_NC, kernel = router.read(store, test.ids), router.kernel
    p_NM = router.predict(x_NC, calibrated=False)
    wanted_NM = kernel.mix(router.trunk.predict(x_NC), kernel.predict(x_NC))
    np.testing.assert_array_equal(p_NM, wanted_NM)
    # The ensemble is the one that is trained without a kernel, and the share is not its alone.
    np.testing.assert_array_equal(alone.trunk.predict(x_NC), router.trunk.predict(x_NC))
    assert kernel.share_M[0] > 0 and np.abs(p_NM - alone.predict(x_NC, calibrated=False)).max() > 0
    router.save(tmp_path)
    again = Router.load(tmp_path, encoder)
    np.testing.assert_array_equal(again.predict(x_NC), router.predict(x_NC))
    query = test.queries[0]
    routed, stored_M = again.route(query).probabilities, router.predict(x_NC[:1])[0]
    np.testing.assert_allclose(list(routed.values()), stored_M, atol=0.01)
    known = [i for i in range(60) if np.isfinite(test.correct_NM[i, 0])]
    outcomes = {test.ids[i]: float(test.correct_NM[i, 0]) for i in known}
    add_target(again, "new", outcomes, stores=store)
    np.testing.assert_array_equal(again.predict(x_NC)[:, :-1], router.predict(x_NC))
    assert again.kernel.share_M[-1] == 0


def test_calibration_is_saved_and_leaves_the_ranking(router, parts, tmp_path):
    store, test, train = parts
    assert router.training["calibration_rows"] == "validation"
    assert router.training["n_calibration"] == router.training["n_validation"]
    curve = Curve("platt", 2.0, -1.0)
    calibration = Calibration((curve, Curve("none"), Curve("none")))
    router = Router(
        dataclasses.replace(router.predictor, calibration=calibration), router.targets,
        router.costs, router.policy, router.trained, router.encoder_identities,
    )  # fmt: skip
    router.save(tmp_path / "router")
    again = Router.load(tmp_path / "router")
    before_NM = again.predict_store(store, test.ids, calibrated=False)
    after_NM = again.predict_store(store, test.ids)
    np.testing.assert_array_equal(after_NM[:, 0], curve.apply(before_NM[:, 0]).astype(np.float32))
    np.testing.assert_array_equal(after_NM[:, 1:], before_NM[:, 1:])
    metrics = evaluate(again, store, test)
    assert metrics["field"]["cost_save"] is None and again.saving_policy is None
    assert metrics["auc"]["cheap"] == auc_per_target(before_NM, test.correct_NM)[0]
    found = metrics["calibration"]
    seen_N = ~np.isnan(test.y_NM[:, 0])
    for side, p_NM in (("before", before_NM), ("after", after_NM)):
        ece = expected_calibration_error(p_NM[seen_N, 0].astype(float), test.y_NM[seen_N, 0])
        assert found[side]["ece"]["cheap"] == ece
    assert found["before"]["ece"]["cheap"] != found["after"]["ece"]["cheap"]
    assert found["after"]["ece"]["dear"] == found["before"]["ece"]["dear"]
    decision = again.route("abc def?")
    p_KM = again.trunk.predict_members(_features(again, "abc def?"))[:, 0]
    p_M = again.calibration.apply(p_KM.mean(axis=0)[None])[0]
    spread_M = again.calibration.apply(p_KM).std(axis=0)
    np.testing.assert_allclose(list(decision.probabilities.values()), p_M, atol=1e-6)
    np.testing.assert_allclose(list(decision.spreads.values()), spread_M, atol=1e-6)


def _features(router, query):
    encoder, features = router.encoders[0], router.features
    prompts = encoder.prompter([query])
    states = encoder.capture_prompts(prompts, features.selection())
    return features.apply([states])


@pytest.fixture(scope="module")
def trusting(router):
    """The router with a trust that falls from 1 to 0 over the distances of its queries."""
    rng, width = np.random.default_rng(0), router.features.width
    metric = Metric.fit(rng.normal(size=(200, width)), np.repeat(np.arange(4), 50))
    mean_M = np.linspace(0.2, 0.8, len(router.targets), dtype=np.float32)
    trust = Trust(mean_M, metric, ((-1.0, 5.0), (1.0, 0.0)), len(mean_M), 0.9, 0.1)
    other = copy.copy(router)
    other.predictor = dataclasses.replace(router.predictor, trust=trust)
    return other


def test_trust_draws_what_policies_see_and_goes_to_disk(router, trusting, parts, encoder, tmp_path):
    store, test, _ = parts
    x_NC = router.read(store, test.ids)
    t_N = trusting.trust.of(x_NC)
    assert 0 < t_N.min() < t_N.max() <= 1
    p_NM, drawn_NM = router.predict(x_NC), trusting.predict(x_NC)
    np.testing.assert_array_equal(drawn_NM, trusting.trust.draw(p_NM, t_N))
    assert np.abs(drawn_NM - p_NM).max() > 0.05
    before_NM = trusting.predict(x_NC, calibrated=False)
    np.testing.assert_array_equal(before_NM, router.predict(x_NC, calibrated=False))
    trusting.save(tmp_path)
    again = Router.load(tmp_path, encoder=encoder)
    np.testing.assert_array_equal(again.predict(x_NC), drawn_NM)
    for queries in (["abc def?"], ["abc def?", "jjj"]):
        decision, plain = again.route(queries)[0], router.route(queries)[0]
        assert 0 <= decision.trust <= 1 and plain.trust is None
        assert decision.probabilities != plain.probabilities
        assert decision.spreads != plain.spreads  # The members are drawn as their mean is.
        assert decision.to_json()["trust"] == decision.trust
    far = again.predictor.calibrated(before_NM[:1], 100 * x_NC[:1])
    assert again.targets[far.argmax()] == again.targets[-1]


def test_a_target_that_is_added_leaves_trust_in_the_others_as_it_is(trusting, parts):
    store, test, train = parts
    router, some = copy.copy(trusting), test.ids[:50]
    before_NM = router.predict_store(store, some)
    outcomes = {name: float(n % 3 > 0) for n, name in enumerate(train.ids[:30])}
    add_target(router, "new", outcomes, stores=store)
    np.testing.assert_allclose(router.predict_store(store, some)[:, :-1], before_NM, atol=1e-6)
    assert router.trust.mean_M[-1] == pytest.approx((20 + 10 * trusting.trust.mean_M.mean()) / 40)


def test_a_router_of_before_has_no_trust(router, tmp_path):
    router.save(tmp_path)
    value = json.loads((tmp_path / "router.json").read_text())
    assert "trust" not in value and "trust" not in value["parts"]
    assert Router.load(tmp_path).trust is None
    assert router.training["trust"].startswith("none: under 4 datasets")


def test_trust_is_fitted_where_the_rows_name_datasets_enough(router, parts):
    store, test, train = parts
    config = dataclasses.replace(CONFIG, epochs=1)
    # Datasets by the first letter, some of them too small to count.
    named = dataclasses.replace(train, datasets=tuple(q[0] for q in train.queries))
    recipe = Recipe.all_layers(pca_dim=20)
    fitted = fit_router(store, named, recipe, config, trust=True)
    off = fit_router(store, named, recipe, config, trust=False)
    assert off.trust is None and off.training["trust"] == "none was asked for"
    x_NC = off.read(store, test.ids)
    np.testing.assert_array_equal(
        off.predict(x_NC, calibrated=False), fitted.predict(x_NC, calibrated=False)
    )
    assert fitted.trust is not None, fitted.training["trust"]
    assert fitted.training["trust"].startswith(f"{fitted.trust.own:.2f} on held-out queries")
    mean_M, _ = comparable_accuracy(named.correct_NM, named.datasets)  # Some are missing.
    np.testing.assert_array_equal(fitted.trust.mean_M, mean_M.astype(np.float32))


def test_loading_a_router_imports_no_training():
    code = (
        "import sys, routerjax.routing.router as _; "
        "print(*(m for m in sys.modules if m.startswith('routerjax.')))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(out.stdout.split())
    assert "routerjax.trunk.net" in loaded
    training = ("train", "loop", "step", "state", "member", "many", "head")
    assert not loaded & {f"routerjax.trunk.{name}" for name in training}
    rooms = ("sweeps", "probes", "evaluation", "features.fit", "encoder.extraction", "routing.fit")
    assert [m for m in loaded if m.startswith(tuple(f"routerjax.{room}" for room in rooms))] == []


def _train_once(monkeypatch, seen):
    """Has one training stand for all; `seen` gets the rows of each."""
    train_trunk, made = fit_module.train_trunk, []

    def recorded(*args):
        seen.append(args[:4])
        made.append(made[0] if made else train_trunk(*args))
        return made[0]

    monkeypatch.setattr(fit_module, "train_trunk", recorded)


def test_each_row_is_read_and_projected_once(parts, monkeypatch):
    store, _, train = parts
    some, asked = train.select(range(300)), []
    apply_store = FeatureMap.apply_store

    def counted(self, stores, ids):
        asked.extend(ids)
        return apply_store(self, stores, ids)

    monkeypatch.setattr(FeatureMap, "apply_store", counted)
    _train_once(monkeypatch, [])
    config = dataclasses.replace(CONFIG, epochs=1)
    for n_folds in (0, 2):
        asked.clear()
        fit_router(store, some, Recipe.all_layers(pca_dim=5), config, calibration_folds=n_folds)
        # Each fold projects its rows once too: those fitted to, and those predicted.
        assert sorted(asked) == sorted(some.ids * (1 + n_folds))


@pytest.mark.slow
def test_calibration_out_of_fold_is_of_all_rows(parts, tmp_path, monkeypatch):
    store, _, train = parts
    some = train.select(range(600))
    recipe = Recipe.all_layers(pca_dim=10)
    config = dataclasses.replace(CONFIG, checkpoint_every=1)
    kept = {"calibration_folds": 2, "checkpoints": tmp_path}
    router = fit_router(store, some, recipe, config, **kept)
    assert router.training["calibration_rows"] == "out of fold"
    assert router.training["n_calibration"] == 600
    seen_M = (~np.isnan(some.y_NM)).sum(axis=0).tolist()
    assert [curve.n for curve in router.calibration.curves] == seen_M
    # By networks that had not seen them.
    first, second = some.folds(2, CONFIG.split_seed)
    p_NM = np.concatenate([
        fit_router(store, fit, recipe, CONFIG).predict_store(store, test.ids, calibrated=False)
        for fit, test in (first, second)
    ])  # fmt: skip
    rows = some.select(first[1].ids + second[1].ids)
    order = [rows.ids.index(name) for name in some.ids]
    expected = fit_calibration(p_NM[order], some.correct_NM, some.groups)
    assert router.calibration == expected
    # Finished trainings are not begun anew.
    monkeypatch.setattr("routerjax.trunk.train._refuse_non_finite", None)
    assert fit_router(store, some, recipe, config, **kept).calibration == expected
    assert find_damage(workdir=tmp_path)[1] == []
    with pytest.raises(ValueError, match="calibration_folds: expected 0 or at least 2, got 1"):
        fit_router(store, some, recipe, CONFIG, calibration_folds=1)


def test_half_a_router_is_refused(router, tmp_path):
    router.save(tmp_path / "router")
    (tmp_path / "router/router.json").rename(tmp_path / "kept.json")
    with pytest.raises(ValueError, match="holds no router"):
        Router.load(tmp_path / "router")
    value = json.loads((tmp_path / "kept.json").read_text())
    for change, message in (
        ({"schema_version": 99}, "schema version 5"),
        ({"arrays_digest": "0"}, "router.json is not as it was written: its content and its seal"),
        ({"arrays_digest": "0", "seal": None}, "not what router.json was written with: copy the"),
    ):
        (tmp_path / "router/router.json").write_text(json.dumps(value | change))
        with pytest.raises(ValueError, match=message):
            Router.load(tmp_path / "router")
    (tmp_path / "router/router.json").write_text(json.dumps(value))
    shutil.rmtree(tmp_path / "router/arrays")
    with pytest.raises(ValueError, match="holds no whole arrays"):
        Router.load(tmp_path / "router")


def _edited(value, depth=3):
    """Copies of a JSON value in which one field is missing or something else."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        old = value[key]
        for new in (None, "text", 7, -1.5, [], {}, True):
            if new != old or type(new) is not type(old):
                yield _with(value, key, new)
        if isinstance(value, dict):
            yield {name: held for name, held in value.items() if name != key}
        if isinstance(old, dict | list) and depth and key != "training":
            yield from (_with(value, key, new) for new in _edited(old, depth - 1))


def _with(value, key, new):
    changed = copy.copy(value)
    changed[key] = new
    return changed


def test_every_edit_of_router_json_is_refused_in_a_line(router, tmp_path, monkeypatch):
    router.save(tmp_path)
    path, arrays = tmp_path / "router.json", router_files.load_arrays(Folder(tmp_path) / "arrays")
    monkeypatch.setattr(router_files, "load_arrays", lambda folder: arrays)
    whole = json.loads(path.read_text())
    before = {key: value for key, value in whole.items() if key != "seal"}
    edits = [before | {"targets": before["targets"][::-1]}, *list(_edited(before))[::4]]
    assert len(edits) > 125
    for edit in edits:
        path.write_text(json.dumps(edit | {"seal": whole["seal"]}))
        with pytest.raises(ValueError, match=r"router\.json.* again"):
            Router.load(tmp_path)
        # One written before there were seals hides some edits, but none is a traceback.
        path.write_text(json.dumps(edit))
        with contextlib.suppress(ValueError):
            Router.load(tmp_path)
    path.write_text(json.dumps(before))
    assert Router.load(tmp_path).targets == router.targets


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


def test_the_settings_of_the_template_go_with_the_router(router, tiny_encoder_folder, tmp_path):
    brief = Encoder.from_pretrained(tiny_encoder_folder, chat_template_kwargs={"brief": True})
    with pytest.raises(
        ValueError,
        match="chat_template_kwargs: the router has None, this encoder {'brief': True}; template_d",
    ):
        router.use_encoder(brief)
    router.save(tmp_path / "router")
    path = tmp_path / "router/router.json"
    value = json.loads(path.read_text())
    settings = ("chat_template_kwargs", "template_digest")
    value["encoders"][0] |= {name: brief.identity[name] for name in settings}
    del value["seal"]
    path.write_text(json.dumps(value))
    loaded = Router.load(tmp_path / "router")
    assert loaded.encoders[0].identity == brief.identity
    assert loaded.encoders[0].prompter(["ab"]).lengths_N[0] == 2 + 2 + len(" - brief")


def test_a_router_that_does_not_say_reads_control_tokens_as_it_was_trained_to(
    router, tiny_encoder_folder, tmp_path
):
    router.save(tmp_path / "router")
    path = tmp_path / "router/router.json"
    value = json.loads(path.read_text())
    assert value["encoders"][0].pop("control_text") == "split"
    del value["seal"]
    path.write_text(json.dumps(value))
    loaded = Router.load(tmp_path / "router")
    assert "control_text" not in loaded.encoders[0].identity
    with pytest.raises(ValueError, match="control_text: the router has None, this encoder 'split'"):
        loaded.use_encoder(Encoder.from_pretrained(tiny_encoder_folder))


def test_a_store_of_another_encoder_is_refused(router, parts, monkeypatch):
    store, test, _ = parts
    monkeypatch.setitem(store.meta["identity"], "weights_digest", "0")
    with pytest.raises(ValueError, match="the store's encoder '0'"):
        router.predict_store(store, test.ids)


def test_the_router_learns_and_is_measured(router, parts):
    store, test, train = parts
    metrics = evaluate(router, store, test)
    assert metrics["mean_auc"] > 0.7
    # The rows that stopped the training, beside the AUC that names of datasets can give.
    held, _ = train.split(CONFIG.val_fraction, CONFIG.split_seed)
    p_NM = router.predict_store(store, held.ids, calibrated=False)
    within = within_dataset_auc(p_NM, held.correct_NM, held.datasets)
    found = router.training["validation_within_dataset_auc"]
    np.testing.assert_allclose([found[t] for t in train.targets], within.auc_M, atol=1e-3)
    assert metrics["cost_basis"] == "assumed"
    assert sum(metrics["routed_share"].values()) == pytest.approx(1)
    shuffled = test.select_targets(("dear", "cheap", "middle"))
    again = evaluate(router, store, shuffled)
    assert again["auc"] == metrics["auc"]
    with pytest.raises(ValueError, match="the router knows the targets"):
        evaluate(router, store, test.select_targets(("dear", "cheap")))


def test_validation_rows_train_nothing(router, parts):
    """Other outcomes on the validation rows change neither features nor first-epoch losses."""
    store, _, train = parts
    val, fit = train.split(CONFIG.val_fraction, CONFIG.split_seed)
    y_NM = train.y_NM.copy()
    in_val = np.isin(train.ids, val.ids)
    y_NM[in_val] = 1 - y_NM[in_val]
    flipped = dataclasses.replace(train, y_NM=y_NM)
    other = fit_router(store, flipped, Recipe.all_layers(pca_dim=20), CONFIG)
    ours, theirs = router.features.arrays(), other.features.arrays()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    losses = [r.training["history"]["train_loss_EK"][0] for r in (router, other)]
    np.testing.assert_array_equal(*losses)
    assert len(fit) + len(val) == len(train)


def test_copies_of_held_out_rows_are_not_trained_on(parts, monkeypatch):
    """Each row has a copy, for which another row of the store stands."""
    store, other, train = parts
    some = train.select(range(200))
    copies = dataclasses.replace(other.select(range(200)), groups=some.groups)
    copy_of = dict(zip(some.ids, copies.ids, strict=True))
    read, trained = [], []
    apply_store = FeatureMap.apply_store
    monkeypatch.setattr(
        FeatureMap, "apply_store", lambda *args: read.append(args[2]) or apply_store(*args)
    )
    _train_once(monkeypatch, trained)
    config = dataclasses.replace(CONFIG, epochs=1)
    router = fit_router(
        store, some, Recipe.all_layers(pca_dim=5), config, calibration_folds=2, copies=copies
    )
    parts_of = [some, *(fit for fit, _ in some.folds(2, config.split_seed))]
    for rows, (x_NC, y_NM, x_val_NC, y_val_NM) in zip(parts_of, trained, strict=True):
        held, fitted = rows.split(config.val_fraction, config.split_seed)
        used = copies.select([copy_of[name] for name in fitted.ids])
        np.testing.assert_array_equal(y_NM[: len(fitted)], fitted.correct_NM)
        assert sorted(map(str, y_NM[len(fitted) :])) == sorted(map(str, used.correct_NM))
        assert len(x_NC) == 2 * len(fitted) and len(x_val_NC) == len(held)
        np.testing.assert_array_equal(y_val_NM, held.correct_NM)
        assert any(sorted(ids) == sorted(used.ids) for ids in read)
    plain = fit_router(store, some, Recipe.all_layers(pca_dim=5), config)
    assert router.training["n_copies"] == len(trained[0][0]) // 2
    assert "n_copies" not in plain.training
    # All but the trunk's weights is as without copies.
    for one, two in zip(trained[0], trained[-1], strict=True):
        np.testing.assert_array_equal(one[: len(two)], two)
    for name in ("n_queries", "n_validation", "accuracy", "learning_curve", "distance"):
        assert router.training[name] == plain.training[name]


def test_a_target_without_outcomes_is_refused(parts):
    store, _, train = parts
    y_NM = train.y_NM.copy()
    y_NM[:, 1] = np.nan
    with pytest.raises(ValueError, match="'middle' has no outcome"):
        fit_router(store, dataclasses.replace(train, y_NM=y_NM), config=CONFIG)


def test_a_target_seen_only_in_rows_that_stop_the_training_is_refused(parts):
    """Its head would keep the weights it was drawn with, and be routed by."""
    store, _, train = parts
    held, _ = train.split(CONFIG.val_fraction, CONFIG.split_seed)
    y_NM = train.y_NM.copy()
    y_NM[~np.isin(train.ids, held.ids), 1] = np.nan
    with pytest.raises(ValueError, match="all outcomes of 'middle' are of rows that only stop"):
        fit_router(store, dataclasses.replace(train, y_NM=y_NM), config=CONFIG)


def test_other_prices_than_the_routers_are_told_of(router, parts, caplog):
    store, test, _ = parts
    plain = evaluate(router, store, test)
    assert not caplog.records
    other_M2 = test.prices_M2.copy()
    other_M2[0] *= 7
    assert evaluate(router, store, dataclasses.replace(test, prices_M2=other_M2)) == plain
    (record,) = caplog.records
    assert f"the prices of {test.targets[0]} differ" in record.message
    bare = copy.copy(router)
    bare.costs = dataclasses.replace(router.costs, prices_M2=None)
    caplog.clear()
    evaluate(bare, store, test)
    assert "the router was trained without prices" in caplog.records[0].message


def test_texts_that_are_alike_stay_together_when_a_target_is_added(router, parts):
    """Nothing can be learnt of coins; four times the same text would seem to tell them."""
    _, _, train = parts
    router = copy.copy(router)  # It gets a target.
    rng = np.random.default_rng(0)
    outcomes = {}
    for query in train.queries[:40]:
        y = float(rng.random() < 0.5)
        outcomes |= {query + " " * i: y for i in range(4)}
    head = add_target(router, "coin", outcomes)
    assert head.log_loss > 0.66


def test_limits_and_conversations_are_honoured_saved_and_evaluated(
    router, parts, encoder, tmp_path
):
    store, test, _ = parts
    router, n = copy.copy(router), len(router.targets)
    windows_M = np.full(n, np.inf)
    windows_M[: n - 1] = 50
    router.limits = Limits(np.where(np.isinf(windows_M), np.nan, windows_M), ((),) * n)
    router.save(tmp_path)
    again = Router.load(tmp_path, encoder)
    turns = [{"role": "system", "content": "word " * 60}, {"role": "user", "content": "Why?"}]
    short, long = again.route(["Why?", turns], Tolerance(1.0))
    assert long.target == router.targets[-1] != short.target
    assert again.route(turns, Tolerance(1.0)).target == long.target
    with pytest.raises(ValueError, match="no target can take the query 'system: word"):
        again.route(turns, allowed=router.targets[:1])
    windows_M[: n - 1] = 1
    again.limits = Limits(windows_M, ((),) * n)
    assert evaluate(again, store, test)["routed_share"][router.targets[-1]] == 1.0
    # Outcomes show that these queries were taken: the measurement does not end with an error.
    again.limits = Limits(np.ones(n), ((),) * n)
    assert judge(again, store, test)[0].allowed_NM.all()
    with pytest.raises(ValueError, match="no target can take the query 'Why"):
        again.route("Why?")


def test_scores_can_be_trained_on_as_they_are(parts):
    store, _, train = parts
    scored = dataclasses.replace(train, y_NM=(0.2 + 0.5 * train.y_NM).astype(np.float32))
    config = dataclasses.replace(CONFIG, trunk_target="score")
    router = fit_router(store, scored, Recipe.all_layers(pca_dim=20), config)
    assert router.predict_store(store, train.ids).max() < 0.85


# ---- several encoders


@pytest.fixture(scope="module")
def second_encoder(tiny_encoder_folder, tmp_path_factory):
    """The tiny encoder with other weights."""
    folder = tmp_path_factory.mktemp("second") / "tiny"
    shutil.copytree(tiny_encoder_folder, folder)
    weights, rng = load_file(folder / "model.safetensors"), np.random.default_rng(0)
    for name, w in weights.items():
        weights[name] = (w + 0.5 * w.std() * rng.normal(size=w.shape)).astype(np.float32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "np"})
    return Encoder.from_pretrained(folder)


@pytest.fixture(scope="module")
def two_stores(parts, second_encoder, tiny_data, tmp_path_factory):
    """The store of all rows, and of the second encoder one of some, other layers, in blocks."""
    folder = tmp_path_factory.mktemp("second-store") / "store"
    some = tiny_data.select(np.random.default_rng(1).permutation(len(tiny_data))[:900])
    return parts[0], extract(second_encoder, some, folder, layers=[1, 3]), some


@pytest.fixture(scope="module")
def two(two_stores):
    *stores, some = two_stores
    recipe = Recipe.of_sites([(0, 2, "mean", 9), (1, 3, "last", 7), (1, 1, "mean", 5)])
    return fit_router(stores, some, recipe, CONFIG)


@pytest.mark.slow
def test_a_router_of_two_encoders(two, two_stores, encoder, second_encoder, tmp_path):
    left, right, some = two_stores
    some = some.select(range(60))
    p_NM = two.predict_store([left, right], some.ids)
    np.testing.assert_array_equal(two.predict_store([right, left], some.ids), p_NM)
    two.save(tmp_path / "router")
    value = json.loads((tmp_path / "router/router.json").read_text())
    assert len(value["encoders"]) == 2 and len(value["features"]["parts"]) == 3
    queries = list(some.queries)
    for given in (None, second_encoder, [second_encoder, encoder]):  # Finds the others by itself.
        loaded = Router.load(tmp_path / "router", given)
        np.testing.assert_array_equal(loaded.predict_store([left, right], some.ids), p_NM)
        decisions = loaded.route(queries)
        routed_NM = [[d.probabilities[t] for t in loaded.targets] for d in decisions]
        np.testing.assert_allclose(routed_NM, p_NM, atol=0.01)  # The stores' are float16.
        alone = loaded.route(queries[0]).probabilities
        assert alone == pytest.approx(decisions[0].probabilities, abs=1e-5)
        assert given is None or second_encoder in loaded.encoders
    assert evaluate(two, [right, left], some)["n_queries"] == 60


def test_each_of_two_encoders_is_refused_on_its_own(two, two_stores, encoder, tiny_encoder_folder):
    left, right, some = two_stores
    for given in (left, [left], [left, left]):
        with pytest.raises(ValueError, match="the router's encoder 1 has '.*the store's encoder '"):
            two.predict_store(given, some.ids)
    with pytest.raises(ValueError, match="encoder 0 has .*the store's encoder"):
        two.predict_store(right, some.ids)
    wide = Encoder.from_pretrained(tiny_encoder_folder, compute_dtype="bfloat16")
    with pytest.raises(ValueError, match="encoder 0 has 'float32', this encoder 'bfloat16'"):
        two.use_encoder([encoder, wide])


def test_a_missing_query_is_named_with_its_store(two_stores, parts):
    left, right, some = two_stores
    missing = next(name for name in parts[1].ids if name not in right.ids)
    data = parts[1].select([*(i for i in parts[1].ids if i in right.ids), missing])
    for recipe in (Recipe.all_layers(pca_dim=5), Recipe.per_target(pca_dim=5)):
        with pytest.raises(ValueError, match=f"not in the store {right.folder.path}, .*{missing}"):
            fit_router([left, right], data, recipe, CONFIG)


def test_of_several_stores_of_one_encoder_that_with_the_layers_is_read(two, two_stores, encoder,
                                                                       tmp_path):  # fmt: skip
    left, right, some = two_stores
    other = extract(encoder, some, tmp_path / "store", layers=[1])
    p_NM = two.predict_store([left, right], some.ids)
    np.testing.assert_array_equal(two.predict_store([other, left, right], some.ids), p_NM)


# ---- recipes that choose


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe.per_target("cv_auc", ("last", "mean"), (5, 20)),
        pytest.param(Recipe.greedy(2, "mean", 20), marks=pytest.mark.slow),
    ],
)
def test_what_was_chosen_is_recorded_and_validation_rows_choose_nothing(parts, recipe, tmp_path):
    store, train = parts[0], parts[2].select(range(700))
    val, fit = train.split(CONFIG.val_fraction, CONFIG.split_seed)
    router = fit_router(store, train, recipe, CONFIG)
    selection = select(recipe, store, fit)
    assert router.features.recipe == selection.recipe
    assert router.training["recipe"] == recipe.to_json()
    router.save(tmp_path / "router")
    value = json.loads((tmp_path / "router/router.json").read_text())
    assert value["training"]["choices"] == list(selection.choices)
    assert Recipe.from_json(value["features"]["recipe"]) == selection.recipe
    y_NM = train.y_NM.copy()
    y_NM[np.isin(train.ids, val.ids)] = 0.0
    flipped = fit_router(store, dataclasses.replace(train, y_NM=y_NM), recipe, CONFIG)
    assert flipped.training["choices"] == router.training["choices"]


def test_an_encoder_of_which_nothing_is_chosen_is_left_out(two_stores, second_encoder):
    """The outcomes can be read off the second encoder's states."""
    left, right, some = two_stores
    states_ND = read_rows(right, some.ids, Selection((3,), ("mean",)))[0]
    y_NM = (states_ND[:, :3] > np.median(states_ND[:, :3], axis=0)).astype(np.float32)
    data = dataclasses.replace(some, y_NM=y_NM, prices_M2=None)
    router = fit_router([left, right], data, Recipe.per_target(pca_dim=20), CONFIG)
    assert [c["layer"] for c in router.training["choices"]] == [3, 3, 3]
    assert [c["encoder"] for c in router.training["choices"]] == [0, 0, 0]
    assert router.features.parts[0].encoder == 0 and len(router.encoder_identities) == 1
    p_NM = router.predict_store(right, data.ids)
    np.testing.assert_array_equal(router.predict_store([left, right], data.ids), p_NM)
    router.use_encoder(second_encoder)
    assert len(router.route(["abc"])) == 1


def test_a_target_is_added_from_few_outcomes(router, parts, encoder, tmp_path):
    """As good as its twin among the old targets almost, saved and loaded, the others untouched."""
    store, test, train = parts
    router = copy.copy(router)  # It gets a target.
    before_NM = router.predict_store(store, test.ids)
    twin = train.correct_NM[:, 0]
    rows = np.flatnonzero(np.isfinite(twin))[:150]
    outcomes = {train.ids[n]: float(twin[n]) for n in rows}
    head = add_target(router, "new", outcomes, price=(1.0, 2.0), stores=store)
    assert router.targets[-1] == "new" and np.isfinite(head.log_loss)
    after_NM = router.predict_store(store, test.ids)
    np.testing.assert_allclose(after_NM[:, :-1], before_NM, atol=1e-6)
    auc_M = auc_per_target(after_NM, np.column_stack([test.correct_NM, test.correct_NM[:, 0]]))
    assert auc_M[-1] > auc_M[0] - 0.05
    router.save(tmp_path)
    again = Router.load(tmp_path, encoder)
    np.testing.assert_array_equal(again.predict_store(store, test.ids), after_NM)
    decision = again.route("abc def?", allowed=["new"])
    assert decision.target == "new" and decision.costs["new"] > 0
    assert again.training["added_targets"][0]["n_outcomes"] == 150
    # By text instead of by id, nearly the same head: the store's states are float16.
    texts = {train.queries[n]: float(twin[n]) for n in rows}
    add_target(router, "by_text", texts)
    both = router.predict_store(store, test.ids)[:, -2:]
    assert np.corrcoef(both.T)[0, 1] > 0.95
    for bad, message in (
        (("new", outcomes), "has a target 'new' already"),
        (("x", {"abc": 2.0}), r"scores in \[0, 1\], got 2.0 for 'abc'"),
        (("x", {"abc": 1.0, "abd": None}), "got None for 'abd'; leave out what was not observed"),
        (("x", {}), "outcomes: expected one at least"),
        (("x", outcomes, (1.0, -2.0)), "two numbers from 0 up"),
    ):
        with pytest.raises(ValueError, match=message):
            add_target(router, *bad)
    assert len(router.targets) == again.trunk.n_targets + 1
