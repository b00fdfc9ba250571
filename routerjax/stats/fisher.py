"""Fisher separability J of one target's correct and wrong rows, in its four variants.

Each is a pure function of the statistics of one (layer, pooling, target); the feature space (raw,
standardised, PCA) is decided by what statistics go in. All but `fisher_ridge` are biased upwards on
few rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from routerjax.stats.numerics import EPS, HIGHEST

# Share of the isotropic matrix of equal trace mixed into the within-class covariance. Enough to
# invert it safely in float32; more, on thousands of rows, makes J a worse guide to AUC.
SHRINKAGE = 0.01

# What `fisher_ridge` adds to each variance of standardised states, whose mean is 1. Of 0.1 to 10,
# on thousands of rows, it orders the layers most like cross-validated AUC (docs/comparison.md).
RIDGE = 1.0


def fisher_mean(weight_K: jax.Array, offset_KD: jax.Array, variance_KD: jax.Array) -> jax.Array:
    """Mean over dimensions of (mu1 - mu0)^2 / (v0 + v1).

    Dimensions that do not vary at all are left out of the mean. Scaling dimensions changes nothing,
    so this is the same number on raw and on standardised states.

    Args:
      weight_K: [2] rows of the wrong and of the correct class.
      offset_KD: [2, D] class means, about any common origin.
      variance_KD: [2, D] variances within the classes.

    Returns:
      [] J >= 0; NaN with fewer than two rows in a class, or where nothing varies; infinite where
      the classes differ in a dimension in which neither varies.
    """
    gap_D = jnp.square(offset_KD[1] - offset_KD[0])
    spread_D = variance_KD.sum(axis=0)
    varies_D = (gap_D > 0) | (spread_D > 0)
    ratio_D = jnp.where(varies_D, gap_D / spread_D, 0.0)
    return where_two_rows(weight_K, ratio_D.sum() / varies_D.sum())


def fisher_lda(
    weight_K: jax.Array,
    offset_KC: jax.Array,
    within_CC: jax.Array,
    shrinkage: float | jax.Array = SHRINKAGE,
) -> jax.Array:
    """The criterion of linear discriminant analysis: (mu1 - mu0)' Sw^-1 (mu1 - mu0).

    Sw is the pooled within-class covariance, shrunk towards the isotropic one of equal trace:
    (1 - g) Sw + g (tr Sw / C) I, as scikit-learn's LinearDiscriminantAnalysis does with a number
    for `shrinkage`. Without shrinkage this is the squared Mahalanobis distance of the means; the
    condition number of Sw then bounds what float32 can resolve.

    Args:
      weight_K, offset_KC: As in `fisher_mean`.
      within_CC: [C, C] pooled within-class covariance; rows of zeros (beyond the rank of the PCA)
        are left out.
      shrinkage: g in [0, 1].

    Returns:
      [] J >= 0; NaN with fewer than two rows in a class, or where nothing varies; infinite where
      the classes differ in a dimension in which neither varies.
    """
    gap_C = offset_KC[1] - offset_KC[0]
    spread_C = jnp.diagonal(within_CC)
    varies_C = spread_C > 0
    average = spread_C.sum() / varies_C.sum()
    diagonal_C = jnp.where(varies_C, shrinkage * average, 1.0)
    both_CC = varies_C[:, None] & varies_C[None, :]
    shrunk_CC = jnp.where(both_CC, (1 - shrinkage) * within_CC, 0.0) + jnp.diag(diagonal_C)
    # Scaled to a unit diagonal: the factorisation is then as well conditioned as it can be.
    scale_C = jax.lax.rsqrt(jnp.diagonal(shrunk_CC))
    scaled_CC = shrunk_CC * (scale_C[:, None] * scale_C[None, :])
    factor_CC = jnp.linalg.cholesky(scaled_CC)
    z_C = jax.scipy.linalg.solve_triangular(factor_CC, scale_C * gap_C, lower=True)
    value = jnp.where(varies_C.any(), jnp.square(z_C).sum(), jnp.nan)
    unbounded = (~varies_C & (gap_C != 0)).any()
    return where_two_rows(weight_K, jnp.where(unbounded, jnp.inf, value))


def fisher_trace(weight_K: jax.Array, offset_KD: jax.Array, variance_KD: jax.Array) -> jax.Array:
    """Fisher separability by traces: J = |mu1 - mu0|^2 / (tr S0 + tr S1).

    On standardised states this is the J of tables and pictures that name no variant.

    Args: As in `fisher_mean`.

    Returns:
      [] J >= 0; NaN with fewer than two rows in a class, or where nothing varies; infinite where
      the classes differ and neither varies.
    """
    gap = jnp.square(offset_KD[1] - offset_KD[0]).sum()
    return where_two_rows(weight_K, gap / variance_KD.sum())


class Ridge(NamedTuple):
    """What `fisher_ridge` needs of one (layer, pooling) beside a target's classes.

    Attributes:
      whiten_DD: [D, D] W with W (R + g I) W' = I, R the correlation matrix of the states.
      effective_rank: [] tr(R (R + g I)^-1): the dimensions that the ridge leaves.
      ridge: [] g.
    """

    whiten_DD: jax.Array
    effective_rank: jax.Array
    ridge: jax.Array


def ridge_of(correlation_DD: jax.Array, ridge: float = RIDGE) -> Ridge:
    """Factors R + g I, once for all targets.

    Args:
      correlation_DD: [D, D] covariance of all rows' standardised states; rows of zeros (states that
        do not vary) count for nothing.
      ridge: g > 0.
    """
    factor_DD = jnp.linalg.cholesky(correlation_DD + ridge * jnp.eye(len(correlation_DD)))
    whiten_DD = jax.scipy.linalg.solve_triangular(
        factor_DD, jnp.eye(len(correlation_DD)), lower=True
    )
    # R (R + g I)^-1 = I - g (R + g I)^-1, and the inverse is W' W.
    effective_rank = len(correlation_DD) - ridge * jnp.square(whiten_DD).sum()
    effective_rank = jnp.where(jnp.trace(correlation_DD) > 0, effective_rank, 0.0)
    return Ridge(whiten_DD, effective_rank, jnp.float32(ridge))


def fisher_ridge(weight_K: jax.Array, offset_KD: jax.Array, ridge: Ridge) -> jax.Array:
    """Separability that the ridge discriminant is expected to have on rows it has not seen.

    The discriminant fitted on these rows is w = A d, A = (R + g I)^-1, d = mu1 - mu0. Rows deal out
    noise of covariance (1/n0 + 1/n1) R to d, so the gap between the classes along w on further rows
    is d'w less c = (1/n0 + 1/n1) tr(A R) in expectation, and the variance along w is w'Rw, of which
    p (1 - p) (d'w)^2 lies between the classes. J is the square of the gap over the variance within,
    with the gap's sign: Fisher's ratio of one direction, which sees the quiet directions that
    traces drown and gives nothing for dimensions that only fit noise. For normal classes the AUC is
    Phi(sqrt(J / 2)).

    Args:
      weight_K: As in `fisher_mean`.
      offset_KD: [2, D] class means of standardised states, about any common origin.
      ridge: Of the same states.

    Returns:
      [] J, around 0 where nothing separates the classes; NaN with fewer than two rows in a class,
      or where nothing varies; infinite where the classes differ and neither varies.
    """
    whiten_DD, g = ridge.whiten_DD, ridge.ridge
    white_D = jnp.einsum("de,e->d", whiten_DD, offset_KD[1] - offset_KD[0], precision=HIGHEST)
    w_D = jnp.einsum("de,d->e", whiten_DD, white_D, precision=HIGHEST)
    fitted = jnp.square(white_D).sum()
    gap = fitted - (1 / weight_K).sum() * ridge.effective_rank
    # A R A = A - g A A.
    variance = fitted - g * jnp.square(w_D).sum()
    within = variance - weight_K.prod() / jnp.square(weight_K.sum()) * jnp.square(fitted)
    within = jnp.where(within > 16 * EPS * variance, within, 0.0)
    value = jnp.sign(gap) * jnp.square(gap) / within
    return where_two_rows(weight_K, jnp.where(ridge.effective_rank > 0, value, jnp.nan))


def where_two_rows(weight_K: jax.Array, value: jax.Array) -> jax.Array:
    """`value`, or NaN where a class has fewer than the two rows a variance takes."""
    return jnp.where(weight_K.min() >= 2, value, jnp.nan)
