"""A router against the truth: shares of the best possible headroom, spending by pricing."""

import itertools
import json

import numpy as np
import pytest

from routerjax.data.simulated.simulate import simulate
from routerjax.features.recipe import Recipe
from routerjax.runtime import resume
from routerjax.studies import oracle_gap as lib
from routerjax.studies.oracle_gap import oracle_gap, oracle_gap_lines
from routerjax.trunk.config import TrunkConfig

CONFIG = TrunkConfig(hidden=(16,), dropout=(0.0,), epochs=60, seeds=(1, 2), keep=2,
                     batch_size=128, learning_rate=3e-3)  # fmt: skip


class Store:
    """The read side of ActivationStore over states that tell the true logits with noise."""

    def __init__(self, data):
        rng = np.random.default_rng(0)
        logit_NM = np.log(data.p_NM) - np.log1p(-data.p_NM)
        length_N1 = np.log(data.output_tokens_NM.mean(axis=1, keepdims=True))
        h_ND = np.concatenate([logit_NM, length_N1], axis=1)
        self._h_LPND = (h_ND + 0.3 * rng.normal(size=h_ND.shape))[None, None].astype(np.float32)
        self.ids, self.layers, self.poolings, self.width = data.ids, (0,), ("mean",), h_ND.shape[1]
        self.n_blocks, self.identity = 1, {"encoder_id": "e", "store_dtype": "float16"}
        self.query_tokens_N = np.full(len(data), 40)
        self._row = {name: row for row, name in enumerate(data.ids)}

    def block_slice(self, block):
        return slice(0, len(self.ids))

    def rows_of(self, ids):
        return np.array([self._row[name] for name in ids], np.int64)

    def blocks(self, layers=None, poolings=None, which=None):
        yield slice(0, len(self.ids)), self._h_LPND


@pytest.mark.slow
def test_what_is_left_to_gain():
    data = simulate(1500, seed=2)
    found = oracle_gap(Store(data), data, Recipe.all_layers(pca_dim=8), CONFIG, draws=200)
    shares = {name: row["share"]["value"] for name, row in found["headroom"].items()}
    assert shares["best possible"] == pytest.approx(1)
    assert 0.7 < shares["router"] < 1
    assert shares["dataset"] < shares["router"]
    assert found["length_sources"] == ["head"] * 7
    for row in found["spending"]:
        assert row["head"]["ratio"]["value"] == 1
        # Who knows the costs spends no more than who guesses them.
        assert row["true"]["ratio"]["value"] < 1.02
        for name in ("head", "median", "true"):
            assert row[name]["accuracy"] == pytest.approx(row["wanted"], abs=0.08)
    text = "\n".join(oracle_gap_lines(found))
    assert "best possible" in text and "median" in text
    json.dumps(found, allow_nan=False)


@pytest.mark.slow
def test_a_place_that_is_not_reached_is_told(monkeypatch):
    monkeypatch.setattr(lib, "PLACES", (0.5, 1.3))
    data = simulate(600, seed=2)
    found = oracle_gap(Store(data), data, Recipe.all_layers(pca_dim=8), CONFIG, draws=50)
    reached, missed = found["spending"]
    assert reached["head"]["spent"] > 0
    assert missed["wanted"] > reached["wanted"]
    assert missed["head"] is missed["median"] is missed["true"] is None
    assert "not reached on the rows" in oracle_gap_lines(found)[-1]
    json.dumps(found, allow_nan=False)


def test_real_data_have_no_truth(make_pool):
    data, _, _ = make_pool(n=40)
    with pytest.raises(ValueError, match="expected simulated rows"):
        oracle_gap(None, data)


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on(monkeypatch, tmp_path):
    data = simulate(600, seed=2)
    given = Store(data), data, Recipe.all_layers(pca_dim=8), CONFIG
    whole = oracle_gap(*given, draws=20)
    calls = itertools.count()
    monkeypatch.setattr(resume, "stop_requested", lambda: next(calls) == 5)
    with pytest.raises(resume.Stopped, match="Stopped after epoch 6 of"):
        oracle_gap(*given, draws=20, checkpoints=tmp_path)
    assert oracle_gap(*given, draws=20, checkpoints=tmp_path) == whole
