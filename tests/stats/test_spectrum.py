"""Dimensions in use: closed forms, bounds, and two ways to one number."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routerjax.stats.spectrum import anisotropy, d_eff, d_eff_trace, entropy_dim, n_components

_spectra = st.lists(st.floats(1e-4, 1e4), min_size=12, max_size=12).map(np.float32)


def _covariance(eigenvalues_D, seed=0):
    width = len(eigenvalues_D)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]
    return np.float32(rotation * eigenvalues_D @ rotation.T)


@pytest.mark.parametrize("k", [1, 2, 19, 20])
@pytest.mark.parametrize("size", [1e-12, 3.0, 1e12])
def test_k_equal_eigenvalues_are_k_dimensions(k, size):
    eigenvalues_D = np.float32([size] * k + [0.0] * (20 - k))
    assert d_eff(eigenvalues_D) == pytest.approx(k, rel=1e-5)
    assert entropy_dim(eigenvalues_D) == pytest.approx(k, rel=1e-5)
    assert n_components(eigenvalues_D) == np.ceil(0.95 * k)
    assert d_eff_trace(_covariance(eigenvalues_D)) == pytest.approx(k, rel=1e-5)


def test_a_known_spectrum():
    """4, 2, 1, 1: (8)^2 / 22; entropy of 1/2, 1/4, 1/8, 1/8 is 1.75 bits."""
    eigenvalues_D = np.float32([1, 4, 1, 2])
    assert d_eff(eigenvalues_D) == pytest.approx(64 / 22)
    assert entropy_dim(eigenvalues_D) == pytest.approx(2**1.75)
    assert [float(n_components(eigenvalues_D, share)) for share in (0.5, 0.51, 0.75, 0.9)] == [
        1, 2, 2, 4,
    ]  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(_spectra)
def test_bounds_and_order(eigenvalues_D):
    """1 <= d_eff <= entropy_dim <= D (Renyi entropies of orders 2 and 1)."""
    two, one = float(d_eff(eigenvalues_D)), float(entropy_dim(eigenvalues_D))
    assert 1 - 1e-5 <= two <= one * (1 + 1e-4) <= 12 * (1 + 2e-4)
    assert 1 <= n_components(eigenvalues_D) <= 12


@settings(max_examples=30, deadline=None)
@given(_spectra, st.permutations(range(12)), st.sampled_from([0.125, 64.0]))
def test_order_and_scale_of_the_eigenvalues_do_not_matter(eigenvalues_D, order, scale):
    other_D = scale * eigenvalues_D[order]
    for measure in (d_eff, entropy_dim, n_components):
        assert measure(other_D) == pytest.approx(float(measure(eigenvalues_D)), rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(_spectra, st.integers(0, 1000))
def test_trace_and_eigenvalues_agree(eigenvalues_D, seed):
    covariance_DD = _covariance(eigenvalues_D, seed)
    by_eigenvalues = d_eff(np.linalg.eigvalsh(covariance_DD))
    assert d_eff_trace(covariance_DD) == pytest.approx(float(by_eigenvalues), rel=1e-5)


@pytest.mark.slow
def test_dimensions_are_real_at_full_width():
    """4096 wide: float32 sums of 16 million squares must not drift."""
    scale_D = np.geomspace(1, 1e-3, 4096)
    covariance_DD = np.diag(np.float32(scale_D)) + np.float32(1e-4)
    exact = covariance_DD.astype(np.float64)
    expected = np.trace(exact) ** 2 / np.square(exact).sum()
    assert d_eff_trace(covariance_DD) == pytest.approx(expected, rel=1e-5)


def test_rounding_below_zero_counts_for_nothing():
    eigenvalues_D = np.float32([2.0, 1.0, -1e-9, 1e-9])
    clean_D = np.float32([2.0, 1.0, 0.0, 0.0])
    for measure in (entropy_dim, n_components):
        assert measure(eigenvalues_D) == measure(clean_D)


def test_no_variance_is_nan():
    zeros_D = jnp.zeros(5)
    for measure in (d_eff, entropy_dim, n_components):
        assert np.isnan(measure(zeros_D))
    assert np.isnan(d_eff_trace(jnp.zeros((5, 5))))


@pytest.mark.parametrize("offset", [0.0, 0.3, 50.0])
def test_anisotropy_is_the_mean_cosine_over_pairs(offset):
    x_ND = np.random.default_rng(0).normal(size=(60, 7)) + offset
    unit_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    cosines = (unit_ND @ unit_ND.T)[np.triu_indices(60, 1)]
    found = anisotropy(np.float32(unit_ND.mean(axis=0)), np.float32(60))
    assert found == pytest.approx(cosines.mean(), abs=1e-6)


def test_anisotropy_by_hand():
    opposite = np.float32([0.0, 0.0])  # Two rows that point opposite ways.
    same = np.float32([0.6, 0.8])
    assert anisotropy(opposite, np.float32(2)) == -1
    assert anisotropy(same, np.float32(9)) == pytest.approx(1)
    assert np.isnan(anisotropy(same, np.float32(1)))
