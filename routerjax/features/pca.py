"""Standardise + PCA, fitted on streamed training rows.

Columns are standardised by their own mean and (population) standard deviation, then rotated onto
the principal components of what results, without whitening: the published recipe. Up to
EXACT_WIDTH columns the components come from the covariance's eigenvectors, beyond that from a
randomized subspace iteration (sketch.py) that never holds anything wider than the sketch.

Both square the condition number: in float32, components whose standard deviation is below about
1/100 of the largest one's are lost. The rank is cut there.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.encoder.selection import Selection
from routerjax.features import moments as moments_lib
from routerjax.features.row_blocks import AlignedOutcomes, RowBlock, fold, least_variation, stream
from routerjax.features.sketch import leading_components
from routerjax.stats.numerics import EPS, HIGHEST, inverse_scale
from routerjax.store.store import ActivationStore

logger = logging.getLogger(__name__)

# Starts a pass over row blocks.
Pass = Callable[[], Iterable[RowBlock]]

# Widest concatenation whose covariance is formed and diagonalised: 64 MiB, seconds on a CPU.
EXACT_WIDTH = 4096


class Axes(NamedTuple):
    """Where one (layer, pooling) is projected to.

    Attributes:
      mean_D: [D] what is subtracted.
      inverse_scale_D: [D] what is multiplied by then; 0 for columns that do not vary.
      components_DC: [D, C] orthonormal columns, by decreasing variance; 0 beyond the rank.
    """

    mean_D: jax.Array
    inverse_scale_D: jax.Array
    components_DC: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Pca:
    """Standardise + PCA of S concatenated sites, a site being one (layer, pooling).

    Attributes:
      mean_SD: [S, D] float32 column means.
      scale_SD: [S, D] float32 standard deviations (ddof 0); 1 for columns that do not vary.
      components_SDC: [S, D, C] float32, orthonormal over (S, D) together (but for those of
        `fit_averaged_pca`); 0 in those columns. The loading of largest magnitude of each component
        is positive.
      eigenvalues_C: [C] float32 variances along the components (ddof 1, as scikit-learn's
        `explained_variance_`).
      total_variance: Sum of all eigenvalues, kept or not.
      residual: Largest |A v - lambda v| / lambda of the kept components; 0 where exact. It bounds
        the relative error of each eigenvalue.
    """

    mean_SD: np.ndarray
    scale_SD: np.ndarray
    components_SDC: np.ndarray
    eigenvalues_C: np.ndarray
    total_variance: float
    residual: float


def project(x_RD: jax.Array, axes: Axes) -> jax.Array:
    """PCA features of rows of one (layer, pooling).

    Centred before it is multiplied: folding the mean into a bias would cancel where it is large.

    Args:
      x_RD: [R, D] states.
      axes: Of the same (layer, pooling).

    Returns:
      [R, C].
    """
    z_RD = (x_RD - axes.mean_D[None]) * axes.inverse_scale_D[None]
    return jnp.einsum("rd,dc->rc", z_RD, axes.components_DC, precision=HIGHEST)


def principal_components(
    covariance_DD: jax.Array, inverse_scale_D: jax.Array, width: int
) -> tuple[jax.Array, jax.Array]:
    """Principal components of standardised columns, from the covariance of the raw ones.

    Args:
      covariance_DD: [D, D].
      inverse_scale_D: [D] 1 / standard deviation, 0 for columns to leave out.
      width: C, components wanted.

    Returns:
      components_DC, with fixed signs and 0 beyond the rank, and all eigenvalues_D in descending
      order, as computed (rounding can leave the smallest just below 0).
    """
    correlation_DD = covariance_DD * (inverse_scale_D[:, None] * inverse_scale_D[None, :])
    eigenvalues_D, vectors_DD = jnp.linalg.eigh(correlation_DD)
    eigenvalues_D, vectors_DD = eigenvalues_D[::-1], vectors_DD[:, ::-1]
    kept_C = jnp.arange(width) < rank(eigenvalues_D)
    # A column left out has loadings of rounding size, which its raw values would multiply.
    kept_DC = (inverse_scale_D[:, None] > 0) & kept_C[None]
    return jnp.where(kept_DC, fix_signs(vectors_DD[:, :width]), 0.0), eigenvalues_D


def rank(eigenvalues_D: jax.Array) -> jax.Array:
    """Number of eigenvalues that float32 rounding cannot account for.

    The floor is 8 sqrt(D) eps x the largest: what the products and eigh of a D x D matrix leave in
    place of a zero.

    Args:
      eigenvalues_D: [D], any order.

    Returns:
      [] int32.
    """
    return (eigenvalues_D > _noise(eigenvalues_D.max(), eigenvalues_D.size)).sum()


def fix_signs(components_EC: jax.Array) -> jax.Array:
    """Turns each column so that its entry of largest magnitude is positive."""
    at_C = jnp.abs(components_EC).argmax(axis=0)
    largest_1C = jnp.take_along_axis(components_EC, at_C[None], axis=0)
    return components_EC * jnp.where(largest_1C < 0, -1.0, 1.0)


def fit_pca(
    store: ActivationStore,
    rows: AlignedOutcomes,
    selection: Selection,
    width: int,
    exact_width: int = EXACT_WIDTH,
) -> Pca:
    """Fits standardise + PCA on the used rows of a store.

    Sites are concatenated one row block at a time at most. A narrower fit has the leading
    components of a wider one.

    Args:
      store: The hidden states.
      rows: Weights in store order.
      selection: The sites, which are concatenated layer by layer.
      width: Components wanted; fewer are returned, and a warning logged, where the rows have a
        smaller rank.
      exact_width: Largest number of columns to diagonalise the covariance of.

    Returns:
      The fitted `Pca`.

    Raises:
      ValueError: There are fewer than two rows, or nothing varies over them.
    """
    blocks = functools.partial(stream, store, rows, selection)
    shape, least = (selection.n_sites, store.width), least_variation(store)
    pca = _fit(blocks, rows.n_used, shape, width, exact_width, least)
    return _within_rank(pca, rows, selection, width)


def fit_averaged_pca(
    store: ActivationStore, rows: AlignedOutcomes, selection: Selection, width: int
) -> Pca:
    """Fits standardise + PCA of the mean over layers, each site standardised by itself.

    Args: As in `fit_pca`; with several poolings their means are concatenated.

    Returns:
      The map from the sites themselves: the components of each are those of the mean, divided by
      its scale and the number of layers, and so not orthonormal.

    Raises:
      ValueError: As `fit_pca`.
    """
    n_layers, n_poolings = selection.shape
    moments = moments_lib.collect(store, rows, selection)
    mean_SD, inverse_scale_SD = _in_states_units(moments, *_by_site(moments, selection.n_sites))
    sites = [x.reshape(n_layers, n_poolings, -1) for x in (mean_SD, inverse_scale_SD)]

    def averaged() -> Iterator[RowBlock]:
        for h_LPRD, weight_R, y_RM in stream(store, rows, selection):
            yield np.asarray(_average(h_LPRD, *sites)), weight_R, y_RM

    shape, least = (n_poolings, store.width), least_variation(store)
    pca = _fit(averaged, rows.n_used, shape, width, EXACT_WIDTH, least)
    of_mean = _within_rank(pca, rows, selection, width)
    components_PDC = of_mean.components_SDC / (n_layers * of_mean.scale_SD[:, :, None])
    varies_SD = np.asarray(inverse_scale_SD) > 0
    return dataclasses.replace(
        of_mean,
        mean_SD=np.asarray(mean_SD),
        scale_SD=_scale(np.asarray(inverse_scale_SD)),
        components_SDC=np.tile(components_PDC, (n_layers, 1, 1)) * varies_SD[:, :, None],
    )


def _within_rank(pca: Pca, rows: AlignedOutcomes, selection: Selection, width: int) -> Pca:
    """The components that the rows have; a warning where they are fewer than wanted."""
    n_kept = min(int(np.count_nonzero(pca.eigenvalues_C)), rows.n_used - 1)
    if n_kept == 0:
        raise ValueError(
            f"the hidden states {list(selection.layers)} with poolings "
            f"{list(selection.poolings)} are constant over "
            f"all {rows.n_used} rows: choose others"
        )
    if n_kept < width:
        logger.warning(
            "PCA: %d components wanted, but %d rows of %d columns have rank %d: using that",
            width, rows.n_used, pca.mean_SD.size, n_kept,
        )  # fmt: skip
    return dataclasses.replace(
        pca,
        components_SDC=pca.components_SDC[:, :, :n_kept],
        eigenvalues_C=pca.eigenvalues_C[:n_kept],
    )


def _noise(largest: jax.Array, n_columns: int) -> jax.Array:
    """The size up to which an eigenvalue may be rounding of the largest one's matrix."""
    return 8 * math.sqrt(n_columns) * EPS * jnp.maximum(largest, 0.0)


def _fit(
    blocks: Pass, n_rows: int, shape: tuple[int, int], width: int, exact_width: int, least: float
) -> Pca:
    """Of the concatenated sites of all row blocks; the shape is (S, D)."""
    if n_rows < 2:
        raise ValueError(f"data: PCA needs at least 2 rows, got {n_rows}")
    n_columns = math.prod(shape)
    if n_columns > exact_width:
        return _fit_sketched(blocks, n_rows, shape[0], width, least)
    return _fit_exact(blocks, n_rows, shape[0], min(width, n_columns), least)


def _fit_exact(blocks: Pass, n_rows: int, n_sites: int, width: int, least: float) -> Pca:
    """By the covariance of the concatenated columns, which makes them one wide site."""
    start = functools.partial(moments_lib.begin, gram=True)
    sums = fold(map(_concatenated, blocks()), start, moments_lib.update)
    moments = moments_lib.finish(sums, least)
    return _pca(n_rows, *_solve(moments, n_sites, width))


def _fit_sketched(blocks: Pass, n_rows: int, n_sites: int, width: int, least: float) -> Pca:
    """By a sketch, after one pass for means and scales."""
    sums = fold(blocks(), moments_lib.begin, moments_lib.update)
    moments = moments_lib.finish(sums, least)
    mean_SD, inverse_scale_SD = _in_states_units(moments, *_by_site(moments, n_sites))
    result = leading_components(blocks, mean_SD, inverse_scale_SD, width)
    return _pca(n_rows, mean_SD, inverse_scale_SD, *_clean(inverse_scale_SD, *result))


@jax.jit
def _average(h_LPRD: jax.Array, mean_LPD: jax.Array, inverse_scale_LPD: jax.Array) -> jax.Array:
    """[1, P, R, D] mean over layers of standardised states."""
    z_LPRD = (h_LPRD - mean_LPD[:, :, None]) * inverse_scale_LPD[:, :, None]
    return z_LPRD.mean(axis=0, keepdims=True)


@functools.partial(jax.jit, static_argnames=("n_sites", "width"))
def _solve(moments: moments_lib.Moments, n_sites: int, width: int) -> tuple[jax.Array, ...]:
    """mean_SD, inverse_scale_SD, components_EC, eigenvalues_C and residual of one wide site."""
    mean_SD, inverse_scale_SD = _by_site(moments, n_sites)
    assert moments.covariance_DD is not None
    components_EC, eigenvalues_E = principal_components(
        moments.covariance_DD[0, 0], inverse_scale_SD.reshape(-1), width
    )
    kept_C = jnp.arange(width) < rank(eigenvalues_E)
    eigenvalues_C = jnp.where(kept_C, eigenvalues_E[:width], 0.0)
    mean_SD, inverse_scale_SD = _in_states_units(moments, mean_SD, inverse_scale_SD)
    return mean_SD, inverse_scale_SD, components_EC, eigenvalues_C, jnp.float32(0)


@jax.jit
def _clean(
    inverse_scale_SD: jax.Array,
    components_EC: jax.Array,
    eigenvalues_C: jax.Array,
    residual_C: jax.Array,
) -> tuple[jax.Array, ...]:
    """components_EC, eigenvalues_C and relative residual of a sketch, held to what `_solve` is."""
    kept_C = eigenvalues_C > _noise(eigenvalues_C.max(), components_EC.shape[0])
    residual = jnp.where(kept_C, residual_C / eigenvalues_C, 0.0).max()
    components_EC = fix_signs(components_EC) * (inverse_scale_SD.reshape(-1, 1) > 0)
    return components_EC, jnp.where(kept_C, eigenvalues_C, 0.0), residual


@functools.partial(jax.jit, static_argnames="n_sites")
def _by_site(moments: moments_lib.Moments, n_sites: int) -> tuple[jax.Array, jax.Array]:
    """mean_SD and inverse_scale_SD in the units of the moments.

    Each site on its own, as one may be constant beside others.
    """
    mean_SD = moments.mean_D.reshape(n_sites, -1)
    of_site = jax.vmap(inverse_scale, (0, 0, None))
    variance_SD = moments.variance_D.reshape(n_sites, -1)
    return mean_SD, of_site(mean_SD, variance_SD, moments.least.reshape(-1)[0])


@jax.jit
def _in_states_units(
    moments: moments_lib.Moments, mean_SD: jax.Array, inverse_scale_SD: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The same in the units of the states: exact, as the moments' are powers of two."""
    unit_S1 = jnp.broadcast_to(moments.unit.reshape(-1, 1), (len(mean_SD), 1))
    return mean_SD / unit_S1, inverse_scale_SD * unit_S1


def _pca(
    n_rows: int,
    mean_SD: Any,
    inverse_scale_SD: Any,
    components_EC: Any,
    eigenvalues_C: Any,
    residual: Any,
) -> Pca:
    """To the host, variances as scikit-learn states them."""
    mean_SD, inverse_scale_SD, components_EC, eigenvalues_C = map(
        np.asarray, (mean_SD, inverse_scale_SD, components_EC, eigenvalues_C)
    )
    varies_SD = inverse_scale_SD > 0
    ddof = n_rows / (n_rows - 1)
    return Pca(
        mean_SD,
        _scale(inverse_scale_SD),
        components_EC.reshape(*mean_SD.shape, -1),
        (eigenvalues_C * ddof).astype(np.float32),
        # Each standardised column has variance 1.
        float(varies_SD.sum() * ddof),
        float(residual),
    )


def _scale(inverse_scale_SD: np.ndarray) -> np.ndarray:
    """Standard deviations; 1 for columns that do not vary."""
    ones_SD = np.ones_like(inverse_scale_SD)
    return np.divide(1.0, inverse_scale_SD, out=ones_SD, where=inverse_scale_SD > 0)


def _concatenated(block: RowBlock) -> RowBlock:
    """A block as one site [1, 1, R, S * D], columns in the order (layer, pooling, dimension)."""
    h_LPRD, weight_R, y_RM = block
    n_rows = h_LPRD.shape[2]
    x_RE = h_LPRD.transpose(2, 0, 1, 3).reshape(n_rows, -1)
    return x_RE[None, None], weight_R, y_RM
