"""Standardise + PCA against scikit-learn, exact and sketched."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from routerjax.encoder.selection import Selection
from routerjax.features.pca import fit_pca, fix_signs, principal_components, rank
from routerjax.features.row_blocks import align

EXACT, SKETCHED = 4096, 1


def _fit(store, data, width, exact_width=EXACT, layers=None, poolings=None):
    layers = store.layers if layers is None else layers
    poolings = store.poolings if poolings is None else poolings
    return fit_pca(
        store, align(store, data), Selection(tuple(layers), tuple(poolings)), width, exact_width
    )


def _sklearn(h_NLPD, width):
    """Scaler and PCA of the concatenation, layer by layer, in float64."""
    x_NE = h_NLPD.reshape(len(h_NLPD), -1).astype(np.float64)
    scaler = StandardScaler().fit(x_NE)
    return scaler, PCA(width, svd_solver="full").fit(scaler.transform(x_NE))


def _gap_cosines(pca, reference):
    """|cosine| of each component with the reference's; 1 is the same axis."""
    width = reference.components_.shape[0]
    return np.abs((pca.components_SDC.reshape(-1, width) * reference.components_.T).sum(axis=0))


def flat(n_rows, n_columns):
    """Two layers whose columns' correlations decay like 1/i: hard for a sketch."""
    rng = np.random.default_rng(3)
    rotation = np.linalg.qr(rng.normal(size=(n_columns, n_columns)))[0]
    factors = rng.normal(size=(n_rows, n_columns)) / np.sqrt(np.arange(1, n_columns + 1))
    h = (factors @ rotation * rng.uniform(0.1, 3, n_columns) + 5).astype(np.float32)
    return h.reshape(n_rows, 2, 1, n_columns // 2)


@pytest.mark.parametrize("exact_width", [EXACT, SKETCHED])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_equals_scikit_learn(toy, fake_store, exact_width, offset):
    h_NLPD = toy.h_NLPD[:, 1:4] + np.float32(offset)
    pca = _fit(fake_store(h_NLPD, toy.ids), toy.data, 24, exact_width)
    scaler, reference = _sklearn(h_NLPD, 24)
    np.testing.assert_allclose(pca.mean_SD.reshape(-1), scaler.mean_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(pca.scale_SD.reshape(-1), scaler.scale_, rtol=1e-5)
    np.testing.assert_allclose(pca.eigenvalues_C, reference.explained_variance_, rtol=2e-5)
    assert (_gap_cosines(pca, reference) > 1 - 1e-4).all()
    total = reference.explained_variance_.sum() / reference.explained_variance_ratio_.sum()
    np.testing.assert_allclose(pca.total_variance, total, rtol=1e-6)


@pytest.mark.parametrize(
    ("n_columns", "n_rows", "width"),
    [(240, 216, 72), pytest.param(1000, 900, 300, marks=pytest.mark.slow)],
)
def test_sketch_matches_the_exact_fit_on_a_flat_spectrum(
    n_columns, n_rows, width, fake_store, fake_data, monkeypatch
):
    """The stated tolerance: 1e-3 for each of the leading 300 eigenvalues, 1e-4 for 200."""
    monkeypatch.setattr("routerjax.features.sketch.SKETCH_WIDTH", 384 * width // 300)
    monkeypatch.setattr("routerjax.features.sketch._SPARE", 84 * width // 300)
    h = flat(n_rows, n_columns)
    ids = [f"q{n}" for n in range(n_rows)]
    store, data = fake_store(h, ids, block_rows=256), fake_data(ids, np.zeros((n_rows, 1)))
    sketched, sure = _fit(store, data, width, SKETCHED), 2 * width // 3
    _, reference = _sklearn(h, width)
    error_C = np.abs(sketched.eigenvalues_C / reference.explained_variance_ - 1)
    assert error_C[:sure].max() < 1e-4
    assert error_C.max() < 1e-3
    # The spaces agree, not the variances alone: 200 components, principal angles by their sines.
    v_EC = reference.components_[:sure].T
    u_EC = sketched.components_SDC.reshape(n_columns, -1)[:, :sure]
    outside = u_EC - v_EC @ (v_EC.T @ u_EC)
    assert np.square(outside).sum() / sure < 1e-3
    # And it says itself how far it is: no eigenvalue is further off than the residual.
    assert error_C.max() <= sketched.residual < 0.05


@pytest.mark.parametrize("exact_width", [EXACT, SKETCHED])
def test_a_narrower_fit_is_a_prefix(toy, fake_store, exact_width):
    store = fake_store(toy.h_NLPD, toy.ids)
    wide, narrow = (_fit(store, toy.data, n, exact_width, layers=(1, 2, 3)) for n in (24, 10))
    np.testing.assert_array_equal(narrow.components_SDC, wide.components_SDC[:, :, :10])
    np.testing.assert_array_equal(narrow.eigenvalues_C, wide.eigenvalues_C[:10])


@pytest.mark.parametrize("exact_width", [EXACT, SKETCHED])
def test_components_are_orthonormal_and_their_largest_loading_is_positive(
    toy, fake_store, exact_width
):
    pca = _fit(fake_store(toy.h_NLPD, toy.ids), toy.data, 24, exact_width, layers=(1, 2, 3))
    v_EC = pca.components_SDC.reshape(-1, 24)
    np.testing.assert_allclose(v_EC.T @ v_EC, np.eye(24), atol=2e-5)
    assert (v_EC[np.abs(v_EC).argmax(axis=0), np.arange(24)] > 0).all()
    assert (np.diff(pca.eigenvalues_C) <= 0).all()


@pytest.mark.parametrize("exact_width", [EXACT, SKETCHED])
def test_block_size_and_row_order_do_not_matter(toy, fake_store, exact_width):
    h_NLPD = toy.h_NLPD[:, 1:4]
    one = _fit(fake_store(h_NLPD, toy.ids, seed=1), toy.data, 10, exact_width)
    other = _fit(fake_store(h_NLPD, toy.ids, 71, seed=2), toy.data, 10, exact_width)
    np.testing.assert_allclose(other.eigenvalues_C, one.eigenvalues_C, rtol=1e-5)
    np.testing.assert_allclose(other.components_SDC, one.components_SDC, atol=1e-4)


@pytest.mark.parametrize("exact_width", [EXACT, SKETCHED])
def test_only_training_rows_are_seen(toy, fake_store, fake_data, exact_width):
    """What the other rows of the store hold changes nothing at all."""
    data = fake_data(toy.ids[:150], toy.y_NM[:150])
    h_NLPD = toy.h_NLPD[:, 1:4]
    spoilt = h_NLPD.copy()
    spoilt[150:] = 1e4
    one, other = (_fit(fake_store(h, toy.ids), data, 10, exact_width) for h in (h_NLPD, spoilt))
    np.testing.assert_array_equal(other.components_SDC, one.components_SDC)
    np.testing.assert_array_equal(other.mean_SD, one.mean_SD)


@pytest.mark.parametrize("exact_width", [EXACT, SKETCHED])
def test_columns_that_do_not_vary_contribute_nothing(toy, fake_store, exact_width):
    """One column in one site; and all of state 0 of `last`, which varies by float noise only."""
    h_NLPD = toy.h_NLPD.copy()
    h_NLPD[:, 2, 1, 5] = 3.7
    pca = _fit(fake_store(h_NLPD, toy.ids), toy.data, 15, exact_width)
    site = 2 * 2 + 1
    assert pca.scale_SD[site, 5] == 1 and not pca.components_SDC[site, 5].any()
    assert (pca.scale_SD[0] == 1).all() and not pca.components_SDC[0].any()
    assert pca.components_SDC[site, 4].any() and pca.components_SDC[1].any()
    varying = np.delete(h_NLPD.reshape(200, -1), [*range(16), site * 16 + 5], axis=1)
    _, reference = _sklearn(varying[:, :, None, None], 15)
    np.testing.assert_allclose(pca.eigenvalues_C, reference.explained_variance_, rtol=2e-5)


@pytest.mark.parametrize("exact_width", [EXACT, SKETCHED])
@pytest.mark.parametrize("n_rows, expected", [(12, 11), (200, 5)])
def test_width_beyond_the_rank_is_cut_and_said(
    fake_store, fake_data, caplog, exact_width, n_rows, expected
):
    """Rank 11 of 12 rows, or rank 5 by construction."""
    rng = np.random.default_rng(0)
    inner = 40 if n_rows == 12 else 5
    h_NLPD = (rng.normal(size=(n_rows, inner)) @ rng.normal(size=(inner, 40))).reshape(-1, 2, 1, 20)
    ids = [f"q{n}" for n in range(n_rows)]
    store, data = fake_store(h_NLPD, ids), fake_data(ids, np.zeros((n_rows, 1)))
    with caplog.at_level("WARNING"):
        pca = _fit(store, data, 30, exact_width)
    assert pca.components_SDC.shape == (2, 20, expected) and len(pca.eigenvalues_C) == expected
    assert f"have rank {expected}" in caplog.text
    np.testing.assert_allclose(pca.eigenvalues_C.sum(), pca.total_variance, rtol=1e-5)


def test_refuses_what_has_no_components(toy, fake_store, fake_data):
    store = fake_store(toy.h_NLPD, toy.ids)
    with pytest.raises(ValueError, match="at least 2 rows"):
        _fit(store, fake_data(toy.ids[:1], toy.y_NM[:1]), 3)
    with pytest.raises(ValueError, match="constant over all 200 rows"):
        _fit(store, toy.data, 3, layers=(0,), poolings=("last",))


def test_principal_components_of_a_known_covariance():
    """Correlation 0.6 of two columns: eigenvalues 1.6 and 0.4 along the diagonals."""
    covariance_DD = np.array([[4.0, 1.2, 0.0], [1.2, 1.0, 0.0], [0.0, 0.0, 9.0]], np.float32)
    inverse_scale_D = np.array([0.5, 1.0, 0.0], np.float32)  # The third is left out.
    components_DC, eigenvalues_D = principal_components(covariance_DD, inverse_scale_D, 3)
    np.testing.assert_allclose(eigenvalues_D, [1.6, 0.4, 0.0], atol=1e-6)
    root = np.sqrt(0.5)
    np.testing.assert_allclose(np.abs(components_DC[:, 0]), [root, root, 0], atol=1e-6)
    np.testing.assert_allclose(np.abs(components_DC[:, 1]), [root, root, 0], atol=1e-6)
    np.testing.assert_array_equal(components_DC[:, 2], 0)


def test_rank_tells_small_eigenvalues_from_rounding():
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(2000, 17)).astype(np.float32) @ rng.normal(size=(17, 100))
    covariance = np.cov(factors.T).astype(np.float32)
    assert rank(np.linalg.eigvalsh(covariance)) == 17
    assert rank(np.array([1.0, 1e-3, 0.0, -1e-9], np.float32)) == 2
    assert rank(np.zeros(4, np.float32)) == 0


def test_fix_signs_undoes_any_flip():
    rng = np.random.default_rng(0)
    v_EC = rng.normal(size=(9, 4)).astype(np.float32)
    flips = np.array([1, -1, -1, 1], np.float32)
    np.testing.assert_array_equal(fix_signs(v_EC), fix_signs(v_EC * flips))
