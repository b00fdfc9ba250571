"""What a fitted map says of single queries: the layers' terms, and distances."""

import numpy as np
import pytest

from routerjax.features.fit import fit_features
from routerjax.features.recipe import Recipe, RecipeSite


@pytest.fixture(scope="module", params=["layers", "sites", "averaged"])
def fitted(request, toy, fake_store):
    sites = [RecipeSite(0, 1, "mean", 5), RecipeSite(0, 3, "last", 4), RecipeSite(0, 3, "mean", 3)]
    recipe = {
        "layers": Recipe.layers((1, 3), ("last", "mean"), 6),
        "averaged": Recipe.averaged_layers((1, 2, 3), "mean", 6),
        "sites": Recipe.of_sites(sites),
    }[request.param]
    store = fake_store(toy.h_NLPD, toy.ids)
    return fit_features(recipe, store, toy.data), store


def test_the_layers_terms_sum_to_the_features(fitted, toy):
    features, store = fitted
    read = features.selection()
    x_NC = features.apply_store(store, toy.ids)
    for n in (0, 7):
        poolings = [("last", "mean").index(name) for name in read.poolings]
        h_LPD = toy.h_NLPD[n][np.ix_(read.layers, poolings)]
        terms = features.layer_terms([h_LPD])
        assert list(terms) == [(0, layer) for layer in read.layers]
        np.testing.assert_allclose(sum(terms.values()), x_NC[n], atol=1e-4)
        at = read.layers.index(3)
        h_LPD[:at] = h_LPD[at + 1 :] = 0  # Of other layers nothing changes the term of this one.
        np.testing.assert_allclose(features.layer_terms([h_LPD])[0, 3], terms[0, 3], atol=1e-6)


def test_distances_are_about_one_on_the_rows_fitted_on(fitted, toy):
    features, store = fitted
    d_N = features.distances(features.apply_store(store, toy.ids))
    n = len(toy.ids)
    assert np.mean(d_N**2) == pytest.approx((n - 1) / n, rel=1e-3)
    scale_C = np.sqrt(np.concatenate([part.eigenvalues_C for part in features.parts]))
    np.testing.assert_allclose(features.distances(scale_C[None] * 3), [3], rtol=1e-5)
