"""Choosing layers by outcomes: finds what was planted, and looks at training rows alone."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from routerjax.data import groups as grouping
from routerjax.data.dataset import RoutingDataset
from routerjax.encoder.selection import Selection
from routerjax.features.recipe import Recipe
from routerjax.features.row_blocks import read_rows
from routerjax.sweeps import select as select_lib
from routerjax.sweeps.select import resolve_recipe, select

N, LAYERS, POOLINGS, WIDTH = 420, (0, 2, 5, 6), ("last", "mean"), 12
# Where each target's signal lies: (layer, pooling).
PLANTED = {"a": (5, "mean"), "b": (2, "last"), "c": (2, "last")}


def _data(ids, y_NM, targets):
    groups = tuple(f"g{i // 2}" for i in range(len(ids)))
    return RoutingDataset(tuple(ids), tuple(ids), tuple(targets), y_NM.astype(np.float32), groups)


@pytest.fixture(scope="module")
def planted():
    """States and outcomes. Two strong factors run through the columns of every site, so that the
    signal lies in components beyond the second."""
    rng = np.random.default_rng(11)
    h_NLPD = rng.normal(size=(N, len(LAYERS), len(POOLINGS), WIDTH))
    h_NLPD += 3 * np.einsum(
        "nlpk,kd->nlpd", rng.normal(size=(N, 4, 2, 2)), rng.normal(size=(2, 12))
    )
    logit_NM = rng.normal(size=(N, len(PLANTED)))
    for m, (layer, pooling) in enumerate(PLANTED.values()):
        h_NLPD[:, LAYERS.index(layer), POOLINGS.index(pooling), 3 * m : 3 * m + 3] += logit_NM[
            :, m, None
        ]
    y_NM = (rng.random(logit_NM.shape) < 1 / (1 + np.exp(-3 * logit_NM))).astype(np.float32)
    y_NM[rng.random(y_NM.shape) < 0.1] = np.nan
    ids = [f"q{n}" for n in range(N)]
    return h_NLPD.astype(np.float32), _data(ids, y_NM, PLANTED)


@pytest.fixture(scope="module")
def store(planted, fake_store):
    h_NLPD, data = planted
    return fake_store(h_NLPD, data.ids, block_rows=64, layers=LAYERS, poolings=POOLINGS)


@pytest.fixture(scope="module")
def by_auc(planted, store):
    """Which site is chosen for each target by its AUC."""
    return select(Recipe.per_target("cv_auc", POOLINGS, (2, 9)), store, planted[1])


def test_rows_are_read_in_the_order_of_the_data(planted, store):
    h_NLPD, data = planted
    chosen = [400, 3, 77]
    x_SND = read_rows(store, [data.ids[n] for n in chosen], Selection((5, 0), ("mean", "last")))
    expected = h_NLPD[chosen][:, [2, 0]][:, :, [1, 0]].transpose(1, 2, 0, 3).reshape(4, 3, WIDTH)
    np.testing.assert_array_equal(x_SND, expected)


@pytest.mark.parametrize("how", ["cv_auc", "fisher", "ridge"])
def test_each_target_finds_the_cell_its_signal_was_planted_in(planted, store, by_auc, how):
    _, data = planted
    recipe = Recipe.per_target(how, POOLINGS, (2, 9))
    found = by_auc if how == "cv_auc" else select(recipe, store, data)
    assert {c["target"]: (c["layer"], c["pooling"]) for c in found.choices} == PLANTED
    # The two strongest components hold none of it, and b and c share their block.
    assert found.recipe == Recipe.of_sites([(0, 5, "mean", 9), (0, 2, "last", 9)])
    assert resolve_recipe(recipe, store, data) == found.recipe
    for choice in found.choices:
        assert choice["encoder"] == 0 and choice["pca_dim"] == 9
        assert choice[how] > (0.7 if how == "cv_auc" else 0.01)


def _auc(x_ND, y_N, fold_N, width):
    """Mean over folds, by scikit-learn in float64."""
    x_ND, seen_N, aucs = x_ND.astype(np.float64), np.isfinite(y_N), []
    for f in range(5):
        fit_N, test_N = fold_N != f, (fold_N == f) & seen_N
        scaler = StandardScaler().fit(x_ND[fit_N])
        pca = PCA(width, svd_solver="full").fit(scaler.transform(x_ND[fit_N]))
        z_NC = pca.transform(scaler.transform(x_ND))
        model = LogisticRegression(C=1, max_iter=500).fit(z_NC[fit_N & seen_N], y_N[fit_N & seen_N])
        aucs.append(roc_auc_score(y_N[test_N], model.decision_function(z_NC[test_N])))
    return np.mean(aucs)


def test_the_auc_told_is_that_of_scikit_learn(planted, store, by_auc):
    h_NLPD, data = planted
    fold_N = grouping.folds(data.groups, 5, 0)
    for m, choice in enumerate(by_auc.choices):
        at = LAYERS.index(choice["layer"]), POOLINGS.index(choice["pooling"])
        outcomes = data.correct_NM[:, m]
        expected = _auc(h_NLPD[:, at[0], at[1]], outcomes, fold_N, choice["pca_dim"])
        assert choice["cv_auc"] == pytest.approx(expected, abs=0.003)
    greedy = select(Recipe.greedy(2, "mean", 14), store, data).choices
    layers = []
    for choice in greedy:
        layers.append(choice["layer"])
        x_NE = np.concatenate([h_NLPD[:, LAYERS.index(lay), 1] for lay in layers], axis=1)
        width = min(14, x_NE.shape[1])
        expected = [_auc(x_NE, y_N, fold_N, width) for y_N in data.correct_NM.T]
        assert choice["cv_auc"] == pytest.approx(np.mean(expected), abs=0.003)


def test_greedy_finds_the_planted_pair(planted, store):
    _, data = planted
    signal = data.select_targets(("a", "b"))
    found = select(Recipe.greedy(2, POOLINGS, 48), store, signal)
    assert found.recipe == Recipe.layers([2, 5], POOLINGS, 48)
    assert [choice["step"] for choice in found.choices] == [1, 2]
    assert {choice["layer"] for choice in found.choices} == {2, 5}
    assert found.choices[1]["cv_auc"] > found.choices[0]["cv_auc"] + 0.05
    # In steps: the first k of a longer search are those of a shorter one.
    longer = select(Recipe.greedy(3, POOLINGS, 48), store, signal)
    assert longer.choices[:2] == found.choices


@pytest.mark.slow
def test_ties_go_to_the_first(planted, fake_store):
    h_NLPD, data = planted
    twice = np.concatenate([h_NLPD, h_NLPD], axis=1)
    store = fake_store(twice, data.ids, layers=range(8), poolings=POOLINGS)
    assert resolve_recipe(Recipe.greedy(2, "mean", 9), store, data).indices[0] < 4
    found = select(Recipe.per_target("cv_auc", POOLINGS, 9), [store, store], data)
    assert all(c["encoder"] == 0 and c["layer"] < 4 for c in found.choices)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe.per_target("cv_auc", POOLINGS, (2, 9)),
        Recipe.per_target("fisher", POOLINGS, 9),
        Recipe.greedy(2, "mean", 9),
    ],
)
def test_nothing_is_chosen_by_rows_that_are_not_given(planted, store, fake_store, recipe):
    """In the second store the other rows shout each target's outcome from layer 0."""
    h_NLPD, data = planted
    train = data.select(np.arange(N) < 300)
    loud = h_NLPD.copy()
    loud[300:] = 50 * np.nan_to_num(data.correct_NM[300:, 0])[:, None, None, None]
    other = fake_store(loud, data.ids, block_rows=100, seed=9, layers=LAYERS, poolings=POOLINGS)
    one, two = select(recipe, store, train), select(recipe, other, train)
    assert one.recipe == two.recipe
    for ours, theirs in zip(one.choices, two.choices, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    y_NM = data.y_NM.copy()
    y_NM[300:] = 1 - y_NM[300:]
    flipped = _data(data.ids, y_NM, data.targets).select(np.arange(N) < 300)
    assert select(recipe, store, flipped) == one


@pytest.mark.slow
def test_several_encoders_joined_by_id(planted, fake_store):
    """The signal of a lies in the first encoder, of b and c in the second, 8 wide."""
    h_NLPD, data = planted
    left = fake_store(h_NLPD[:, [0, 2]], data.ids, layers=(0, 5), poolings=POOLINGS, seed=1)
    right = fake_store(h_NLPD[:, :2, :, :8], data.ids, layers=(1, 4), poolings=POOLINGS, seed=2)
    for how in ("cv_auc", "fisher", "ridge"):
        found = select(Recipe.per_target(how, POOLINGS, 8), [left, right], data)
        cells = {c["target"]: (c["encoder"], c["layer"], c["pooling"]) for c in found.choices}
        assert cells == {"a": (0, 5, "mean"), "b": (1, 4, "last"), "c": (1, 4, "last")}


@pytest.mark.slow
def test_widths_beyond_the_columns_and_constant_layers(planted, fake_store):
    """A width that no fold has counts as all components there are; a constant layer as nothing."""
    h_NLPD, data = planted
    h_NLPD = h_NLPD.copy()
    h_NLPD[:, 0] = 1.0
    h_NLPD[:, 1, :, 3] = 0.5
    store = fake_store(h_NLPD, data.ids, layers=LAYERS, poolings=POOLINGS)
    found = select(Recipe.per_target("cv_auc", POOLINGS, (150, 200)), store, data)
    assert {c["target"]: (c["layer"], c["pooling"]) for c in found.choices} == PLANTED
    assert {c["pca_dim"] for c in found.choices} == {150}
    assert 0 not in resolve_recipe(Recipe.greedy(2, "mean", 200), store, data).indices


@pytest.mark.slow
def test_targets_that_cannot_be_judged(planted, store, caplog):
    _, data = planted
    y_NM = data.y_NM.copy()
    y_NM[:, 1] = 1.0
    one_class = _data(data.ids, y_NM, data.targets)
    for how in ("cv_auc", "fisher", "ridge"):
        with caplog.at_level("WARNING"):
            found = select(Recipe.per_target(how, POOLINGS, 9), store, one_class)
        assert [c["target"] for c in found.choices] == ["a", "c"]
        assert "b has no number in any cell" in caplog.text
        with pytest.raises(ValueError, match="no target has outcomes of both classes"):
            select(Recipe.per_target(how, POOLINGS, 9), store, one_class.select_targets(["b"]))
    assert select(Recipe.greedy(1, "mean", 9), store, one_class).choices[0]["cv_auc"] > 0.6
    with pytest.raises(ValueError, match="greedy: no layer has an AUC"):
        select(Recipe.greedy(1, "mean", 9), store, one_class.select_targets(["b"]))


def test_other_recipes_come_back_as_they_are(planted, store):
    _, data = planted
    for recipe in (
        Recipe.all_layers(),
        Recipe.top_fisher(2),
        Recipe.of_sites([(0, 2, "last", 3)]),
    ):
        assert select(recipe, store, data) == (recipe, ())


def test_refusals(planted, store, fake_store, monkeypatch):
    h_NLPD, data = planted
    short = fake_store(h_NLPD[:-1], data.ids[:-1], layers=LAYERS, poolings=POOLINGS)
    for recipe in (Recipe.per_target(), Recipe.per_target("fisher"), Recipe.greedy(2)):
        with pytest.raises(ValueError, match=f"'{data.ids[-1]}' is not in the store"):
            select(recipe, [store, short], data)
    with pytest.raises(ValueError, match="greedy chooses among the layers of one store, got 2"):
        select(Recipe.greedy(2), [store, store], data)
    with pytest.raises(ValueError, match="k = 5, but the store has 4 hidden states"):
        select(Recipe.greedy(5), store, data)
    with pytest.raises(ValueError, match=r"pooling: the store holds \['last', 'mean'\], got 'max'"):
        select(Recipe.per_target(pooling="max"), store, data)
    monkeypatch.setattr(select_lib, "EXACT_WIDTH", 40)
    with pytest.raises(ValueError, match="2 layers x 2 poolings x 12 are 48 columns.* up to 40"):
        select(Recipe.greedy(2, POOLINGS), store, data)
