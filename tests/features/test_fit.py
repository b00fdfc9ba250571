"""fit_features and FeatureMap: against scikit-learn, and what a map must keep."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from routerjax.encoder.families.registry import BOTH_WAYS, FAMILIES
from routerjax.encoder.selection import Selection
from routerjax.features import part as on_device
from routerjax.features import pca
from routerjax.features.feature_map import FeatureMap
from routerjax.features.fit import default_recipe, fit_features, reads_decoder
from routerjax.features.recipe import Recipe
from routerjax.probes.probe import probe


@pytest.fixture(scope="module")
def store(toy, fake_store):
    return fake_store(toy.h_NLPD, toy.ids)


@pytest.fixture(scope="module")
def train(toy, fake_data):
    return fake_data(toy.ids[:150], toy.y_NM[:150])


@pytest.fixture(scope="module")
def fitted(store, train):
    return fit_features(Recipe.all_layers(pooling=("mean", "last"), pca_dim=12), store, train)


def test_features_equal_scikit_learn_fitted_on_the_training_rows(toy, fitted, store):
    """Rows 150 to 199 are projected and never fitted on. State 0 of `last` is constant."""
    x_NE = toy.h_NLPD[:, :, ::-1].reshape(200, -1).astype(np.float64)  # mean before last
    x_NE = np.delete(x_NE, range(16, 32), axis=1)
    scaler = StandardScaler().fit(x_NE[:150])
    reference = PCA(12, svd_solver="full").fit(scaler.transform(x_NE[:150]))
    expected = reference.transform(scaler.transform(x_NE))
    found = fitted.apply_store(store, toy.ids)
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found, expected * signs, atol=2e-3)
    ratio = reference.explained_variance_ratio_.sum()
    np.testing.assert_allclose(fitted.explained_variance_ratio, ratio, rtol=1e-5)


@pytest.mark.parametrize("constant", [False, True])
def test_averaged_layers_equal_scikit_learn(toy, fake_store, train, constant):
    """One column of one layer constant: it counts for nothing there, and for the others."""
    h_NLPD = toy.h_NLPD.copy()
    if constant:
        h_NLPD[:, 2, 1, 4] = 3.0
    store = fake_store(h_NLPD, toy.ids)
    recipe = Recipe.averaged_layers([1, 2, 4], ("mean", "last"), pca_dim=9)
    fitted = fit_features(recipe, store, train)
    means = []
    for pooling in (1, 0):
        layers = [h_NLPD[:, layer, pooling].astype(np.float64) for layer in (1, 2, 4)]
        means.append(np.mean([StandardScaler().fit(x[:150]).transform(x) for x in layers], axis=0))
    x_NE = np.concatenate(means, axis=1)
    scaler = StandardScaler().fit(x_NE[:150])
    reference = PCA(9, svd_solver="full").fit(scaler.transform(x_NE[:150]))
    expected = reference.transform(scaler.transform(x_NE))
    found = fitted.apply_store(store, toy.ids)
    np.testing.assert_allclose(found, expected * np.sign((found * expected).sum(axis=0)), atol=2e-3)
    ratio = reference.explained_variance_ratio_.sum()
    np.testing.assert_allclose(fitted.explained_variance_ratio, ratio, rtol=1e-5)
    narrow = fit_features(dataclasses.replace(recipe, pca_dim=4), store, train)
    np.testing.assert_allclose(narrow.apply_store(store, toy.ids), found[:, :4], atol=1e-5)
    assert fitted.narrow(4).to_json() == narrow.to_json()
    again = FeatureMap.from_arrays(json.loads(json.dumps(fitted.to_json())), fitted.arrays())
    np.testing.assert_array_equal(again.apply_store(store, toy.ids), found)


def test_the_mean_of_wide_layers_is_sketched(toy, fake_store, train, monkeypatch):
    store, recipe = fake_store(toy.h_NLPD, toy.ids), Recipe.averaged_layers([1, 3], "mean", 3)
    exact = fit_features(recipe, store, train).apply_store(store, toy.ids)
    monkeypatch.setattr(pca, "EXACT_WIDTH", 15)
    sketched = fit_features(recipe, store, train)
    assert 0 < sketched.parts[0].residual < 0.01
    np.testing.assert_allclose(sketched.apply_store(store, toy.ids), exact, atol=1e-2)


def test_captured_and_stored_states_give_the_same_features(toy, fitted, store):
    x_NC = fitted.apply_store(store, toy.ids)
    h_NLPD = toy.h_NLPD[:, :, ::-1]  # In the map's order of poolings: mean, last.
    np.testing.assert_allclose(fitted.apply(h_NLPD), x_NC, atol=1e-5)
    np.testing.assert_allclose(fitted.apply(jnp.asarray(h_NLPD)), x_NC, atol=1e-5)
    # Named in another order, with a state and a pooling too many: found all the same.
    h_NLPD = np.concatenate([toy.h_NLPD, toy.h_NLPD[:, :1]], axis=1)
    h_NLPD = np.concatenate([h_NLPD[:, :, :1], h_NLPD], axis=2)
    found = fitted.apply(h_NLPD, Selection((0, 1, 2, 3, 4, 9), ("max", "last", "mean")))
    np.testing.assert_allclose(found, x_NC, atol=1e-5)


def test_rows_come_back_in_the_order_asked_for(toy, fitted, store):
    x_NC = fitted.apply_store(store, toy.ids)
    chosen = np.array([199, 0, 42, 42])
    found = fitted.apply_store(store, [toy.ids[n] for n in chosen])
    np.testing.assert_allclose(found, x_NC[chosen], atol=1e-6)
    assert fitted.apply_store(store, []).shape == (0, 12)


def test_only_blocks_with_wanted_rows_are_read_and_each_once(toy, fake_store, fitted):
    store = fake_store(toy.h_NLPD, toy.ids, block_rows=20)
    fitted.apply_store(store, store.ids[20:60])
    assert len(store.reads) == len(set(store.reads)) == 2 * 5 * 2
    assert {block for block, _, _ in store.reads} == {1, 2}


def test_numbers_of_rows_share_compiled_programs(toy, fitted):
    h_NLPD = toy.h_NLPD[:, :, ::-1]
    x_NC = fitted.apply(h_NLPD)
    on_device.apply_parts.clear_cache()
    for n_rows in (1, 2, 3, 4, 5, 7, 8, 0):
        np.testing.assert_allclose(fitted.apply(h_NLPD[:n_rows]), x_NC[:n_rows], atol=1e-5)
    assert on_device.apply_parts._cache_size() == 4  # 1, 2, 4, 8


def test_more_rows_than_a_chunk(toy, fitted):
    h_NLPD = np.tile(toy.h_NLPD[:, :, ::-1], (6, 1, 1, 1))
    found = fitted.apply(h_NLPD)
    assert found.shape == (1200, 12)
    np.testing.assert_allclose(found[1000:], found[:200], atol=1e-5)


def test_narrow_is_a_prefix_and_equals_a_narrower_fit(toy, fitted, store, train):
    narrow = fitted.narrow(5)
    x_NC = fitted.apply_store(store, toy.ids)
    np.testing.assert_allclose(narrow.apply_store(store, toy.ids), x_NC[:, :5], atol=1e-6)
    again = fit_features(Recipe.all_layers(pooling=("mean", "last"), pca_dim=5), store, train)
    assert narrow.to_json() == again.to_json()
    ours, theirs = narrow.arrays(), again.arrays()
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    for width in (0, 13):
        with pytest.raises(ValueError, match="expected 1 to 12 components"):
            fitted.narrow(width)


def test_features_are_centred_and_uncorrelated_on_the_training_rows(toy, fitted, store):
    x_NC = fitted.apply_store(store, toy.ids[:150]).astype(np.float64)
    np.testing.assert_allclose(x_NC.mean(axis=0), 0, atol=1e-5)
    expected = np.diag(fitted.parts[0].eigenvalues_C)
    np.testing.assert_allclose(np.cov(x_NC.T), expected, atol=1e-4 * expected.max())


def test_a_large_offset_leaves_the_features_alone(toy, fake_store, train):
    """Centred before the product: with the mean folded into a bias this fails."""
    recipe = Recipe.layers([1, 3], pca_dim=8)
    near, far = (fake_store(toy.h_NLPD + np.float32(offset), toy.ids) for offset in (0, 1024))
    expected = fit_features(recipe, near, train).apply_store(near, toy.ids)
    found = fit_features(recipe, far, train).apply_store(far, toy.ids)
    np.testing.assert_allclose(found, expected, atol=5e-3)  # Float32 itself keeps 6e-5 of 1024.


def test_a_site_that_does_not_vary_contributes_nothing(toy, fitted, store, caplog, train):
    (part,) = fitted.parts
    assert not part.components_SDC[part.sites.index((0, "last"))].any()
    h_NLPD = toy.h_NLPD[:, :, ::-1].copy()
    expected = fitted.apply(h_NLPD)
    h_NLPD[:, 0, 1] *= 1.01
    np.testing.assert_array_equal(fitted.apply(h_NLPD), expected)
    with caplog.at_level("WARNING"):
        fit_features(Recipe.all_layers(pooling=("mean", "last"), pca_dim=12), store, train)
    assert "(0, 'last')" in caplog.text


def test_arrays_and_json_restore_the_map(toy, fitted, store):
    value = json.loads(json.dumps(fitted.to_json()))
    again = FeatureMap.from_arrays(value, fitted.arrays())
    assert again.to_json() == fitted.to_json()
    assert again.parts[0].sites == fitted.parts[0].sites and again.recipe == fitted.recipe
    np.testing.assert_array_equal(
        again.apply_store(store, toy.ids), fitted.apply_store(store, toy.ids)
    )
    arrays = fitted.arrays()
    del arrays["0.mean_SD"]
    arrays["0.eigenvalues_C"] = arrays["0.eigenvalues_C"][:3]
    with pytest.raises(ValueError, match=r"mean_SD: expected \(10, 16\), got None; eigenvalues_C"):
        FeatureMap.from_arrays(value, arrays)


def test_a_map_says_what_to_capture(store, train):
    recipe = Recipe.layers([4, 2], pooling=("mean", "last"), pca_dim=3)
    features = fit_features(recipe, store, train)
    assert features.selection() == Selection((2, 4), ("mean", "last"))
    assert features.parts[0].sites == ((2, "mean"), (2, "last"), (4, "mean"), (4, "last"))


def _mean_j(toy, pooling):
    """[L] J of standardised states averaged over targets, rows 0 to 149, in float64 loops."""
    j_LM = np.zeros((5, 3))
    for i in range(5):
        x_ND = toy.h_NLPD[:150, i, pooling].astype(np.float64)
        x_ND = (x_ND - x_ND.mean(axis=0)) / x_ND.std(axis=0)
        for m in range(3):
            wrong, right = (x_ND[toy.y_NM[:150, m] == k] for k in (0, 1))
            gap = np.square(right.mean(axis=0) - wrong.mean(axis=0)).sum()
            j_LM[i, m] = gap / (right.var(axis=0).sum() + wrong.var(axis=0).sum())
    return j_LM.mean(axis=1)


def test_top_fisher_takes_the_layers_of_largest_mean_j(toy, store, train):
    for k in (1, 3):
        expected = tuple(sorted(np.argsort(-_mean_j(toy, 1))[:k]))
        found = fit_features(Recipe.top_fisher(k, pooling="mean", pca_dim=4), store, train)
        assert found.selection().layers == expected
    j_L = (_mean_j(toy, 0) + _mean_j(toy, 1)) / 2
    expected = tuple(sorted(1 + np.argsort(-j_L[1:])[:2]))
    both = fit_features(Recipe.top_fisher(2, pooling=("last", "mean"), pca_dim=4), store, train)
    assert both.selection().layers == expected


def test_top_ridge_takes_the_layers_of_the_probes_largest_ridge_j(toy, store, train):
    j_LP = probe(store, train, pca_dim=4).mean_over_targets("ridge/standardised")
    for poolings, j_L in (("mean", j_LP[:, 1]), (("last", "mean"), j_LP.mean(axis=1))):
        found = fit_features(Recipe.top_ridge(2, pooling=poolings, pca_dim=4), store, train)
        order = [i for i in np.argsort(-j_L) if np.isfinite(j_L[i])]
        assert found.selection().layers == tuple(sorted(order[:2]))
    with pytest.raises(ValueError, match=r"top_ridge: k = 5, .*\[0\] .*choose k <= 4"):
        fit_features(Recipe.top_ridge(5, pooling="last"), store, train)


def test_top_fisher_skips_constant_states_and_names_them(toy, store, train):
    found = fit_features(Recipe.top_fisher(4, pooling="last", pca_dim=4), store, train)
    assert found.selection().layers == (1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"k = 5, .* 5 hidden states and \[0\] .*choose k <= 4"):
        fit_features(Recipe.top_fisher(5, pooling="last"), store, train)


def test_top_fisher_leaves_out_targets_without_two_classes(toy, store, fake_data, train):
    y_NM = np.concatenate([toy.y_NM[:150], np.ones((150, 1), np.float32)], axis=1)
    recipe = Recipe.top_fisher(2, pca_dim=4)
    found = fit_features(recipe, store, fake_data(toy.ids[:150], y_NM))
    assert found.selection().layers == fit_features(recipe, store, train).selection().layers
    with pytest.raises(ValueError, match="no target has two correct and two wrong"):
        fit_features(recipe, store, fake_data(toy.ids[:150], y_NM[:, 3:]))


def test_refusals_name_what_is_held_and_what_came(toy, fitted, store, train, fake_store):
    with pytest.raises(ValueError, match=r"layers: the store holds \[0, 1, 2, 3, 4\], got 7"):
        fit_features(Recipe.layers([7]), store, train)
    with pytest.raises(ValueError, match=r"pooling: the store holds \['last', 'mean'\], got 'max'"):
        fit_features(Recipe.all_layers(pooling="max"), store, train)
    with pytest.raises(ValueError, match="hidden state 4 with pooling 'mean'"):
        fitted.apply(toy.h_NLPD[:, :4], Selection((0, 1, 2, 3), ("last", "mean")))
    with pytest.raises(ValueError, match=r"expected \[N, 5 layers, 2 poolings, 16 wide\]"):
        fitted.apply(toy.h_NLPD[..., :8])
    with pytest.raises(ValueError, match="16 wide, this store's are 8 wide"):
        fitted.apply_store(fake_store(toy.h_NLPD[..., :8], toy.ids), toy.ids)


BLOCKS = Recipe.of_sites([(0, 3, "mean", 5), (0, 1, "last", 4), (0, 3, "last", 9), (1, 2, "a", 7)])


@pytest.fixture(scope="module")
def second(toy, fake_store):
    """A store of another encoder: 10 wide, three layers, one pooling, rows in another order."""
    h_NLPD = np.random.default_rng(3).normal(size=(200, 3, 1, 10)).astype(np.float32)
    h_NLPD += toy.h_NLPD[:, :3, :1, :10]
    return fake_store(h_NLPD, toy.ids, block_rows=50, seed=5, poolings=("a",))


@pytest.fixture(scope="module")
def blocks(store, second, train):
    return fit_features(BLOCKS, [store, second], train)


def test_blocks_stand_side_by_side_each_as_if_alone(toy, store, second, train, blocks):
    found = blocks.apply_store((store, second), toy.ids)
    alone = [
        fit_features(Recipe.layers([b.layer], b.pooling, b.pca_dim), held, train)
        for b in BLOCKS.sites
        for held in [(store, second)[b.encoder]]
    ]
    assert blocks.width == BLOCKS.pca_dim == 25
    expected = [
        a.apply_store((store, second)[b.encoder], toy.ids)
        for a, b in zip(alone, BLOCKS.sites, strict=True)
    ]
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), atol=1e-5)
    kept, total = (
        sum(f(part.parts[0]) for part in alone)
        for f in (lambda p: p.eigenvalues_C.sum(), lambda p: p.total_variance)
    )
    assert blocks.explained_variance_ratio == pytest.approx(kept / total)


def test_a_narrower_block_is_a_prefix_of_a_wider_one(toy, store, second, train, blocks):
    narrow = blocks.narrow(5)
    assert [part.width for part in narrow.parts] == [4, 5, 5, 5]
    again = fit_features(BLOCKS.narrow(5), [store, second], train)
    assert narrow.to_json() == again.to_json()
    wide, thin = (f.apply_store([store, second], toy.ids) for f in (blocks, again))
    starts = np.cumsum([0, *(part.width for part in blocks.parts[:-1])])
    kept = [start + c for start, p in zip(starts, again.parts, strict=True) for c in range(p.width)]
    np.testing.assert_allclose(thin, wide[:, kept], atol=1e-6)


def test_stores_are_joined_by_id_whatever_their_order(toy, store, second, train, blocks):
    """The second store with its rows and blocks laid out otherwise, and rows of its own."""
    order = np.random.default_rng(1).permutation(200)
    h_NLPD = np.concatenate([layout for _, layout in second.blocks()], axis=2)
    h_NLPD = h_NLPD.transpose(2, 0, 1, 3)[[second.ids.index(toy.ids[n]) for n in order]]
    more_NLPD = np.concatenate([h_NLPD, 99 + h_NLPD[:30]])
    ids = [toy.ids[n] for n in order] + [f"other{n}" for n in range(30)]
    other = type(second)(more_NLPD, ids, second.layers, second.poolings, 64)
    again = fit_features(BLOCKS, [store, other], train)
    ids = [toy.ids[n] for n in (7, 199, 30)]
    expected = blocks.apply_store([store, second], ids)
    np.testing.assert_allclose(again.apply_store([store, other], ids), expected, atol=1e-4)
    np.testing.assert_allclose(blocks.apply_store([store, other], ids), expected, atol=1e-5)


def test_all_layers_of_several_stores_have_a_pca_each(toy, store, second, train):
    recipe = Recipe.all_layers(pooling="a", pca_dim=6)
    left = type(second)(toy.h_NLPD[:, :, :1], toy.ids, range(5), ("a",), 64)
    both = fit_features(recipe, [left, second], train)
    alone = [fit_features(recipe, s, train).apply_store(s, toy.ids) for s in (left, second)]
    found = both.apply_store([left, second], toy.ids)
    np.testing.assert_allclose(found, np.concatenate(alone, axis=1), atol=1e-6)
    assert both.width == 12 and both.selection(1).layers == (0, 1, 2)


def test_states_of_several_encoders(toy, store, second, blocks):
    expected = blocks.apply_store([store, second], toy.ids)
    at = [second.ids.index(name) for name in toy.ids]
    h_NLPD = np.concatenate([rows for _, rows in second.blocks([2])], axis=2)[:, :, at]
    assert blocks.selection() == Selection((1, 3), ("last", "mean"))
    states = [toy.h_NLPD[:, [1, 3]], h_NLPD.transpose(2, 0, 1, 3)]
    np.testing.assert_allclose(blocks.apply(states), expected, atol=1e-5)
    with pytest.raises(ValueError, match="the same queries of every encoder, got .200, 9. rows"):
        blocks.apply([states[0], states[1][:9]])
    with pytest.raises(ValueError, match="pass what the map reads"):
        blocks.apply(states, Selection((1, 3), ("mean",)))
    again = FeatureMap.from_arrays(json.loads(json.dumps(blocks.to_json())), blocks.arrays())
    assert again.to_json() == blocks.to_json() and again.recipe == BLOCKS
    np.testing.assert_array_equal(again.apply_store([store, second], toy.ids), expected)


def test_each_stored_site_is_read_once_for_all_blocks(toy, fake_store, second, blocks):
    store = fake_store(toy.h_NLPD, toy.ids)
    blocks.apply_store([store, second], toy.ids)
    assert len(store.reads) == len(set(store.reads)) == store.n_blocks * 4


@pytest.mark.parametrize("recipe", [Recipe.top_fisher, Recipe.top_ridge])
def test_of_several_stores_the_best_of_each_are_read(recipe, toy, store, fake_store, train):
    shuffled = toy.h_NLPD[:, [0, 3, 1, 2, 4]]  # The best layer of the first stands elsewhere here.
    other = fake_store(shuffled, toy.ids)
    found = fit_features(recipe(1, "mean", 4), [store, other], train)
    alone = [fit_features(recipe(1, "mean", 4), one, train) for one in (store, other)]
    assert [part.sites for part in found.parts] == [one.parts[0].sites for one in alone]
    assert found.parts[0].sites != found.parts[1].sites
    x_NC = np.concatenate(
        [one.apply_store(s, toy.ids) for one, s in zip(alone, (store, other), strict=True)], 1
    )
    np.testing.assert_allclose(found.apply_store([store, other], toy.ids), x_NC, rtol=1e-6)


def test_refusals_with_several_stores(toy, store, second, train, blocks, fake_store):
    short = fake_store(toy.h_NLPD[:149], toy.ids[:149])
    with pytest.raises(ValueError, match=f"'{toy.ids[149]}' is not in the store"):
        fit_features(Recipe.all_layers(pooling="last"), [store, short], train)
    with pytest.raises(ValueError, match="sites read encoders 0 to 1, got 1 stores"):
        fit_features(BLOCKS, store, train)
    with pytest.raises(ValueError, match="read 2 encoders, in the order of their training, got 1"):
        blocks.apply_store(store, toy.ids)
    with pytest.raises(ValueError, match=r"pooling: the store holds \['a'\], got 'mean'"):
        fit_features(Recipe.all_layers(), [store, second], train)
    for recipe in (Recipe.greedy(2), Recipe.per_target()):
        with pytest.raises(ValueError, match="chooses by outcomes: pass it to fit_router"):
            fit_features(recipe, store, train)


@pytest.mark.parametrize(
    "family, n_layers, poolings, expected",
    [
        ("bert", 5, ("last", "mean"), Recipe.all_layers("mean", 200)),
        ("llama", 5, ("last", "mean"), Recipe.top_ridge(4, ("last", "mean"), 400)),
        ("llama", 4, ("last", "mean"), Recipe.all_layers(("last", "mean"), 400)),
        ("llama", 5, ("query_mean", "last"), Recipe.top_ridge(4, "last", 400)),
        ("llama", 5, ("query_mean", "first"), Recipe.all_layers("mean", 200)),
    ],
)
def test_what_is_read_where_no_recipe_is_given(
    toy, fake_store, family, n_layers, poolings, expected
):
    store = fake_store(toy.h_NLPD[:, :n_layers], toy.ids, poolings=poolings)
    store.identity = {"family": family}
    assert default_recipe(store, toy.data) == expected


def test_layers_that_no_outcome_can_rank_are_all_read(toy, fake_store, fake_data):
    store = fake_store(toy.h_NLPD, toy.ids)
    store.identity = {"family": "llama"}
    right = fake_data(toy.ids, np.ones_like(toy.y_NM))
    assert default_recipe(store, right) == Recipe.all_layers(("last", "mean"), 400)


def test_one_decoder_among_the_encoders_decides(toy, fake_store):
    stores = [fake_store(toy.h_NLPD, toy.ids) for _ in range(2)]
    for store, family in zip(stores, ("mpnet", "qwen3"), strict=True):
        store.identity = {"family": family}
    assert reads_decoder(stores) and not reads_decoder(stores[0])
    assert default_recipe(stores, toy.data).kind == "top_ridge"


def test_the_families_that_read_both_ways_are_those_of_their_module():
    named = {
        name
        for name, family in FAMILIES.items()
        if family.read.__module__.endswith(".bidirectional")
    }
    assert named == BOTH_WAYS
