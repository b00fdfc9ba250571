"""The second pass: classes in PCA spaces against float64 projections."""

import jax
import numpy as np
import pytest

from routerjax.encoder.selection import Selection
from routerjax.features.pca import Axes
from routerjax.features.projected import collect_projected, observed_patterns, pooled_within
from routerjax.features.row_blocks import align


def _axes(toy, width=6):
    rng = np.random.default_rng(2)
    shape = toy.h_NLPD.shape[1:]
    return Axes(
        toy.h_NLPD.mean(axis=0),
        rng.uniform(0.5, 2, shape).astype(np.float32),
        rng.normal(size=(*shape, width)).astype(np.float32),
    )


@pytest.mark.parametrize("block_rows", [30, 200])
@pytest.mark.parametrize("missing", [True, False])
def test_classes_equal_float64_projections(toy, fake_store, fake_data, block_rows, missing):
    y_NM = toy.y_NM if missing else np.nan_to_num(toy.y_NM)
    store, axes = fake_store(toy.h_NLPD, toy.ids, block_rows), _axes(toy)
    rows = align(store, fake_data(toy.ids, y_NM))
    columns_U, pattern_M = observed_patterns(rows)
    assert len(columns_U) == (3 if missing else 1)
    found = collect_projected(store, rows, Selection(store.layers, store.poolings), axes, columns_U)
    found = jax.tree.map(np.asarray, found)
    mean_LPD, scale_LPD, v_LPDC = (np.asarray(x, np.float64) for x in axes)
    for i in range(5):
        for p in range(2):
            z_NC = ((toy.h_NLPD[:, i, p] - mean_LPD[i, p]) * scale_LPD[i, p]) @ v_LPDC[i, p]
            for m in range(3):
                classes = [z_NC[y_NM[:, m] == k] for k in (0, 1)]
                sizes = [len(z) for z in classes]
                np.testing.assert_array_equal(found.class_weight_MK[i, p, m], sizes)
                mean_KC = np.array([z.mean(axis=0) for z in classes])
                variance_KC = np.array([z.var(axis=0) for z in classes])
                scale = variance_KC.max()
                tolerance = dict(rtol=0, atol=3e-6 * max(scale, 1e-9))
                np.testing.assert_allclose(
                    found.class_mean_MKC[i, p, m], mean_KC, rtol=1e-5, atol=3e-6 * scale**0.5
                )
                np.testing.assert_allclose(
                    found.class_variance_MKC[i, p, m], variance_KC, **tolerance
                )
                within_CC = pooled_within(
                    found.class_weight_MK[i, p, m],
                    found.class_mean_MKC[i, p, m],
                    found.gram_UCC[i, p, pattern_M[m]],
                )
                expected = sum(len(z) * np.cov(z.T, ddof=0) for z in classes) / sum(sizes)
                np.testing.assert_allclose(within_CC, expected, **tolerance)


def test_targets_observed_on_the_same_rows_share_a_pattern(toy, fake_store, fake_data):
    y_NM = np.stack([toy.y_NM[:, 0], toy.y_NM[:, 1], 1 - toy.y_NM[:, 0]], axis=1)
    columns_U, pattern_M = observed_patterns(
        align(fake_store(toy.h_NLPD, toy.ids), fake_data(toy.ids, y_NM))
    )
    np.testing.assert_array_equal(columns_U, [0, 1])
    np.testing.assert_array_equal(pattern_M, [0, 1, 0])


def test_no_spread_within_the_classes_is_exactly_zero():
    """Dimension 0 tells the classes apart without error; 0.1 has no exact float32."""
    z_NC = np.float32([[0.1, 1.0], [0.1, -2.0], [-0.3, 0.5], [-0.3, 0.5]])
    mean_KC = np.stack([z_NC[:2].mean(axis=0), z_NC[2:].mean(axis=0)])
    within_CC = pooled_within(np.float32([2, 2]), mean_KC, z_NC.T @ z_NC)
    np.testing.assert_array_equal(within_CC[0], 0)
    assert within_CC[1, 1] == pytest.approx(1.125)
