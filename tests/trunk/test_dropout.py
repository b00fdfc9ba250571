"""Dropout's hashed bits: their share, and that nothing links rows, units or keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax.trunk.dropout import keep, row_keys

N, WIDTH = 4096, 64


def kept(share, seed=0, rows=N, width=WIDTH):
    (mask_RH,) = keep(row_keys(jax.random.key(seed), jnp.arange(rows)), (width,), (share,))
    return np.asarray(mask_RH)


@pytest.mark.parametrize("share", [0.001, 0.2, 0.3, 0.5, 0.9])
def test_the_share_is_dropped_of_all_of_every_row_and_of_every_unit(share):
    dropped_RH = ~kept(share)
    sigma = np.sqrt(share * (1 - share))
    assert dropped_RH.mean() == pytest.approx(share, abs=4 * sigma / np.sqrt(dropped_RH.size))
    for axis, n in ((0, N), (1, WIDTH)):
        # The spread of the means is that of independent draws.
        z = (dropped_RH.mean(axis=axis) - share) * np.sqrt(n) / sigma
        assert z.std() == pytest.approx(1, abs=4 / np.sqrt(2 * len(z)))


def test_nothing_is_dropped_of_a_share_of_nought_and_nothing_drawn_without_units():
    assert kept(0.0).all()
    masks = keep(row_keys(jax.random.key(0), jnp.arange(3)), (0, 5), (0.0, 0.5))
    assert masks[0] is None and masks[1].shape == (3, 5)


def correlations(a_NK, b_NK):
    """Of every column of one with every column of the other, in standard errors."""
    a, b = (x - x.mean(axis=0) for x in (a_NK.astype(float), b_NK.astype(float)))
    r_KK = (a / a.std(axis=0)).T @ (b / b.std(axis=0)) / len(a)
    return r_KK * np.sqrt(len(a))


def test_units_rows_and_keys_are_unrelated():
    mask_RH = kept(0.5)
    of_units = correlations(mask_RH, mask_RH)[np.triu_indices(WIDTH, 1)]
    # 64 rows as columns: neighbours' numbers differ in their lowest bits only.
    wide_HR = kept(0.5, rows=64, width=4096).T
    of_rows = correlations(wide_HR, wide_HR)[np.triu_indices(64, 1)]
    of_keys = correlations(mask_RH, kept(0.5, seed=1))
    shifted = correlations(mask_RH[1:], kept(0.5, seed=1)[:-1])
    for z in (of_units, of_rows, of_keys, shifted):
        assert z.std() == pytest.approx(1, abs=0.1)
        assert np.abs(z).max() < 5.5


def test_a_rows_key_is_its_own_however_rows_are_batched():
    key = jax.random.key(3)
    whole = row_keys(key, jnp.arange(100))
    np.testing.assert_array_equal(row_keys(key, jnp.array([70, 5])), whole[jnp.array([70, 5])])
    assert len(np.unique(whole)) == 100
