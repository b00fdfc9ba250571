"""The number of dimensions that one layer's states use; needs no labels.

Pure functions of the spectrum or the moments of one (layer, pooling). Scaling or rotating the
states changes none of them, shifting them changes the anisotropy alone.
"""

import jax
import jax.numpy as jnp

from routerjax.stats.numerics import EPS


def d_eff(eigenvalues_D: jax.Array) -> jax.Array:
    """Effective dimensionality, the participation ratio: (sum lambda)^2 / sum lambda^2.

    Args:
      eigenvalues_D: [D] eigenvalues of the covariance, in any order.

    Returns:
      [] between 1 (all variance along one direction) and D (equal in all); NaN where there is none.
    """
    # Scaled, because squares of squares of large or tiny states leave float32's range.
    share_D = eigenvalues_D / eigenvalues_D.sum()
    return 1.0 / jnp.square(share_D).sum()


def d_eff_trace(covariance_DD: jax.Array) -> jax.Array:
    """`d_eff` without eigenvalues, of a covariance [D, D]: (tr C)^2 / |C|_F^2."""
    share_DD = covariance_DD / jnp.trace(covariance_DD)
    return 1.0 / jnp.square(share_DD).sum(axis=1).sum()


def entropy_dim(eigenvalues_D: jax.Array) -> jax.Array:
    """Dimension by spectral entropy: exp(-sum p log p), p = lambda / sum lambda.

    Args:
      eigenvalues_D: [D], in any order; those that are rounding, or below 0, count as 0.

    Returns:
      [] between 1 and D; at least `d_eff`.
    """
    p_D = _shares(eigenvalues_D)
    # p log p is 0 at p = 0, where the logarithm is not; NaN passes through.
    return jnp.exp(-(p_D * jnp.log(jnp.where(p_D == 0, 1.0, p_D))).sum())


def n_components(eigenvalues_D: jax.Array, share: float = 0.95) -> jax.Array:
    """Number of principal components that hold a share of the variance.

    Args:
      eigenvalues_D: [D], in any order; those that are rounding, or below 0, count as 0.
      share: Of the variance, in (0, 1].

    Returns:
      [] float32 the smallest number whose variances add up to it; NaN where there is none.
    """
    p_D = jnp.sort(_shares(eigenvalues_D), descending=True)
    # 19 of 20 equal components are 95 per cent: the sum must not miss that by its last digit.
    enough_D = jnp.cumsum(p_D) >= share * (1 - 1e-6)
    count = jnp.argmax(enough_D) + 1.0
    return jnp.where(jnp.isnan(p_D).any(), jnp.nan, count)


def anisotropy(unit_D: jax.Array, n_rows: jax.Array) -> jax.Array:
    """Mean cosine between two different rows: (n |u|^2 - 1) / (n - 1), u the mean of x / |x|.

    Args:
      unit_D: [D] mean of the rows' directions from the origin.
      n_rows: [] rows in that mean.

    Returns:
      [] 1 where all rows point the same way, 0 where they cancel out; NaN below two rows.
    """
    value = (n_rows * jnp.square(unit_D).sum() - 1) / (n_rows - 1)
    return jnp.where(n_rows > 1, jnp.minimum(value, 1.0), jnp.nan)


def _shares(eigenvalues_D: jax.Array) -> jax.Array:
    """Eigenvalues over their sum; those that are only rounding error count as 0."""
    kept_D = jnp.where(eigenvalues_D > 4 * EPS * eigenvalues_D.max(), eigenvalues_D, 0.0)
    return kept_D / kept_D.sum()
