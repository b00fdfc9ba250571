"""Cross-validated AUC of cells: all folds, widths and targets of a site, sites over the devices.

A site is the states of one (layer, pooling). Its rows lie fold by fold, each fold padded to the
longest, so that every fold is the same program: Gram matrices of the folds are summed and a fold's
own is taken away, which gives every training set's correlation matrix for the price of one; its
eigenvectors at the largest width serve all widths.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.features.moments import class_weights
from routerjax.features.pca import principal_components
from routerjax.stats import logistic, spectrum
from routerjax.stats.fisher import fisher_ridge, fisher_trace, ridge_of
from routerjax.stats.folds import FoldLayout
from routerjax.stats.numerics import CONSTANT_STATE, HIGHEST, inverse_scale, pilot_mean, variance
from routerjax.stats.placements import auc

DEVICES = "devices"


class Scores(NamedTuple):
    """What cross-validation gives, on the host.

    Attributes:
      score_SNWM: [S, N, W, M] float32 out-of-fold logits; NaN where there is no model.
      auc_FSWM: [F, S, W, M] float32 AUC of each fold's own rows; NaN where there is no model, the
        fold's rows are of one class, or all its scores are equal.
      solved_FSWM: [F, S, W, M] bool, whether the solver met its tolerance.
      fisher_FSM: [F, S, M] float32 J ("trace/standardised") on fold f's training rows.
      ridge_FSM: [F, S, M] float32 J ("ridge/standardised") on the same.
      d_eff_FS: [F, S] float32 effective dimensionality of the standardised training rows.
      n_components_FS: [F, S] int32 principal components there can be: columns that vary, but no
        more than the training rows less one.
    """

    score_SNWM: np.ndarray
    auc_FSWM: np.ndarray
    solved_FSWM: np.ndarray
    fisher_FSM: np.ndarray
    ridge_FSM: np.ndarray
    d_eff_FS: np.ndarray
    n_components_FS: np.ndarray


def cross_validate(
    x_SND: np.ndarray,
    y_NM: np.ndarray,
    fold_N: np.ndarray,
    pca_dims: Sequence[int],
    n_folds: int,
    devices: Sequence[jax.Device] | None = None,
    least: float = CONSTANT_STATE["float16"],
) -> Scores:
    """Standardise, PCA and L2 logistic regression, fitted on all folds but one and scored there.

    Args:
      x_SND: [S, N, D] float32 states or other features of S sites.
      y_NM: [N, M] 1 = correct, 0 = wrong, NaN = not observed.
      fold_N: [N] the fold of each row, in [0, n_folds).
      pca_dims: [W] numbers of components, ascending. A number that the training rows of one fold do
        not have gives NaN throughout.
      n_folds: F, at least 2.
      devices: To split the sites over; by default all of this process.
      least: Of numerics.CONSTANT_STATE, for the dtype that the states are stored in.

    Returns:
      The scores and what is said of them.
    """
    devices = tuple(jax.local_devices() if devices is None else devices)[: len(x_SND)]
    layout = FoldLayout.of(fold_N, n_folds)
    y_FRM = np.where(layout.weight_FR[:, :, None] > 0, y_NM[layout.row_FR], np.nan)
    # Sites beyond the last fill the devices up and are dropped.
    n_sites, n_slots = len(x_SND), -(-len(x_SND) // len(devices)) * len(devices)
    site_of_slot = np.minimum(np.arange(n_slots), n_sites - 1)
    x_SFRD = x_SND[site_of_slot[:, None, None], layout.row_FR[None]]
    x_SFRD *= layout.weight_FR[None, :, :, None]
    shared = (y_FRM.astype(np.float32), layout.weight_FR)
    result = _compiled(tuple(pca_dims), devices, least)(
        x_SFRD.reshape(len(devices), -1, *x_SFRD.shape[1:]),
        *(np.broadcast_to(a, (len(devices), *a.shape)) for a in shared),
    )
    score_SFWMR, *rest = (_by_site(leaf, n_sites) for leaf in result)
    score_SNWM = np.full((n_sites, len(y_NM), *score_SFWMR.shape[2:4]), np.nan, np.float32)
    real_FR = layout.weight_FR > 0
    score_SNWM[:, layout.row_FR[real_FR]] = score_SFWMR.transpose(0, 1, 4, 2, 3)[:, real_FR]
    auc_SFWM, *others = rest
    # With other components in one fold than in the next, a cell would be two things in one.
    lacking_SW = others[-1].min(axis=1)[:, None] < np.array(pca_dims)[None]
    score_SNWM = np.where(lacking_SW[:, None, :, None], np.nan, score_SNWM)
    auc_SFWM = np.where(lacking_SW[:, None, :, None], np.nan, auc_SFWM)
    return Scores(score_SNWM, *(np.moveaxis(leaf, 0, 1) for leaf in (auc_SFWM, *others)))


def _by_site(leaf: jax.Array, n_sites: int) -> np.ndarray:
    whole = np.asarray(leaf)
    return whole.reshape(-1, *whole.shape[2:])[:n_sites]


@functools.lru_cache(maxsize=8)
def _compiled(pca_dims: tuple[int, ...], devices: tuple[jax.Device, ...], least: float) -> Any:
    """The pmapped program; kept, so that the next layer compiles nothing."""

    def body(x_SFRD: jax.Array, y_FRM: jax.Array, weight_FR: jax.Array) -> Any:
        return jax.lax.map(lambda x_FRD: _site(pca_dims, least, x_FRD, y_FRM, weight_FR), x_SFRD)

    return jax.pmap(body, axis_name=DEVICES, devices=devices)


def _site(
    pca_dims: tuple[int, ...],
    least: float,
    x_FRD: jax.Array,
    y_FRM: jax.Array,
    weight_FR: jax.Array,
) -> tuple[jax.Array, ...]:
    """Scores of all folds of one site; leaves as in `Scores`, folds leading."""
    n_folds, n_rows, n_columns = x_FRD.shape
    unit, shift_D = pilot_mean(x_FRD.reshape(-1, n_columns), weight_FR.reshape(-1))
    x_FRD = (x_FRD * unit - shift_D[None, None]) * weight_FR[:, :, None]
    first_FD = x_FRD.sum(axis=1)
    gram_FDD = jnp.einsum("frd,fre->fde", x_FRD, x_FRD, precision=HIGHEST)
    gram_DD, first_D = gram_FDD.sum(axis=0), first_FD.sum(axis=0)
    n_widest = min(max(pca_dims), n_columns)

    def of_fold(fold: jax.Array) -> tuple[jax.Array, ...]:
        others = (fold + 1 + jnp.arange(n_folds - 1)) % n_folds
        weight_N = weight_FR[others].reshape(-1)
        n_train = weight_N.sum()
        mean_D = (first_D - first_FD[fold]) / n_train
        square_DD = (gram_DD - gram_FDD[fold]) / n_train
        variance_D = variance(jnp.diagonal(square_DD), mean_D)
        # Whether a state is constant is judged by its size, which the shift has taken away.
        scale_D = inverse_scale(mean_D + shift_D, variance_D, least)
        covariance_DD = square_DD - mean_D[:, None] * mean_D[None]
        axes_DC, eigenvalue_D = principal_components(covariance_DD, scale_D, n_widest)
        # Components below float32's noise are zero columns, which change no score; what there can
        # be none of are more components than columns that vary, or than rows less one.
        n_components = jnp.minimum((scale_D > 0).sum(), n_train.astype(jnp.int32) - 1)

        def features(x_RD: jax.Array) -> tuple[jax.Array, jax.Array]:
            standard_RD = (x_RD - mean_D[None]) * scale_D[None]
            return standard_RD, jnp.einsum("rd,dc->rc", standard_RD, axes_DC, precision=HIGHEST)

        x_ND, z_NC = features(x_FRD[others].reshape(-1, n_columns))
        _, z_RC = features(x_FRD[fold])
        y_NM = y_FRM[others].reshape(-1, y_FRM.shape[2])
        cells = _solve(pca_dims, z_NC, eigenvalue_D[:n_widest], y_NM, z_RC, y_FRM[fold],
                       weight_FR[fold], n_components)  # fmt: skip
        rows_MK, mean_MKD, trace_MK1 = _classes(x_ND, weight_N, y_NM)
        fisher_M = jax.vmap(fisher_trace)(rows_MK, mean_MKD, trace_MK1)
        ridge = ridge_of(covariance_DD * (scale_D[:, None] * scale_D[None]))
        ridge_M = jax.vmap(fisher_ridge, (0, 0, None))(rows_MK, mean_MKD, ridge)
        return *cells, fisher_M, ridge_M, spectrum.d_eff(eigenvalue_D), n_components

    return jax.lax.map(of_fold, jnp.arange(n_folds))


def _solve(
    pca_dims: tuple[int, ...],
    z_NC: jax.Array,
    eigenvalue_C: jax.Array,
    y_NM: jax.Array,
    z_RC: jax.Array,
    y_RM: jax.Array,
    weight_R: jax.Array,
    n_components: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores [W, M, R], AUC [W, M] and whether solved [W, M] of one fold."""
    shape_WM = (len(pca_dims), y_NM.shape[1])
    width_W = jnp.array(pca_dims)
    observed_NM = jnp.isfinite(y_NM)
    both_M = ((y_NM == 0).any(axis=0)) & ((y_NM == 1).any(axis=0))
    modelled_WM = both_M[None] & (width_W <= n_components)[:, None]

    def by_problem(a_NM: jax.Array) -> jax.Array:
        return jnp.broadcast_to(a_NM.T[None], (*shape_WM, len(a_NM))).reshape(-1, len(a_NM))

    kept_WC = jnp.arange(z_NC.shape[1])[None] < width_W[:, None]
    kept_QC = jnp.repeat(kept_WC, shape_WM[1], axis=0).astype(jnp.float32)
    observed_QN = by_problem(observed_NM) & modelled_WM.reshape(-1, 1)
    label_QN = by_problem(jnp.where(observed_NM, y_NM, 0.0))
    fitted = logistic.fit(z_NC, jnp.maximum(eigenvalue_C, 0.0), label_QN,
                          observed_QN.astype(jnp.float32), kept_QC)  # fmt: skip
    score_QR = logistic.scores(fitted, z_RC)
    score_QR = jnp.where(modelled_WM.reshape(-1, 1), score_QR, jnp.nan)
    auc_Q = jax.vmap(auc)(score_QR, by_problem(y_RM))
    # Padding has a score too.
    high_Q = jnp.where(weight_R[None] > 0, score_QR, -jnp.inf).max(axis=1)
    low_Q = jnp.where(weight_R[None] > 0, score_QR, jnp.inf).min(axis=1)
    auc_Q = jnp.where(high_Q == low_Q, jnp.nan, auc_Q)
    return (
        score_QR.reshape(*shape_WM, -1),
        auc_Q.reshape(shape_WM),
        fitted.solved_Q.reshape(shape_WM),
    )


def _classes(x_ND: jax.Array, weight_N: jax.Array, y_NM: jax.Array) -> tuple[jax.Array, ...]:
    """Rows, means and variances of each target's classes, as `fisher_trace` takes them.

    The variance of a class is one number here, the trace: J needs no more.
    """
    weight_MKN = class_weights(weight_N, y_NM)
    rows_MK = weight_MKN.sum(axis=2)
    mean_MKD = jnp.einsum("mkn,nd->mkd", weight_MKN, x_ND, precision=HIGHEST) / rows_MK[:, :, None]
    square_N = jnp.square(x_ND).sum(axis=1)
    square_MK = jnp.einsum("mkn,n->mk", weight_MKN, square_N, precision=HIGHEST) / rows_MK
    trace_MK = square_MK - jnp.square(mean_MKD).sum(axis=2)
    return rows_MK, mean_MKD, trace_MK[:, :, None]
