"""compare: out-of-fold figures of recipes against NumPy and scikit-learn, resumed and refused."""

import dataclasses
import json
import types

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from routerjax.data import groups as grouping
from routerjax.data.dataset import RoutingDataset
from routerjax.evaluation.estimated import Estimated
from routerjax.evaluation.metrics import evaluate_predictions
from routerjax.features.recipe import Recipe
from routerjax.features.recipe_flags import parse_recipe, parse_recipes
from routerjax.report.study_pictures import draw_comparison
from routerjax.report.text import comparison_lines
from routerjax.routing.judged import Judged
from routerjax.routing.policies import Argmax
from routerjax.runtime import resume
from routerjax.stats.bootstrap import value_and_draws
from routerjax.studies import fits
from routerjax.studies.compare import compare
from routerjax.studies.contestants import BASELINES, RouterSpec, parse_router_specs
from routerjax.studies.estimates import LEFT_OUT, METRICS, auc_estimates, estimates_of
from routerjax.trunk.calibrate import Calibration
from routerjax.trunk.config import TrunkConfig

CONFIG = TrunkConfig(seeds=(5, 7), keep=1)
RECIPES = {"good": Recipe.all_layers(), "poor": Recipe.layers([3]), "same": Recipe.all_layers()}
STORE = types.SimpleNamespace(identity={"encoder_id": "e", "weights_digest": "w"})


@pytest.fixture
def trained(make_pool, monkeypatch):
    """Data, and a list of the trainings; each predicts the known part of P(correct) with noise."""
    data, p_NM, _ = make_pool(n=500, m=3, missing=0.05)
    trainings = []

    def fit(stores, train, recipe, config, trust):
        assert not trust
        trainings.append((train, recipe, config))
        noise = 0.05 if recipe.kind == "all_layers" else 0.4
        rng = np.random.default_rng(config.seeds[0])
        noisy_NM = np.clip(p_NM + noise * rng.normal(size=p_NM.shape), 0, 1)
        rows = {name: row for row, name in enumerate(data.ids)}

        def predict(ids, calibrated=True):
            assert not calibrated
            assert not set(ids) & set(train.ids)
            groups = {data.groups[rows[i]] for i in ids}
            assert not groups & set(train.groups)
            return noisy_NM[[rows[name] for name in ids]].astype(np.float32)

        return types.SimpleNamespace(
            targets=data.targets,
            best_single=int(np.nanargmax(np.nanmean(train.correct_NM, axis=0))),
            training={"choices": [{"n": len(train)}]},
            features=types.SimpleNamespace(recipe=recipe, width=7),
            read=lambda stores, ids: ids,
            predict=predict,
            predictor=types.SimpleNamespace(calibrated=lambda p_NM, ids: p_NM),
            calibration=Calibration.none(3),
            kernel=None,
        )

    monkeypatch.setattr(fits, "fit_router", fit)
    return data, p_NM, trainings


def _within(p_NM, y_NM, datasets):
    """Pairs of equal dataset, by a loop over all of them."""
    aucs = []
    for p_N, y_N in zip(p_NM.T, y_NM.T, strict=True):
        wins = pairs = 0.0
        for name in set(datasets):
            at = np.array(datasets) == name
            right, wrong = p_N[at & (y_N == 1)], p_N[at & (y_N == 0)]
            if min(len(right), len(wrong)) >= 5:
                gap = right[:, None] - wrong[None]
                wins, pairs = wins + (gap > 0).sum() + 0.5 * (gap == 0).sum(), pairs + gap.size
        aucs.append(wins / pairs)
    return np.mean(aucs)


def test_figures_are_those_of_the_rows_of_all_folds_together(trained):
    data, p_NM, trainings = trained
    found = compare(STORE, data, RECIPES, CONFIG, n_folds=4, n_seeds=2, draws=300)
    assert len(trainings) == 2 * 2 * 4  # Equal recipes share their fits, here in memory.
    configs = {config for _, _, config in trainings}
    assert {config.seeds for config in configs} == {(5, 7), (8, 10)}
    assert {config.split_seed for config in configs} == {42, 43}
    y_NM = data.correct_NM
    by_seed = {name: [] for name in set(LEFT_OUT) & set(METRICS)}
    fold_N = np.empty(len(data), int)
    for f, (_, test) in enumerate(data.folds(4, 0)):
        fold_N[np.isin(data.ids, test.ids)] = f
    for first_seed in (5, 8):
        rng = np.random.default_rng(first_seed)
        noisy_NM = np.clip(p_NM + 0.4 * rng.normal(size=p_NM.shape), 0, 1).astype(np.float32)
        seen_NM = np.isfinite(y_NM)
        aucs = [roc_auc_score(y[s], q[s]) for y, q, s in zip(y_NM.T, noisy_NM.T, seen_NM.T,
                                                             strict=True)]  # fmt: skip
        by_seed["mean_auc"].append(np.mean(aucs))
        within = _within(noisy_NM, y_NM, data.datasets)
        by_seed["mean_within_dataset_auc"].append(within)
        gain = room = 0.0
        outcomes = Estimated(y_NM.astype(float), data.datasets)
        for f in range(4):
            single = np.nanmean(y_NM[fold_N != f], axis=0).argmax()
            for n in np.flatnonzero(fold_N == f):
                value_M = outcomes.value_NM[n]
                gain += value_M[noisy_NM[n].argmax()] - value_M[single]
                room += outcomes.oracle_N[n] - value_M[single]
        by_seed["headroom_captured"].append(gain / room)
    good, poor, same = found["contestants"]
    assert good["cost"] is None and good["frontier"] is None and draw_comparison(found) is None
    assert 0.4 < poor["accuracy"]["value"] < good["accuracy"]["value"] < 1
    for metric in by_seed:
        row = poor[metric]
        np.testing.assert_allclose(row["by_seed"], by_seed[metric], atol=1e-5)
        assert row["value"] == pytest.approx(np.mean(by_seed[metric]), abs=1e-5)
        assert row["seed_sd"] == pytest.approx(np.std(by_seed[metric], ddof=1), abs=1e-5)
        assert row["low"] < row["value"] < row["high"]
        difference = poor["difference"][metric]
        assert difference["value"] == pytest.approx(row["value"] - good[metric]["value"])
        assert difference["low"] < difference["value"] < difference["high"]
        # Paired: what both have in common cancels, so the same recipe differs by nothing at all.
        for key in ("value", "low", "high", "seed_sd"):
            assert same[metric][key] == pytest.approx(good[metric][key], abs=1e-6)
        for key in ("value", "low", "high"):
            assert same["difference"][metric][key] == pytest.approx(0, abs=1e-6)
    assert poor["difference"]["mean_auc"]["high"] < 0
    assert good["auc"].keys() == set(data.targets)
    assert len(good["choices"]) == 8 and good["choices"][3]["choices"][0]["n"] < 500
    text = "\n".join(comparison_lines(found))
    assert "difference -0." in text and "headroom_captured" in text and "seed sd" in text


def test_baselines_compete_and_costs_are_weighed(trained):
    data, _, _ = trained
    priced = dataclasses.replace(data, prices_M2=np.array([[1.0, 1], [2, 2], [8, 8]]))
    tokens_N = np.random.default_rng(0).integers(10, 90, len(data))
    store = types.SimpleNamespace(
        identity={"encoder_id": "e"}, query_tokens_N=tokens_N,
        rows_of=lambda ids: np.array([data.ids.index(name) for name in ids]),
    )  # fmt: skip
    names = ("best_single", "cheapest", "oracle", "dataset")
    contestants = {"good": Recipe.all_layers()} | {name: BASELINES[name] for name in names}
    found = compare(store, priced, contestants, CONFIG, n_folds=3, draws=100)
    rows = {row["name"]: row for row in found["contestants"]}
    assert rows["oracle"]["headroom_captured"]["value"] == pytest.approx(1)
    assert rows["best_single"]["headroom_captured"]["value"] == pytest.approx(0)
    value_NM = Estimated(data.correct_NM.astype(float), data.datasets).value_NM
    assert rows["cheapest"]["accuracy"]["value"] == pytest.approx(value_NM[:, 0].mean(), abs=1e-6)
    # 256 output tokens where none were recorded, and the input's own.
    assert rows["cheapest"]["cost"]["value"] == pytest.approx((tokens_N + 256).mean() * 1e-6)
    for name in ("best_single", "cheapest"):
        assert rows[name]["mean_auc"] is None and rows[name]["auc"] is None
    assert rows["dataset"]["mean_auc"]["value"] > 0.5
    # All within a dataset are equal to it: nothing is known there.
    assert rows["dataset"]["mean_within_dataset_auc"]["value"] == pytest.approx(0.5, abs=0.1)
    # Turning the tolerance up ends at the cheapest; at 0 it is argmax.
    cost_T, accuracy_T, low_T, high_T = np.array(rows["good"]["frontier"]).T
    assert accuracy_T[0] == pytest.approx(rows["good"]["accuracy"]["value"])
    assert cost_T[-1] == pytest.approx(rows["cheapest"]["cost"]["value"])
    assert (low_T <= accuracy_T).all() and (accuracy_T <= high_T).all()
    assert 0 < rows["good"]["ece"]["low"] < rows["good"]["ece"]["value"]
    # Outcomes are missing, and the oracle sees them: nothing estimates its other choices.
    assert rows["oracle"]["aiq"] is None and rows["oracle"]["frontier"] is None
    n = int(np.isfinite(data.correct_NM[:, 0]).sum())
    assert rows["cheapest"]["n_known"] == {"choice": n}
    assert f"on {n} of 500 queries" in "\n".join(comparison_lines(found))
    assert [name for name, _, _ in found["singles"]] == list(data.targets)
    figure = draw_comparison(found)
    points = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    for name in ("best_single", "oracle", "cheapest"):  # Those of one setting stand at it.
        at = 1000 * rows[name]["cost"]["value"], rows[name]["accuracy"]["value"]
        np.testing.assert_allclose(points[name], [at])
    value_S4 = np.array(rows["good"]["value_frontier"])
    assert (points["good"][:, 0].min(), points["good"][:, 0].max()) == pytest.approx(
        (1000 * value_S4[:, 0].min(), 1000 * value_S4[:, 0].max())
    )
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"good", "oracle", "single targets"} <= set(labels)
    json.dumps(found, allow_nan=False)


def test_one_number_has_one_value_and_one_interval_wherever_it_stands(trained):
    """AIQ and headroom in `compare`, in the published metrics and in metrics.json's own keys."""
    data, p_NM, _ = trained
    priced, store = _priced(data, np.array([[1.0, 1], [2, 2], [8, 8]]))
    found = compare(store, priced, {"good": RECIPES["good"]}, CONFIG, n_folds=2, draws=1000)
    (row,) = found["contestants"]
    best = {choice["best_single"] for choice in row["choices"]}
    assert len(best) == 1  # Of both folds: the metrics below know only one.
    rng = np.random.default_rng(CONFIG.seeds[0])
    noisy_NM = np.clip(p_NM + 0.05 * rng.normal(size=p_NM.shape), 0, 1).astype(np.float32)
    cost_NM = np.tile((20 + 256) * 1e-6 * np.array([1.0, 2, 8]), (len(data), 1))
    metrics = evaluate_predictions(
        noisy_NM,
        Judged(priced, paid_NM=cost_NM, basis="assumed"),
        policy=Argmax(),
        best_single=data.targets.index(*best),
    )
    keys = ("value", "low", "high")
    for name in ("aiq", "avg_acc", "gain_at_best", "gap_at_oracle", "perf_gain", "pareto_dist",
                 "router_arena_score"):  # fmt: skip
        published = [metrics["field"][name][key] for key in keys]
        np.testing.assert_allclose([row[name][key] for key in keys], published, rtol=1e-6)
    assert metrics["cost_coverage"]["router"] == pytest.approx(row["aiq"]["value"])
    zero_router = metrics["field"]["aiq_zero_router"]["value"]
    assert metrics["cost_coverage"]["zero_router"] == pytest.approx(zero_router)
    for name, own in (("accuracy", "router_accuracy"), ("headroom_captured",) * 2):
        ends = [metrics[own], *metrics["intervals"][own]]
        np.testing.assert_allclose([row[name][key] for key in keys], ends, rtol=1e-6)


def test_difficulty_is_claimed_only_beyond_the_name_of_the_dataset(trained):
    data, _, trainings = trained
    good = {"good": RECIPES["good"]}
    found = compare(STORE, data, good, CONFIG, n_folds=2, draws=100, control=True, dataset_folds=9)
    assert len(trainings) == 2 + 2 + 5
    dataset_of = dict(zip(data.ids, data.datasets, strict=True))
    outcome_of = dict(zip(data.ids, data.y_NM, strict=True))
    for train, _, _ in trainings[2:4]:
        names = np.array([dataset_of[i] for i in train.ids])
        real_NM = np.array([outcome_of[i] for i in train.ids])
        for name in set(names):
            at = names == name
            for column, real in zip(train.y_NM[at].T, real_NM[at].T, strict=True):
                np.testing.assert_array_equal(np.sort(column), np.sort(real))
        assert (train.y_NM != real_NM)[np.isfinite(real_NM)].mean() > 0.2
    for train, _, _ in trainings[4:]:
        assert len({dataset_of[i] for i in train.ids}) == 4
    row = found["contestants"][0]
    # This contestant predicts alike whatever it is trained on, so nothing is claimed.
    assert row["control"]["value"] == pytest.approx(row["mean_within_dataset_auc"]["value"])
    assert row["claims_difficulty"] is False
    assert row["left_out"]["mean_auc"]["value"] == pytest.approx(row["mean_auc"]["value"])
    assert row["left_out"]["headroom_captured"]["value"] > 0
    only = found["dataset_only"]
    assert only["mean_auc"]["value"] > 0.5
    assert only["mean_within_dataset_auc"]["value"] == pytest.approx(0.5, abs=0.1)
    assert {part["dataset"] for part in row["per_dataset"]} == set(data.datasets)
    part = row["per_dataset"][0]
    assert part["best_single_accuracy"] < part["accuracy"] < part["oracle_accuracy"]
    text = "\n".join(comparison_lines(found))
    assert "NOT above its shuffled control" in text and "(the name of the dataset alone)" in text
    assert "datasets not trained on (5 folds)" in text
    bare = dataclasses.replace(data, datasets=None)
    with pytest.raises(ValueError, match="do not name their datasets"):
        compare(STORE, bare, good, CONFIG, control=True)
    with pytest.raises(ValueError, match="dataset_folds: expected 0 or at least 2, got 1"):
        compare(STORE, data, good, CONFIG, dataset_folds=1)


def test_the_saving_is_at_a_setting_chosen_on_other_folds(trained):
    data, _, _ = trained
    priced = dataclasses.replace(data, prices_M2=np.array([[1.0, 1], [2, 2], [8, 8]]))
    store = types.SimpleNamespace(
        identity={"encoder_id": "e"}, query_tokens_N=np.full(len(data), 50),
        rows_of=lambda ids: np.array([data.ids.index(name) for name in ids]),
    )  # fmt: skip
    contestants = {"good": RECIPES["good"], "best_single": BASELINES["best_single"]}
    good, single = compare(store, priced, contestants, CONFIG, draws=200)["contestants"]
    saving = good["saving"]
    # It knows much: as accurate as the best single target it costs less, give or take chance.
    assert saving["accuracy"] == pytest.approx(saving["best_single_accuracy"], abs=0.03)
    assert 0.05 < saving["probability_below_best_single"] < 0.95
    assert good["cost_save"]["low"] > 0
    sure = good["confident_saving"]
    assert sure["accuracy"] >= saving["accuracy"]
    assert 0 <= good["cost_save_confident"]["value"] < good["cost_save"]["value"]
    # Who always answers alike has no setting to turn.
    assert single["cost_save"] is None and single["saving"] is None
    assert single["cost_save_confident"] is None and single["confident_saving"] is None
    assert good["perf_gain"]["value"] > 0 and good["gain_at_best"]["value"] > 0
    assert good["apgr"] is None  # It compares two targets.


def test_intervals_are_about_as_wide_as_the_formula_says(trained):
    data, _, _ = trained
    one = dataclasses.replace(data, groups=data.ids)
    row = compare(STORE, one, {"good": Recipe.all_layers()}, CONFIG, draws=1000)["contestants"][0]
    half = (row["mean_auc"]["high"] - row["mean_auc"]["low"]) / 2
    n_right, n_wrong = (np.nanmean(data.correct_NM == k) * 500 for k in (1, 0))
    # Hanley and McNeil (1982) for one target; three targets with a common difficulty are between
    # independent and equal.
    a = row["mean_auc"]["value"]
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    sd = np.sqrt((a * (1 - a) + (n_right - 1) * (q1 - a * a) + (n_wrong - 1) * (q2 - a * a))
                 / (n_right * n_wrong))  # fmt: skip
    assert 0.8 * sd / np.sqrt(3) < half / 1.96 < 1.2 * sd


def test_what_is_finished_is_not_done_again(trained, tmp_path):
    data, _, trainings = trained
    kwargs = {"n_folds": 3, "draws": 20}
    whole = compare(STORE, data, RECIPES, CONFIG, n_seeds=2, **kwargs, workdir=tmp_path / "a")
    # Equal recipes share their fits.
    assert len(trainings) == 2 * 2 * 3
    again = compare(STORE, data, RECIPES, CONFIG, n_seeds=2, **kwargs, workdir=tmp_path / "a")
    assert len(trainings) == 12 and again == whole
    # In another folder, bit by bit: first one recipe, then a seed more, then all.
    first = {"good": RECIPES["good"]}
    compare(STORE, data, first, CONFIG, **kwargs, workdir=tmp_path / "b")
    compare(STORE, data, first, CONFIG, n_seeds=2, **kwargs, workdir=tmp_path / "b")
    assert len(trainings) == 18
    found = compare(STORE, data, RECIPES, CONFIG, n_seeds=2, **kwargs, workdir=tmp_path / "b")
    assert len(trainings) == 24 and found == whole
    # A fit without its JSON, which is written last, is none.
    json_file = next((tmp_path / "b/compare").glob("layers-*/seed1-fold2.json"))
    json_file.unlink()
    found = compare(STORE, data, RECIPES, CONFIG, n_seeds=2, **kwargs, workdir=tmp_path / "b")
    assert len(trainings) == 25 and found == whole
    arrays_file = json_file.with_suffix(".safetensors")
    arrays_file.write_bytes(b"torn")
    with pytest.raises(ValueError, match=f"{arrays_file.name} is damaged .*: delete it and run"):
        compare(STORE, data, RECIPES, CONFIG, n_seeds=2, **kwargs, workdir=tmp_path / "b")


def test_a_stopped_job_keeps_what_is_finished(trained, tmp_path, monkeypatch):
    data, _, trainings = trained
    with monkeypatch.context() as patch:
        patch.setattr(resume, "stop_requested", lambda: len(trainings) == 2)
        with pytest.raises(resume.Stopped, match="10 of 12 fits to go"):
            compare(STORE, data, RECIPES, CONFIG, n_folds=3, draws=20, workdir=tmp_path)
    compare(STORE, data, RECIPES, CONFIG, n_folds=3, draws=20, workdir=tmp_path)
    assert len(trainings) == 6


def test_a_folder_of_another_comparison_is_refused(trained, tmp_path):
    data, _, _ = trained
    kwargs = {"n_folds": 2, "workdir": tmp_path, "draws": 10}
    found = compare(STORE, data, RECIPES, CONFIG, **kwargs)
    y_NM = 1 - data.y_NM
    # Where the encoder was found does not count.
    moved = types.SimpleNamespace(identity=STORE.identity | {"encoder_id": "a copy of e"})
    assert compare(moved, data, RECIPES, CONFIG, **kwargs) == found
    other = types.SimpleNamespace(identity=STORE.identity | {"weights_digest": "other"})
    config = dataclasses.replace(CONFIG, l2=0.5)
    for args, message in (
        ((STORE, dataclasses.replace(data, y_NM=y_NM), RECIPES, CONFIG), "data_digest: there"),
        ((other, data, RECIPES, CONFIG), "stores: there .*'w'.*, here .*'other'"),
        ((STORE, data, RECIPES, config), "trunk: there"),
    ):
        with pytest.raises(ValueError, match=f"another comparison; .*{message}"):
            compare(*args, **kwargs)
    with pytest.raises(ValueError, match="n_folds: there 2, here 3"):
        compare(STORE, data, RECIPES, CONFIG, **(kwargs | {"n_folds": 3}))


def test_without_datasets_or_complete_rows(trained):
    data, _, _ = trained
    y_NM = data.y_NM.copy()
    y_NM[np.arange(500), np.arange(500) % 3] = np.nan
    bare = dataclasses.replace(data, y_NM=y_NM, datasets=None)
    found = compare(STORE, bare, RECIPES, CONFIG, draws=10)
    assert found["n_complete"] == 0
    row = found["contestants"][1]
    assert row["mean_auc"]["value"] > 0.5
    assert row["mean_within_dataset_auc"] is None and row["cost"] is None
    assert row["headroom_captured"]["value"] < 0 and row["difference"]["headroom_captured"]
    # What nobody has a number of is not shown.
    assert not {"mean_within_dataset_auc", "cost"} & {*comparison_lines(found)}
    with pytest.raises(ValueError, match="contestants: expected at least 1, got 0"):
        compare(STORE, data, {}, CONFIG)


def test_recipes_of_a_flag():
    text = "all_layers, layers:3+4-6@last/100,greedy:3/50,per_target:fisher@last+mean"
    found = parse_recipes(text, "mean", 200)
    assert found == {
        "all_layers": Recipe.all_layers(),
        "layers:3+4-6@last/100": Recipe.layers([3, 4, 5, 6], "last", 100),
        "greedy:3/50": Recipe.greedy(3, "mean", 50),
        "per_target:fisher@last+mean": parse_recipe("per_target:fisher", "", "last,mean"),
    }
    assert parse_recipes("all_layers", "last,mean", 9)["all_layers"] == Recipe.all_layers(
        ("last", "mean"), 9
    )
    for text, message in (
        ("all_layers,", "expected KIND.* got ''"),
        ("greedy:2/x", "expected KIND.* got 'greedy:2/x'"),
        ("all_layers,all_layers", "each counts once, got 'all_layers' again"),
        ("best:3", "got 'best:3'"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_recipes(text)


def test_a_spec_names_the_encoders_it_reads():
    found = parse_router_specs("all_layers+kernel#1,layers:2#1+0,all_layers")
    assert found == {
        "all_layers+kernel#1": RouterSpec(Recipe.all_layers(), "kernel", (1,)),
        "layers:2#1+0": RouterSpec(Recipe.layers([2]), encoders=(0, 1)),
        "all_layers": RouterSpec(Recipe.all_layers()),
    }
    stores = ("first", "second")
    read = [spec.read_by(stores) for spec in found.values()]
    assert read == [("second",), stores, stores]
    assert "encoders" not in found["all_layers"].to_json()  # As comparisons before it have it.
    with pytest.raises(ValueError, match="#2 is the encoder of the store in that place.* are 2"):
        RouterSpec(Recipe.all_layers(), encoders=(0, 2)).read_by(stores)
    for wrong in ("all_layers#", "all_layers#a", "all_layers#1+"):
        with pytest.raises(ValueError, match="expected #0 or #0"):
            parse_router_specs(wrong)


def _priced(data, prices_M2, lengths_NM=None):
    """The data with prices and lengths, and a store that counts tokens."""
    store = types.SimpleNamespace(
        identity={"encoder_id": "e"}, query_tokens_N=np.full(len(data), 20),
        rows_of=lambda ids: np.array([data.ids.index(name) for name in ids]),
    )  # fmt: skip
    return dataclasses.replace(data, prices_M2=prices_M2, output_tokens_NM=lengths_NM), store


@pytest.mark.slow
def test_other_prices_refit_who_chooses_by_them_and_no_router(trained, tmp_path):
    data, _, trainings = trained
    contestants = {"good": Recipe.all_layers()} | {n: BASELINES[n] for n in ("cheapest", "oracle")}
    prices_M2 = np.array([[1.0, 1], [2, 2], [8, 8]])
    for prices in (prices_M2, prices_M2[::-1].copy()):
        priced, store = _priced(data, prices)
        kept, plain = (
            compare(store, priced, contestants, CONFIG, n_folds=2, draws=20, workdir=workdir)
            for workdir in (tmp_path, None)
        )
        assert kept == plain
    assert len(trainings) == 2 + 2 * 2  # Those kept served the other prices too.


def test_costs_of_all_folds_have_one_basis(trained):
    """One length is missing: all folds assume lengths, not its own alone."""
    data, _, _ = trained
    rng = np.random.default_rng(0)
    lengths_NM = rng.integers(50, 500, data.y_NM.shape).astype(float)
    prices_M2 = np.array([[1.0, 1], [2, 2], [8, 8]])
    contestants = {"cheapest": BASELINES["cheapest"]}
    priced, store = _priced(data, prices_M2, lengths_NM)
    found = compare(store, priced, contestants, CONFIG, n_folds=3, draws=20)
    assert found["cost_basis"] == "recorded"
    paid = ((20 + lengths_NM[:, 0]) * 1e-6).mean()
    assert found["contestants"][0]["cost"]["value"] == pytest.approx(paid)
    assert "output tokens recorded" in "\n".join(comparison_lines(found))
    holes_NM = lengths_NM.copy()
    holes_NM[np.flatnonzero(np.isfinite(data.correct_NM[:, 0]))[0], 0] = np.nan
    found = compare(store, _priced(data, prices_M2, holes_NM)[0], contestants, CONFIG, n_folds=3,
                    draws=20)  # fmt: skip
    assert found["cost_basis"] == "assumed"
    costs = []
    for f in range(3):
        fold_N = grouping.folds(data.groups, 3, 0)
        median = np.nanmedian(holes_NM[fold_N != f, 0])
        costs += [(20 + median) * 1e-6] * int((fold_N == f).sum())
    assert found["contestants"][0]["cost"]["value"] == pytest.approx(np.mean(costs))


def test_what_nobody_observed_is_not_the_best_single(trained):
    data, _, _ = trained
    named = np.array(data.datasets)
    y_NM = data.y_NM.copy()
    some = np.isin(named, sorted(set(named))[: len(set(named)) // 2])
    y_NM[~some, 2] = np.nan
    y_NM[some, 2] = 0
    found = compare(STORE, dataclasses.replace(data, y_NM=y_NM),
                    {"best": BASELINES["best_single"]}, CONFIG, n_folds=2, draws=20, control=True,
                    dataset_folds=2)  # fmt: skip
    (row,) = found["contestants"]
    assert row["control"] is None and row["claims_difficulty"] is None  # Nobody learns anything.
    assert all(choice["best_single"] != data.targets[2] for choice in row["choices"])
    assert row["left_out"]["headroom_captured"]["value"] == pytest.approx(0)


def test_what_a_baseline_lacks_is_told_before_routers_are_fitted(trained):
    data, _, trainings = trained
    contestants = {"good": Recipe.all_layers(), "cheapest": BASELINES["cheapest"]}
    with pytest.raises(ValueError, match="cheapest: some or all prices are unknown"):
        compare(STORE, data, contestants, CONFIG)
    contestants = {"good": Recipe.all_layers(), "dataset": BASELINES["dataset"]}
    with pytest.raises(ValueError, match="dataset: the rows do not name their datasets"):
        compare(STORE, dataclasses.replace(data, datasets=None), contestants, CONFIG)
    assert not trainings


def test_a_constant_ranks_nothing_once_the_base_rate_is_taken_off():
    # Right are nine tenths of the outcomes of "easy" and half of those of "other"; each fold leaves
    # one of them out.
    y_NM = np.repeat(np.float32([[0], [1], [0]]), [4, 66, 30], axis=0)
    names = tuple(map(str, range(100)))
    data = RoutingDataset(names, names, ("a",), y_NM, names, ("easy",) * 40 + ("other",) * 60)
    fold_N = fits.dataset_folds_of(data, 2, 0)
    rate_NM = fits._base_rates(data, fold_N)
    np.testing.assert_allclose(rate_NM[[0, 99], 0], [0.5, 0.9])
    weight_BN = value_and_draws(data.groups, 10)
    lead_N = np.random.default_rng(0).normal(size=100)
    lead_auc = roc_auc_score(data.y_NM[:, 0], lead_N)
    for factor, auc in ((1, lead_auc), (0, np.nan)):
        p_NM = expit(logit(rate_NM) + factor * lead_N[:, None])
        p_RKNM = p_NM[None, None]
        predictions = fits.Predictions(
            p_RKNM, p_RKNM, np.zeros((1, 1, 100), int), rate_NM, Judged(data), [False]
        )
        score_RKNM = predictions.less_base_rate_RKNM
        found, _ = auc_estimates(score_RKNM, [True], predictions.rows, weight_BN)
        np.testing.assert_allclose(found["mean_auc"][0, 0, 0], auc, atol=1e-6)
    assert roc_auc_score(data.y_NM[:, 0], p_NM[:, 0]) < 0.4  # The constant's own.


def test_contestants_send_no_query_to_a_target_that_cannot_take_it():
    data = RoutingDataset(
        tuple("abcd"), tuple("abcd"), ("short", "long"), np.array([[1, 0]] * 4, np.float32),
        tuple("abcd"), prices_M2=np.array([[1.0, 1.0], [2.0, 2.0]]),
        context_windows_M=np.array([10.0, np.nan]),
    )  # fmt: skip
    store = types.SimpleNamespace(
        query_tokens_N=np.array([5, 5, 50, 50]), rows_of=lambda ids: ["abcd".index(i) for i in ids]
    )
    p_RKNM, single_RKN = np.tile(np.float32([0.9, 0.1]), (1, 1, 4, 1)), np.zeros((1, 1, 4), int)
    fold_N = np.array([0, 1, 0, 1])
    for told in (data, dataclasses.replace(data, prices_M2=None)):
        rows = fits._judged(store, told, fold_N)
        rate_NM = np.full((4, 2), 0.5)
        predictions = fits.Predictions(p_RKNM, p_RKNM, single_RKN, rate_NM, rows, [False])
        found = estimates_of(predictions, [True], np.ones((3, 4)), fold_N)
        for name in ("accuracy", "avg_acc"):
            assert found.of[name][0, 0, 0] == 0.5
        # Half of the queries cannot have the target that is right on all.
        assert found.of["perf_gain"][0, 0, 0] == -0.5
        if told is data:
            assert {accuracy for _, accuracy, *_ in found.frontier[0]} == {0.5}
