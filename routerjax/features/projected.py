"""The second pass: classes of every target after PCA, with their pooled C x C covariance.

Before PCA a covariance per target would be D x D; after it C x C is small. Targets observed on the
same rows share one matrix of products (usually all of them do), because class means turn it into
each one's within-class covariance.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.encoder.selection import Selection
from routerjax.features.moments import class_weights
from routerjax.features.pca import Axes, project
from routerjax.features.row_blocks import AlignedOutcomes, fold, stream
from routerjax.stats.numerics import EPS, HIGHEST, add_compensated, same_rows, variance
from routerjax.store.store import ActivationStore


class ProjectedSums(NamedTuple):
    """Sums of PCA features z over rows, for one (layer, pooling). K = 2: wrong, correct.

    Attributes:
      class_weight_MK: [M, 2] sum of w.
      class_first_MKC: [M, 2, C] sum of w z.
      class_square_MKC: [M, 2, C] sum of w z^2.
      gram_UCC: [U, C, C] sum of w z z' over the rows observed in pattern u.
    """

    class_weight_MK: jax.Array
    class_first_MKC: jax.Array
    class_square_MKC: jax.Array
    gram_UCC: jax.Array


class Projected(NamedTuple):
    """Classes in the PCA space of one (layer, pooling); stacked [L, P] by `collect_projected`.

    Attributes:
      class_weight_MK: [M, 2] rows of class 0 (wrong) and 1 (correct).
      class_mean_MKC: [M, 2, C]; the mean over all rows is 0. NaN for a class without rows.
      class_variance_MKC: [M, 2, C] population variance within each class.
      gram_UCC: [U, C, C] sums of z z' over the rows observed in pattern u.
    """

    class_weight_MK: jax.Array
    class_mean_MKC: jax.Array
    class_variance_MKC: jax.Array
    gram_UCC: jax.Array


def observed_patterns(rows: AlignedOutcomes) -> tuple[np.ndarray, np.ndarray]:
    """Which targets are observed on exactly the same used rows.

    Args:
      rows: Weights and outcomes.

    Returns:
      columns_U: [U] the first target of each pattern, ascending; pattern_M: [M] each target's
        pattern.
    """
    column_U, pattern_M = same_rows(np.isfinite(rows.y_NM) & (rows.weight_N[:, None] > 0))
    order_U = np.argsort(column_U)
    return column_U[order_U], np.argsort(order_U).astype(np.int32)[pattern_M]


def pooled_within(weight_K: jax.Array, mean_KC: jax.Array, gram_CC: jax.Array) -> jax.Array:
    """Pooled within-class covariance of one target.

    S_w = (sum z z' - n0 mu0 mu0' - n1 mu1 mu1') / (n0 + n1): class covariances weighted by their
    share of the rows.

    Args:
      weight_K: [2] rows of each class.
      mean_KC: [2, C] class means.
      gram_CC: [C, C] sum of z z' over the rows of both classes.

    Returns:
      [C, C]; exactly 0 in dimensions that do not vary within the classes.
    """
    between_CC = jnp.einsum("k,kc,ke->ce", weight_K, mean_KC, mean_KC, precision=HIGHEST)
    within_CC = (gram_CC - between_CC) / weight_K.sum()
    # As for variances: what is left of a difference of equals is rounding.
    varies_C = jnp.diagonal(within_CC) > 4 * EPS * jnp.diagonal(gram_CC) / weight_K.sum()
    return jnp.where(varies_C[:, None] & varies_C[None, :], within_CC, 0.0)


def collect_projected(
    store: ActivationStore,
    rows: AlignedOutcomes,
    selection: Selection,
    axes: Axes,
    columns_U: np.ndarray,
) -> Projected:
    """Streams a store once more and returns the classes in PCA spaces.

    Args:
      store: The hidden states.
      rows: Weights and outcomes in store order.
      selection: The sites.
      axes: With leading axes [L, P], from the first pass.
      columns_U: [U] of `observed_patterns`.

    Returns:
      `Projected` on the device with leading axes [L, P].
    """
    n_layers, n_poolings, _, width = axes.components_DC.shape
    shape = (n_layers, n_poolings)
    n_targets = len(rows.targets)
    zeros = ProjectedSums(
        jnp.zeros((*shape, n_targets, 2)),
        jnp.zeros((*shape, n_targets, 2, width)),
        jnp.zeros((*shape, n_targets, 2, width)),
        jnp.zeros((*shape, len(columns_U), width, width)),
    )

    def step(carry, *block):
        return _update(carry, *block, axes, columns_U)

    blocks = stream(store, rows, selection)
    sums, _ = fold(blocks, lambda *_: (zeros, jax.tree.map(jnp.zeros_like, zeros)), step)
    return _finish(sums)


def projected_sums(
    x_RD: jax.Array, axes: Axes, weight_R: jax.Array, y_RM: jax.Array, columns_U: jax.Array
) -> ProjectedSums:
    """Sums of one block for one (layer, pooling).

    Args:
      x_RD: [R, D] its states.
      axes: Its axes.
      weight_R: [R] weights.
      y_RM: [R, M] outcomes.
      columns_U: [U] of `observed_patterns`.
    """
    z_RC = project(x_RD, axes)

    def of_class(w_R: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        first_C, square_C = (
            jnp.einsum("r,rc->c", w_R, power_RC, precision=HIGHEST)
            for power_RC in (z_RC, jnp.square(z_RC))
        )
        return w_R.sum(), first_C, square_C

    def products(w_R: jax.Array) -> jax.Array:
        return jnp.einsum("rc,re->ce", w_R[:, None] * z_RC, z_RC, precision=HIGHEST)

    observed_UR = jnp.where(jnp.isfinite(y_RM[:, columns_U]), weight_R[:, None], 0.0).T
    return ProjectedSums(
        *jax.vmap(jax.vmap(of_class))(class_weights(weight_R, y_RM)),
        jax.vmap(products)(observed_UR),
    )


def projected_of(sums: ProjectedSums) -> Projected:
    """The classes that the sums of one (layer, pooling) stand for."""
    rows_MK1 = sums.class_weight_MK[:, :, None]
    mean_MKC = sums.class_first_MKC / rows_MK1
    return Projected(
        sums.class_weight_MK,
        mean_MKC,
        variance(sums.class_square_MKC / rows_MK1, mean_MKC),
        sums.gram_UCC,
    )


@functools.partial(jax.jit, donate_argnums=0)
def _update(carry, h_LPRD, weight_R, y_RM, axes, columns_U):
    over_poolings = jax.vmap(projected_sums, in_axes=(0, 0, None, None, None))
    over_layers = jax.vmap(over_poolings, in_axes=(0, 0, None, None, None))
    high, low = carry
    return add_compensated(high, low, over_layers(h_LPRD, axes, weight_R, y_RM, columns_U))


@jax.jit
def _finish(sums: ProjectedSums) -> Projected:
    return jax.vmap(jax.vmap(projected_of))(sums)
