"""safetensors: a reader written from model.json alone answers as the router does."""

import ast
import json
import pathlib

import numpy as np
import pytest

import routerjax as rj
from routerjax.encoder.pooling import POOLINGS
from routerjax.encoder.selection import Selection
from routerjax.export import words
from routerjax.features.recipe import Recipe
from routerjax.routing.constrained import Budget, Mixture, Quality
from routerjax.routing.policies import Argmax, Tolerance, Utility, Value
from routerjax.routing.policy import POLICIES
from tests.export import by_hand
from tests.export.reader import Reader

MIXTURE = Mixture(0.2, 0.9, 0.5, 1e-5, 4e-3)
POLICY = {
    "argmax": Argmax(),
    "tolerance": Tolerance(0.3),
    "value": Value(0.002),
    "utility": Utility(0.6, (1e-5, 4e-3)),
    "budget": Budget(0.001, MIXTURE),
    "quality": Quality(0.7, MIXTURE),
}


def two_encoders():
    rng = np.random.default_rng(3)
    parts = [
        by_hand.part(rng, [(2, "last")], width=3),
        by_hand.part(rng, Selection((0, 4), ("query_mean", "at50")).sites, 1, 4, hidden=9),
    ]
    return by_hand.router(parts, Recipe.all_layers(), hidden=(8, 7, 6), n_members=3)


ROUTERS = {
    "plain": lambda: by_hand.router(plain_costs=True),
    "kernel": lambda: by_hand.router(kernel=True),
    "two encoders": two_encoders,
    "limits": lambda: by_hand.router(limits=True),
    "trust": lambda: by_hand.router(trust=True),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_the_reader_finds_the_probabilities_and_costs_of_the_router(name, tmp_path):
    router = ROUTERS[name]()
    rj.export.safetensors(router, tmp_path)
    reader, states = Reader(tmp_path), by_hand.states(router)
    x_NC = router.features.apply(states)
    p_NM = router.predict(x_NC)
    tokens_N = np.arange(len(x_NC)) + 5
    cost_NM = router.costs.expected(tokens_N, x_NC)
    if cost_NM is None:
        cost_NM = np.full(p_NM.shape, np.nan)
    selections = [router.features.selection(e) for e in range(router.features.n_encoders)]
    for n in range(len(x_NC)):
        h = [
            {(layer, pooling): h_NLPD[n, i, j]
             for i, layer in enumerate(read.layers) for j, pooling in enumerate(read.poolings)}
            for h_NLPD, read in zip(states, selections, strict=True)
        ]  # fmt: skip
        x = reader.features(h)
        np.testing.assert_allclose(reader.probabilities(x), p_NM[n], atol=1e-5)
        np.testing.assert_allclose(reader.costs(x, tokens_N[n]), cost_NM[n], rtol=1e-4)
    assert np.ptp(p_NM, axis=0).min() > 0.1, "the queries are not alike"
    assert name == "plain" or np.ptp(cost_NM[:, 1]) > 0


@pytest.mark.parametrize("name", POLICY)
def test_the_reader_chooses_as_the_policy(name, tmp_path):
    router = by_hand.router(policy=POLICY[name], limits=name in ("tolerance", "budget"))
    rj.export.safetensors(router, tmp_path)
    reader = Reader(tmp_path)
    rng = np.random.default_rng(0)
    p_NM, cost_NM = rng.random((200, by_hand.M)), rng.uniform(1e-5, 4e-3, (200, by_hand.M))
    cost_NM[:, 1] = cost_NM[:, 0]  # Ties in cost, and in both.
    p_NM[::2, 1] = p_NM[::2, 0]
    queries, tokens_N = [f"query {n}" for n in range(200)], rng.integers(1, 120, 200)
    allowed_NM = None
    if router.limits is not None:
        allowed_NM = router.limits.candidates(tokens_N, queries, router.targets)
    chosen_N = router.policy.choose(p_NM, cost_NM, allowed_NM, queries)
    found = [reader.target(*row) for row in zip(p_NM, cost_NM, queries, tokens_N, strict=True)]
    assert found == [router.targets[m] for m in chosen_N]
    assert len(set(found)) > 1


def test_every_policy_and_pooling_has_its_words():
    assert set(words._POLICIES) == set(POLICIES) == set(POLICY)
    assert set(words._POOLINGS) == set(POOLINGS)


def test_the_formula_names_what_the_files_hold(tmp_path):
    rj.export.safetensors(ROUTERS["kernel"](), tmp_path)
    reader = Reader(tmp_path)
    text = " ".join(reader.json["formula"].values())
    for name in reader.arrays:
        stem, _, leaf = name.rpartition(".")
        assert f"{stem.split('.')[0]}.{'i.' if 'features' in stem else ''}" in text
        assert leaf in text, name
    for name in ("parts", "n_hidden", "kernel_width", "calibration", "policy.tau"):
        assert name in text
    assert all(name in text for entry in reader.json["costs"] for name in entry)
    plain = tmp_path / "plain"
    rj.export.safetensors(ROUTERS["plain"](), plain)
    assert "kernel" not in json.loads((plain / "model.json").read_text())["formula"]


@pytest.mark.parametrize(
    ("file", "imported"),
    [("reader.py", {"hashlib", "json", "struct", "numpy"}),
     ("neighbours_reader.py", {"numpy", "torch"})],
)  # fmt: skip
def test_the_readers_know_nothing_of_routerjax(file, imported):
    tree = ast.parse(pathlib.Path(__file__).with_name(file).read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert names == imported
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]


def test_a_policy_that_cannot_be_written_down_is_refused(tmp_path):
    class Own(Argmax):
        name = "own"

    for policy, message in ((Budget(0.1), "budget:0.1 .*fit_policy first"),
                            (Own(), "own cannot be written down: only argmax, ")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            rj.export.safetensors(by_hand.router(policy=policy), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_export_that_was_cut_short_is_none(tmp_path, monkeypatch):
    rj.export.safetensors(by_hand.router(), tmp_path)
    monkeypatch.setattr(rj.Folder, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        rj.export.safetensors(by_hand.router(seed=1), tmp_path)
    assert not (tmp_path / "model.json").exists()
