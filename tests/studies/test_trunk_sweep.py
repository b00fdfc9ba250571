"""sweep_trunks: the exam of fit_router, intervals that pair, a ranking that resumes."""

import copy
import dataclasses
import json
import types

import numpy as np
import pytest

from routerjax.data.dataset import RoutingDataset
from routerjax.features.recipe import Recipe
from routerjax.routing.fit import fit_router
from routerjax.studies import trunk_sweep as sweep_lib
from routerjax.studies.trunk_grid import TrunkGrid
from routerjax.studies.trunk_sweep import sweep_trunks, trunk_lines
from routerjax.trunk.config import TrunkConfig

N, WIDTH = 700, 10
CONFIG = TrunkConfig(batch_size=64, epochs=12, patience=4, val_fraction=0.3, keep=2)
GRID = TrunkGrid(
    {"signal": Recipe.layers([1], pca_dim=8), "noise": Recipe.layers([0], pca_dim=8)},
    hidden=((16, 8),), dropout=((0.2,),), learning_rate=(3e-3, 1e-5), l2=(1e-4,), seeds=(7, 9),
)  # fmt: skip


@pytest.fixture(scope="module")
def rows(fake_store):
    """Outcomes that layer 1 tells and layer 0 does not; two rows a group."""
    rng = np.random.default_rng(5)
    h_NLPD = rng.normal(size=(2, 1, N, WIDTH)).transpose(2, 0, 1, 3)
    logit_NM = 2 * h_NLPD[:, 1, 0, :3]
    y_NM = (rng.random((N, 3)) < 1 / (1 + np.exp(-logit_NM))).astype(np.float32)
    y_NM[rng.random((N, 3)) < 0.1] = np.nan
    ids = tuple(f"q{i}" for i in range(N))
    groups, datasets = (tuple(f"{c}{i // n}" for i in range(N)) for c, n in (("g", 2), ("d", 350)))
    data = RoutingDataset(ids, ids, ("a", "b", "c"), y_NM, groups, datasets)
    store = fake_store(h_NLPD, ids, block_rows=N, poolings=("mean",))
    store.identity |= {"encoder_id": "toy", "weights_digest": "w"}
    store.query_tokens_N = np.full(N, 9)
    return store, data


@pytest.fixture(scope="module")
def found(rows):
    return sweep_trunks(*rows, GRID, CONFIG, draws=400)


def test_settings_are_ranked_by_the_loss_of_their_ensembles(rows, found):
    assert found["n_members"] == 8 and len(found["settings"]) == 4
    losses = [row["validation_loss"]["value"] for row in found["settings"]]
    assert losses == sorted(losses)
    best, *others = found["settings"]
    assert (best["recipe"], best["learning_rate"]) == ("signal", 3e-3)
    assert best["equal_to_best"] and best["difference"] == {"value": 0, "low": 0, "high": 0}
    assert not any(row["equal_to_best"] for row in others)
    for row in found["settings"]:
        loss, gap = row["validation_loss"], row["difference"]
        assert loss["low"] < loss["value"] < loss["high"] and row["seed_sd"] > 0
        # The mean of sigmoids is never worse than its members are on average (Jensen).
        assert loss["value"] <= row["member_loss"] + 1e-6
        assert gap["value"] == pytest.approx(loss["value"] - best["validation_loss"]["value"])
    for name in ("validation_auc", "validation_within_dataset_auc"):
        assert best[name] > 0.75 > 0.6 > others[-1][name]


def test_a_setting_is_what_fit_router_trains(rows, found):
    best = found["settings"][0]
    config = TrunkConfig.from_json(best["config"])
    assert config == GRID.config(next(GRID.settings()), CONFIG)
    router = fit_router(rows[0], rows[1], GRID.recipes["signal"], config)
    losses = router.training["history"]["best_val_loss_K"]
    assert np.mean(losses) == pytest.approx(best["member_loss"], rel=1e-4)
    assert found["n_validation"] == router.training["n_validation"]


def test_intervals_are_over_groups_and_paired(rows, found):
    """Pairing: two settings that agree row by row differ by little, however unsure their losses."""
    row = next(r for r in found["settings"] if not r["equal_to_best"])
    assert row["difference"]["low"] > 0
    alone = sweep_lib._ranked
    val, _ = rows[1].split(CONFIG.val_fraction, CONFIG.split_seed)
    rng = np.random.default_rng(0)
    y_VM = np.asarray(val.correct_NM)
    p_KVM = np.clip(0.5 + 0.2 * rng.normal(size=(8, *y_VM.shape)), 0.01, 0.99).astype(np.float32)
    p_KVM[2:4] = p_KVM[:2]  # The second setting is the first.
    trained = types.SimpleNamespace(
        p_KVM=p_KVM, best_val_loss_K=np.ones(8, np.float32),
        best_epoch_K=np.zeros(8), failed_K=np.full(8, -1),
    )  # fmt: skip
    ranked = alone(list(GRID.settings()), trained, y_VM, val, 300, 0)
    twins = [r for s, r in ranked if s in list(GRID.settings())[:2]]
    gaps = {r["difference"]["value"] for r in twins}
    assert len(gaps) == 1 and twins[0]["equal_to_best"] == twins[1]["equal_to_best"]
    # Rows as groups of their own: other weights, other ends.
    by_row = alone(list(GRID.settings()), trained, y_VM,
                   dataclasses.replace(val, groups=val.ids), 300, 0)  # fmt: skip
    assert by_row[0][1]["validation_loss"] != ranked[0][1]["validation_loss"]


def test_coverage_of_the_interval_of_a_loss(rows):
    """95% intervals of a fixed predictor's loss hold its true loss about as often as they say."""
    rng = np.random.default_rng(1)
    hits, n_reps = 0, 200
    p_VM = np.clip(rng.beta(2, 2, size=(20000, 2)), 0.02, 0.98)
    true = -(p_VM * np.log(p_VM) + (1 - p_VM) * np.log(1 - p_VM)).mean()
    setting = [next(GRID.settings())]
    for rep in range(n_reps):
        at = rng.choice(len(p_VM), 150)
        y_VM = (rng.random((150, 2)) < p_VM[at]).astype(np.float32)
        ids = tuple(f"{rep}-{i}" for i in range(150))
        val = RoutingDataset(ids, ids, ("a", "b"), y_VM, ids)
        trained = types.SimpleNamespace(
            p_KVM=p_VM[at].astype(np.float32)[None], best_val_loss_K=np.ones(1, np.float32),
            best_epoch_K=np.zeros(1), failed_K=np.full(1, -1),
        )  # fmt: skip
        ((_, row),) = sweep_lib._ranked(setting, trained, y_VM, val, 200, rep)
        loss = row["validation_loss"]
        hits += loss["low"] <= true <= loss["high"]
    assert 0.9 <= hits / n_reps <= 0.985


@pytest.mark.slow
def test_a_setting_that_fails_comes_last_and_says_so(rows):
    grid = dataclasses.replace(GRID, learning_rate=(3e-3, 1e30), recipes={"s": Recipe.layers([1])})
    found = sweep_trunks(*rows, grid, CONFIG, draws=50)
    first, last = found["settings"]
    assert first["n_failed"] == 0 and last["n_failed"] == 2
    json.dumps(found, allow_nan=False)
    lines = trunk_lines(found)
    assert any("not finite" in line for line in lines) == (last["validation_loss"] is None)


def test_a_second_call_trains_nothing(rows, found, tmp_path, monkeypatch):
    absent = dataclasses.replace(GRID, recipes={"absent": Recipe.layers([9])})
    with pytest.raises(ValueError, match="9"):  # Claims no folder.
        sweep_trunks(*rows, absent, CONFIG, workdir=tmp_path)
    first = sweep_trunks(*rows, GRID, CONFIG, draws=400, workdir=tmp_path)
    assert first == found

    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr("routerjax.trunk.many._Group.train", refuse)
    assert sweep_trunks(*rows, GRID, CONFIG, draws=400, workdir=tmp_path) == found
    # Where the encoder was found does not count, what it is does.
    moved = copy.copy(rows[0])
    moved.identity = moved.identity | {"encoder_id": "a copy"}
    assert sweep_trunks(moved, rows[1], GRID, CONFIG, draws=400, workdir=tmp_path) == found
    moved.identity = moved.identity | {"weights_digest": "x"}
    with pytest.raises(ValueError, match="another sweep of trunks; different are: stores"):
        sweep_trunks(moved, rows[1], GRID, CONFIG, workdir=tmp_path)
    other = dataclasses.replace(GRID, seeds=(1,))
    with pytest.raises(ValueError, match="another sweep of trunks; different are: grid"):
        sweep_trunks(*rows, other, CONFIG, workdir=tmp_path)


def test_lines_show_the_best_first(found):
    lines = trunk_lines(found, most=2)
    assert "8 trunks of 4 settings" in lines[0] and "1 not distinguishable" in lines[0]
    assert "signal hidden=16x8 dropout=0.2x0.2 lr=0.003 l2=0.0001" in lines[2]
    assert lines[-1].strip() == "... 2 more"
    best = found["settings"][0]
    figures = best["validation_auc"], best["validation_within_dataset_auc"]
    assert "  {:.4f}  {:.4f}  signal".format(*figures) in lines[2]
    assert lines[2].index(f"{figures[1]:.4f}  signal") == lines[1].index("within")


@pytest.mark.slow
def test_without_names_of_datasets_there_is_no_auc_within_them(rows):
    store, data = rows
    grid = dataclasses.replace(GRID, seeds=(1,))
    found = sweep_trunks(store, dataclasses.replace(data, datasets=None), grid, CONFIG, draws=0)
    best = found["settings"][0]
    assert best["validation_within_dataset_auc"] is None and best["validation_auc"] > 0.75
    lines = trunk_lines(found)
    assert f"  {best['validation_auc']:.4f}  –       signal" in lines[2]
    assert lines[2].index("signal") == lines[1].index("setting")  # Without intervals too.
    json.dumps(found, allow_nan=False)


def test_without_draws_there_is_no_interval(rows, found, tmp_path):
    plain = sweep_trunks(*rows, GRID, CONFIG, draws=0)
    for row, drawn in zip(plain["settings"], found["settings"], strict=True):
        for name in ("validation_loss", "difference"):
            assert row[name] == {"value": drawn[name]["value"], "low": None, "high": None}
    assert [row["equal_to_best"] for row in plain["settings"]] == [True, False, False, False]
    lines = trunk_lines(plain)
    assert "distinguishable" not in lines[0] and lines[2].count("[no interval]") == 2
    json.dumps(plain, allow_nan=False)
