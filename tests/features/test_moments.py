"""Streaming moments against float64 loops, and what must not change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax.encoder.selection import Selection
from routerjax.features.moments import begin, class_weights, collect, finish, update
from routerjax.features.row_blocks import align
from routerjax.stats.fisher import fisher_trace
from routerjax.stats.numerics import add_compensated, inverse_scale, is_constant


def _collect(store, data, gram=True):
    return jax.tree.map(
        np.asarray,
        collect(store, align(store, data), Selection(store.layers, store.poolings), gram),
    )


def _assert_close(found, expected, rtol=2e-6):
    """Every field to `rtol` of its own largest entry."""
    for name, a, b in zip(found._fields, found, expected, strict=True):
        scale = np.nanmax(np.abs(b))
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * scale, err_msg=name)


def _oracle(x_ND, y_N):
    """Offsets and variances of one target's classes, in float64, by plain means."""
    offset_KD = [x_ND[y_N == k].mean(axis=0) - x_ND.mean(axis=0) for k in (0, 1)]
    variance_KD = [x_ND[y_N == k].var(axis=0) for k in (0, 1)]
    return np.array(offset_KD), np.array(variance_KD)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_moments_equal_float64_loops(toy, fake_store, offset):
    """At an offset of 1e3 a naive E x^2 - (E x)^2 in float32 has no correct digit left."""
    h_NLPD = toy.h_NLPD[:, 1:] + np.float32(offset)
    found = _collect(fake_store(h_NLPD, toy.ids), toy.data)
    x_NLPD = h_NLPD.astype(np.float64)
    assert (found.weight == 200).all()
    np.testing.assert_allclose(found.mean_D, x_NLPD.mean(axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.variance_D, x_NLPD.var(axis=0), rtol=5e-6)
    for i in range(4):
        for p in range(2):
            x_ND = x_NLPD[:, i, p]
            covariance_DD = np.cov(x_ND.T, ddof=0)
            atol = 2e-6 * covariance_DD.max()
            np.testing.assert_allclose(found.covariance_DD[i, p], covariance_DD, rtol=0, atol=atol)
            unit_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
            np.testing.assert_allclose(found.unit_D[i, p], unit_ND.mean(axis=0), atol=1e-6)
            for m in range(3):
                y_N = toy.y_NM[:, m]
                counts = [(y_N == 0).sum(), (y_N == 1).sum()]
                np.testing.assert_array_equal(found.class_weight_MK[i, p, m], counts)
                offset_KD, variance_KD = _oracle(x_ND, y_N)
                np.testing.assert_allclose(
                    found.class_offset_MKD[i, p, m], offset_KD, rtol=0, atol=3e-6
                )
                np.testing.assert_allclose(
                    found.class_variance_MKD[i, p, m], variance_KD, rtol=1e-5
                )


@pytest.mark.parametrize("block_rows", [1, 64, 999])
def test_block_size_does_not_matter(toy, fake_store, block_rows):
    expected = _collect(fake_store(toy.h_NLPD, toy.ids, block_rows=50), toy.data)
    _assert_close(_collect(fake_store(toy.h_NLPD, toy.ids, block_rows), toy.data), expected)


def test_row_order_does_not_matter(toy, fake_store, fake_data):
    expected = _collect(fake_store(toy.h_NLPD, toy.ids), toy.data)
    order = np.random.default_rng(5).permutation(len(toy.ids))
    data = fake_data([toy.ids[n] for n in order], toy.y_NM[order])
    _assert_close(_collect(fake_store(toy.h_NLPD, toy.ids, seed=9), data), expected)


def test_rows_of_the_store_that_are_not_in_the_data_count_for_nothing(toy, fake_store, fake_data):
    used = np.arange(200) % 3 > 0
    ids = [name for name, use in zip(toy.ids, used, strict=True) if use]
    data = fake_data(ids, toy.y_NM[used])
    h_NLPD = np.where(used[:, None, None, None], toy.h_NLPD, np.float32(1e6))
    expected = _collect(fake_store(toy.h_NLPD[used], ids), data)
    _assert_close(_collect(fake_store(h_NLPD, toy.ids), data), expected)


def test_a_missing_outcome_is_a_missing_row_of_that_target(toy, fake_store, fake_data):
    """Class means and variances; totals keep the row."""
    found = _collect(fake_store(toy.h_NLPD, toy.ids), toy.data)
    observed = np.isfinite(toy.y_NM[:, 1])
    ids = [name for name, seen in zip(toy.ids, observed, strict=True) if seen]
    alone = _collect(
        fake_store(toy.h_NLPD[observed], ids), fake_data(ids, toy.y_NM[observed][:, 1:2])
    )
    assert (found.weight == 200).all() and (alone.weight == observed.sum()).all()
    np.testing.assert_array_equal(found.class_weight_MK[:, :, 1], alone.class_weight_MK[:, :, 0])
    means = found.class_offset_MKD[:, :, 1] + found.mean_D[:, :, None]
    means_alone = alone.class_offset_MKD[:, :, 0] + alone.mean_D[:, :, None]
    np.testing.assert_allclose(means, means_alone, atol=2e-6)
    np.testing.assert_allclose(
        found.class_variance_MKD[:, :, 1], alone.class_variance_MKD[:, :, 0], rtol=1e-5, atol=1e-9
    )


def test_an_integer_weight_is_a_repeated_row(toy):
    """What a bootstrap with Poisson weights relies on."""
    h_LPRD = toy.h_NLPD[:60].transpose(1, 2, 0, 3)
    y_RM = toy.y_NM[:60]
    weight_R = np.random.default_rng(1).poisson(1.0, 60).astype(np.float32)
    again = np.repeat(np.arange(60), weight_R.astype(int))

    def of(h_LPRD, weight_R, y_RM):
        state = begin(h_LPRD, weight_R, y_RM, gram=True)
        return jax.tree.map(np.asarray, finish(update(state, h_LPRD, weight_R, y_RM)))

    found = of(h_LPRD, weight_R, y_RM)
    expected = of(h_LPRD[:, :, again], np.ones(len(again), np.float32), y_RM[again])
    rows = dict(unit_rows=expected.unit_rows)  # The effective number of rows differs on purpose.
    _assert_close(found._replace(**rows), expected, rtol=5e-6)
    np.testing.assert_allclose(found.unit_rows, weight_R.sum() ** 2 / (weight_R**2).sum(), 1e-5)


def test_no_covariance_unless_asked_and_the_rest_is_the_same(toy, fake_store):
    store = fake_store(toy.h_NLPD, toy.ids)
    slim, full = _collect(store, toy.data, gram=False), _collect(store, toy.data)
    assert slim.covariance_DD is None
    _assert_close(slim._replace(covariance_DD=full.covariance_DD), full, rtol=1e-6)


def test_the_smaller_last_block_compiles_nothing_new(toy, fake_store):
    update.clear_cache()
    _collect(fake_store(toy.h_NLPD, toy.ids, block_rows=64), toy.data)
    assert update._cache_size() == 1


def test_no_array_is_as_large_as_targets_times_width_squared(toy):
    h_LPRD = toy.h_NLPD.transpose(1, 2, 0, 3)
    state = jax.eval_shape(
        lambda h, w, y: begin(h, w, y, gram=True), h_LPRD, np.ones(200, np.float32), toy.y_NM
    )
    n_sites, width = 10, 16
    largest = max(leaf.size for leaf in jax.tree.leaves(state))
    assert largest == n_sites * width**2  # One Gram matrix a site, three targets or not.


def test_compensated_sums_keep_what_float32_drops():
    """A hundred thousand times 0.1 onto 1e8: each single addition is below half a unit."""
    small = np.float32(0.1)

    @jax.jit
    def run(high):
        def body(_, carry):
            return add_compensated(*carry, {"x": small})

        return jax.lax.fori_loop(0, 100_000, body, ({"x": high}, {"x": jnp.float32(0)}))

    high, low = run(jnp.float32(1e8))
    expected = 1e8 + 100_000 * float(small)
    assert float(np.float32(1e8) + small) == 1e8
    assert abs(float(high["x"]) + float(low["x"]) - expected) < 1e-2
    assert float(high["x"]) == np.float32(expected)


def test_class_weights_split_observed_rows():
    weight_R = jnp.array([1.0, 0.0, 2.0, 1.0])
    y_RM = jnp.array([[0.0], [1.0], [1.0], [jnp.nan]])
    np.testing.assert_array_equal(class_weights(weight_R, y_RM), [[[1, 0, 0, 0], [0, 0, 2, 0]]])


def _moments_of(x_RD):
    ones_R = np.ones(len(x_RD), np.float32)
    y_RM = np.zeros((len(x_RD), 1), np.float32)
    h_LPRD = x_RD[None, None].astype(np.float32)
    found = finish(update(begin(h_LPRD, ones_R, y_RM), h_LPRD, ones_R, y_RM))
    return found.mean_D[0, 0], found.variance_D[0, 0]


def test_float_noise_does_not_pass_for_variation():
    rng = np.random.default_rng(0)
    constant_D = rng.normal(size=64).astype(np.float32)
    constant_D[:2] = 1.0 + 2.0**-11, -3.0 - 2.0**-10  # Half-way between two float16.
    exact = np.repeat(constant_D[None], 300, axis=0)
    noisy = exact * (1 + 1e-5 * rng.normal(size=exact.shape))
    stored = noisy.astype(np.float16)
    assert len(np.unique(stored[:, :2])) == 4
    for x_RD in (exact, noisy, stored, np.zeros((300, 64))):
        mean_D, variance_D = _moments_of(x_RD)
        assert is_constant(mean_D, variance_D)
        assert (inverse_scale(mean_D, variance_D) == 0).all()


@pytest.mark.parametrize("offset, spread", [(0.0, 1e-6), (1e3, 1.0), (100.0, 0.1)])
def test_small_variation_is_variation(offset, spread):
    x_RD = offset + spread * np.random.default_rng(0).normal(size=(300, 64))
    mean_D, variance_D = _moments_of(x_RD)
    assert not is_constant(mean_D, variance_D)
    deviation_D = x_RD.astype(np.float32).astype(np.float64).std(axis=0)
    np.testing.assert_allclose(inverse_scale(mean_D, variance_D), 1 / deviation_D, rtol=1e-4)


def test_a_constant_column_of_a_varying_state_has_no_scale():
    x_RD = np.random.default_rng(0).normal(size=(300, 8))
    x_RD[:, 2], x_RD[:, 5] = 0.7, 0.0
    inverse_D = np.asarray(inverse_scale(*_moments_of(x_RD)))
    assert set(np.flatnonzero(inverse_D == 0)) == {2, 5}


def test_fisher_trace_closed_forms():
    weight_K = jnp.array([10.0, 30.0])
    offset_KD = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    variance_KD = jnp.array([[1.0, 2.0], [0.5, 1.5]])
    assert fisher_trace(weight_K, offset_KD, variance_KD) == 5.0
    assert fisher_trace(weight_K, offset_KD[::-1], variance_KD[::-1]) == 5.0
    assert jnp.isnan(fisher_trace(jnp.array([1.0, 39.0]), offset_KD, variance_KD))
    assert jnp.isnan(fisher_trace(weight_K, 0 * offset_KD, 0 * variance_KD))
    assert jnp.isinf(fisher_trace(weight_K, offset_KD, 0 * variance_KD))


@pytest.mark.parametrize("width", [255, 256, 301])
def test_a_wide_gram_matrix_made_of_halves_is_the_whole(width):
    rng = np.random.default_rng(width)
    x_LPRD = rng.normal(3.0, 1.0, size=(1, 2, 90, width)).astype(np.float32)
    weight_R = (rng.random(90) < 0.7).astype(np.float32)
    y_RM = np.ones((90, 1), np.float32)
    state = update(begin(x_LPRD, weight_R, y_RM, gram=True), x_LPRD, weight_R, y_RM)
    found = np.asarray(finish(state).covariance_DD)
    np.testing.assert_allclose(found, found.transpose(0, 1, 3, 2), atol=1e-6)
    for p in range(2):
        used = x_LPRD[0, p, weight_R > 0].astype(np.float64)
        np.testing.assert_allclose(found[0, p], np.cov(used.T, ddof=0), atol=2e-5)
