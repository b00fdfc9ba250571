"""The label curve, on a pool in which a new target is like the others."""

import dataclasses
import json
import types

import numpy as np
import pytest

from routerjax.data.dataset import RoutingDataset
from routerjax.features.recipe import Recipe
from routerjax.report.study_pictures import draw_few_labels
from routerjax.report.text import few_labels_lines
from routerjax.studies import few_labels as lib
from routerjax.studies.few_labels import METHODS, few_labels
from routerjax.trunk.config import TrunkConfig

CONFIG = TrunkConfig(hidden=(16, 8), dropout=(0.1, 0.0), epochs=25, seeds=(1, 2), keep=2,
                     batch_size=128)  # fmt: skip
N, WIDTH = 700, 40
STORE = types.SimpleNamespace(identity={"encoder_id": "a", "weights_digest": "w"})


@pytest.fixture(scope="module")
def pool():
    """Four targets whose outcomes hang on one direction of forty; each has another threshold."""
    rng = np.random.default_rng(1)
    x_NC = rng.normal(size=(N, WIDTH)).astype(np.float32)
    logit_NM = 2.5 * x_NC[:, :1] + np.array([-0.8, 0.0, 0.4, 0.9])[None]
    y_NM = (rng.random((N, 4)) < 1 / (1 + np.exp(-logit_NM))).astype(np.float32)
    y_NM[rng.random((N, 4)) < 0.05] = np.nan
    ids = tuple(f"q{i}" for i in range(N))
    names = ("gem-a", "gem-b", "quart-a", "sole")
    return RoutingDataset(ids, ids, names, y_NM, tuple(f"g{i // 2}" for i in range(N))), x_NC


class _Features:
    def __init__(self, x_NC):
        self._x_NC = x_NC

    def apply_store(self, stores, ids):
        return self._x_NC[[int(name[1:]) for name in ids]]


@pytest.mark.slow
def test_a_frozen_trunk_needs_fewer_labels(pool, monkeypatch, tmp_path):
    data, x_NC = pool
    trained = []
    train = lib.train_trunk

    def spy(x_fit, y_fit, *rest):
        trained.append(y_fit.shape[1])
        return train(x_fit, y_fit, *rest)

    monkeypatch.setattr(lib, "train_trunk", spy)
    monkeypatch.setattr(lib, "fit_features", lambda *_: _Features(x_NC))
    kwargs = {"sizes": (20, 60, 5000), "draws": 2, "workdir": tmp_path}
    with pytest.raises(ValueError, match="sizes: expected at most"):  # Claims no folder.
        few_labels(STORE, data, ("gem", "quart"), config=CONFIG, **kwargs | {"sizes": (5000,)})
    found = few_labels(STORE, data, ("gem", "quart"), config=CONFIG, **kwargs)
    # Without its family: two strangers for either gem; the others have no family but themselves.
    assert trained == [3, 2, 3, 2, 3, 3]
    for small in range(2):
        lead = found["auc"]["over_scratch"]["frozen trunk"][small]
        assert lead["low"] < lead["value"] < lead["high"] and lead["value"] > 0.02
    assert found["auc"]["mean"]["frozen trunk"][0]["value"] > 0.7
    # More labels help where nothing is known beforehand.
    few, more, none = found["auc"]["mean"]["from scratch"]
    assert more["value"] > few["value"] and none is None
    sole = found["auc"]["targets"]["sole"]
    assert sole["frozen trunk"] == sole["frozen trunk, no family"]
    assert found["within_dataset_auc"] is None  # The rows have no names of datasets.
    # A second call has nothing to do; other settings are refused.
    assert few_labels(STORE, data, ("gem", "quart"), config=CONFIG, **kwargs) == found
    assert len(trained) == 6
    # Where the encoder was found does not count.
    moved = types.SimpleNamespace(identity=STORE.identity | {"encoder_id": "b"})
    assert few_labels(moved, data, ("gem", "quart"), config=CONFIG, **kwargs) == found
    with pytest.raises(ValueError, match="another label curve"):
        few_labels(STORE, data, ("gem",), config=CONFIG, **kwargs)
    # So are other outcomes of as many rows, and other states.
    other = dataclasses.replace(data, y_NM=1 - data.y_NM)
    with pytest.raises(ValueError, match="another label curve"):
        few_labels(STORE, other, ("gem", "quart"), config=CONFIG, **kwargs)
    with pytest.raises(ValueError, match="another label curve"):
        other = types.SimpleNamespace(identity=STORE.identity | {"weights_digest": "x"})
        few_labels(other, data, ("gem", "quart"), config=CONFIG, **kwargs)
    text = "\n".join(few_labels_lines(found))
    assert all(method in text for method in METHODS)
    assert len(draw_few_labels(found).axes) == 2
    json.dumps(found, allow_nan=False)


@pytest.mark.slow
def test_within_datasets_an_easy_one_s_name_is_worth_nothing(pool, monkeypatch):
    """Predictions that are right on average of each dataset and random in it."""
    data, x_NC = pool
    names_N = np.where(x_NC[:, 0] > 0, "easy", "hard")
    data = dataclasses.replace(data, datasets=tuple(names_N))
    by_name_N = (x_NC[:, :1] > 0) + 1e-3 * np.random.default_rng(0).random((N, 1))
    monkeypatch.setattr(lib, "fit_features", lambda *_: _Features(by_name_N.astype(np.float32)))
    found = few_labels(STORE, data, config=CONFIG, sizes=(60,), draws=2)
    overall, within = (found[key]["mean"] for key in ("auc", "within_dataset_auc"))
    for method in METHODS[:3:2]:
        assert overall[method][0]["value"] > 0.7 and abs(within[method][0]["value"] - 0.5) < 0.1
    assert len(found["within_dataset_auc"]["targets"]["sole"]["from scratch"][0]) == 2
    lines = few_labels_lines(found)
    assert "mean over 4 targets" in lines[0]
    assert [line.split(" on ")[0] for line in lines[:: len(METHODS) + 2]] == [
        "AUC of a new target", "AUC within datasets",
    ]  # fmt: skip
    assert len(draw_few_labels(found).axes) == 4
    json.dumps(found, allow_nan=False)


@pytest.mark.slow
def test_a_target_without_an_auc_is_not_counted(pool, monkeypatch):
    data, x_NC = pool
    y_NM = data.y_NM.copy()
    y_NM[:, 0] = 1
    monkeypatch.setattr(lib, "fit_features", lambda *_: _Features(x_NC))
    data = dataclasses.replace(data, y_NM=y_NM)
    found = few_labels(STORE, data, config=CONFIG, sizes=(60,), draws=1)
    assert "mean over 3 targets" in few_labels_lines(found)[0]


@pytest.mark.parametrize("bad", [{"sizes": ()}, {"sizes": (0, 5)}, {"draws": 0}])
def test_no_sizes_or_draws_are_refused(pool, bad):
    with pytest.raises(ValueError, match="numbers of outcomes from 1 up"):
        few_labels(STORE, pool[0], **bad)


def test_two_targets_are_too_few(pool):
    with pytest.raises(ValueError, match="at least three targets, got 2"):
        few_labels(STORE, pool[0].select_targets(("gem-a", "sole")))


def test_neighbours_leave_the_row_and_its_group_out(monkeypatch):
    # Rows in pairs of equal features and outcome, which otherwise is chance: by its twin a row is
    # foretold from one neighbour, by its like from none.
    monkeypatch.setattr(lib, "NEIGHBOURS", (1, 200))
    rng = np.random.default_rng(0)
    x_NC = np.repeat(rng.normal(size=(200, 5)), 2, axis=0)
    y_N = np.repeat(rng.integers(0, 2, 200), 2).astype(float)
    group_N = np.repeat(np.arange(200), 2).astype(str)
    x_nC = rng.normal(size=(50, 5))
    assert np.ptp(lib._neighbours(x_NC, y_N, group_N, x_nC)) < 0.3
    apart_N = np.arange(400).astype(str)
    assert np.ptp(lib._neighbours(x_NC, y_N, apart_N, x_nC)) == 0.5


@pytest.mark.parametrize("recipe", [Recipe.top_fisher(2), Recipe.greedy(2), Recipe.per_target()])
def test_features_chosen_by_outcomes_are_refused(pool, recipe):
    """They would have seen those of the target that is left out."""
    with pytest.raises(ValueError, match="chooses by outcomes, the left-out target's too"):
        few_labels(STORE, pool[0], (), recipe, CONFIG)


def test_more_labels_than_there_are_queries_are_refused(pool):
    with pytest.raises(ValueError, match="sizes: expected at most 526, .* got \\[1000, 5000\\]"):
        few_labels(STORE, pool[0], (), config=CONFIG, sizes=(1000, 5000))
