"""Bootstrap replicates of cross-validated AUC, over all rows and within datasets.

The Hajek projection of each AUC is resampled, so that all draws of all cells are matrix products on
the device.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from routerjax.stats.folds import FoldLayout
from routerjax.stats.numerics import HIGHEST
from routerjax.stats.placements import placements
from routerjax.stats.roc_auc import MIN_CLASS

# Floats that an intermediate array of one chunk may hold.
_CHUNK = 2**24


class AucReplicates(NamedTuple):
    """An AUC of Q cells and its bootstrap replicates, on the host.

    Attributes:
      value_Q: [Q] float32 the statistic; NaN where it is not defined.
      fold_FQ: [F, Q] float32 the same of each fold's rows alone.
      draws_BQ: [B, Q] float32 the replicates; NaN where a draw has none.
    """

    value_Q: np.ndarray
    fold_FQ: np.ndarray
    draws_BQ: np.ndarray


def auc_replicates(
    score_NQ: npt.ArrayLike,
    y_NQ: npt.ArrayLike,
    fold_N: np.ndarray,
    n_folds: int,
    weight_BN: npt.ArrayLike,
) -> AucReplicates:
    """Bootstraps the mean over folds of the ROC-AUC of the fold's own rows.

    With a_i the share of the fold's wrong rows scored below correct row i, b_j the share of correct
    rows scored above wrong row j (DeLong's placements; ties count half), a replicate of one fold is

        sum_i w_i a_i / sum_i w_i + sum_j w_j b_j / sum_j w_j - AUC,

    the weighted AUC without its degenerate term sum_ij p_i q_j (psi_ij - a_i - b_j + AUC), which is
    of a smaller order (1/n beside 1/sqrt(n)): all cells are then plain matrix products.

    Folds of one class, or whose scores are all equal, are left out of the mean; so are, in a draw,
    those in which it leaves no row of a class.

    Args:
      score_NQ: [N, Q] out-of-fold scores of Q cells; NaN rows do not count.
      y_NQ: [N, Q] 1 = correct, 0 = wrong, NaN = not observed.
      fold_N: [N] integers in [0, n_folds).
      n_folds: F.
      weight_BN: [B, N] of `group_weights`; an array on the device is not copied there again.

    Raises:
      ValueError: The shapes differ, or a fold is out of range.
    """
    score_NQ, y_NQ, weight_BN = _checked(score_NQ, y_NQ, fold_N, n_folds, weight_BN)
    layout = FoldLayout.of(np.asarray(fold_N), n_folds)
    replicates = _auc_replicates(score_NQ, y_NQ, jnp.asarray(fold_N), *layout, weight_BN)
    return AucReplicates(*(np.asarray(leaf) for leaf in replicates))


def within_auc_replicates(
    score_NQ: npt.ArrayLike,
    y_NQ: npt.ArrayLike,
    fold_N: np.ndarray,
    n_folds: int,
    dataset_N: np.ndarray,
    n_datasets: int,
    weight_BN: npt.ArrayLike,
) -> AucReplicates:
    """Bootstraps the AUC over pairs of equal dataset and equal fold, every pair of equal weight.

    Datasets with under 5 rows of either class, over all folds, are left out of a cell; so are folds
    whose scores are all equal. The statistic is v = sum_g U_g / sum_g n1_g n0_g over strata g =
    (dataset, fold), U_g the pairs of g in the right order. A replicate is linear in the weights,

        v + sum_n w_n h_n,  h_n = n_other (place_n - v) / sum_g n1_g n0_g,

    place_n as in `auc_replicates`, n_other the rows of the other class in n's stratum; the h_n add
    up to 0. The true variance contains the noise of single pairs once. In strata of a few rows the
    full bootstrap, which weights a pair by w_i w_j, counts that noise three times, this one twice:
    its intervals are up to an eighth shorter there and cover as stated.

    Args:
      score_NQ, y_NQ, fold_N, n_folds, weight_BN: As in `auc_replicates`.
      dataset_N: [N] integers in [0, n_datasets).
      n_datasets: Number of datasets.

    Returns:
      The AUCs and their replicates; the AUC of a fold counts the same datasets as the whole.

    Raises:
      ValueError: The shapes differ, or a fold or a dataset is out of range.
    """
    score_NQ, y_NQ, weight_BN = _checked(score_NQ, y_NQ, fold_N, n_folds, weight_BN)
    _check_labels("dataset_N", dataset_N, n_datasets, len(y_NQ))
    replicates = _within_auc_replicates(
        score_NQ, y_NQ, jnp.asarray(fold_N), jnp.asarray(dataset_N), weight_BN, n_folds, n_datasets
    )
    return AucReplicates(*(np.asarray(leaf) for leaf in replicates))


def _without_equal(score_N: jax.Array, fold_N: jax.Array, n_folds: int) -> jax.Array:
    """Scores, NaN in folds where all are equal: a constant model has no AUC there, not 0.5."""
    known_N = jnp.isfinite(score_N)
    low_F = jax.ops.segment_min(jnp.where(known_N, score_N, jnp.inf), fold_N, n_folds)
    high_F = jax.ops.segment_max(jnp.where(known_N, score_N, -jnp.inf), fold_N, n_folds)
    return jnp.where((low_F == high_F)[fold_N], jnp.nan, score_N)


@jax.jit
def _auc_replicates(score_NQ, y_NQ, fold_N, row_FR, real_FR, weight_BN):
    n_folds = len(row_FR)

    def of_cell(score_N: jax.Array, y_N: jax.Array) -> tuple[jax.Array, ...]:
        ranked = placements(_without_equal(score_N, fold_N, n_folds), y_N, fold_N, n_folds)
        both_F = (ranked.correct_G > 0) & (ranked.wrong_G > 0)
        right_F = jax.ops.segment_sum(ranked.place_N * ranked.correct_N, fold_N, n_folds)
        fold_F = jnp.where(both_F, right_F / ranked.correct_G, jnp.nan)
        return ranked.place_N, ranked.correct_N, ranked.wrong_N, fold_F

    place_QN, correct_QN, wrong_QN, fold_QF = _over_cells(of_cell, score_NQ, y_NQ)

    def of_fold(row_R: jax.Array, real_R: jax.Array, fold_Q: jax.Array) -> jax.Array:
        weight_BR = weight_BN[:, row_R] * real_R[None]

        def mean_place(class_QN: jax.Array) -> jax.Array:
            class_QR, place_QR = class_QN[:, row_R], place_QN[:, row_R]
            place_BQ = _product(weight_BR, place_QR * class_QR)
            rows_BQ = _product(weight_BR, class_QR)
            return jnp.where(rows_BQ > 0, place_BQ / rows_BQ, jnp.nan)

        return mean_place(correct_QN) + mean_place(wrong_QN) - fold_Q[None]

    draws_FBQ = jax.lax.map(lambda args: of_fold(*args), (row_FR, real_FR, fold_QF.T))
    return jnp.nanmean(fold_QF, axis=1), fold_QF.T, jnp.nanmean(draws_FBQ, axis=0)


@functools.partial(jax.jit, static_argnames=("n_folds", "n_datasets"))
def _within_auc_replicates(score_NQ, y_NQ, fold_N, dataset_N, weight_BN, n_folds, n_datasets):
    stratum_N = dataset_N * n_folds + fold_N

    def of_cell(score_N: jax.Array, y_N: jax.Array) -> tuple[jax.Array, ...]:
        score_N = _without_equal(score_N, fold_N, n_folds)
        ranked = placements(score_N, y_N, stratum_N, n_datasets * n_folds)
        correct_DF, wrong_DF = (
            rows_G.reshape(n_datasets, n_folds) for rows_G in (ranked.correct_G, ranked.wrong_G)
        )
        fewest_D = jnp.minimum(correct_DF.sum(axis=1), wrong_DF.sum(axis=1))
        kept_DF = jnp.where((fewest_D >= MIN_CLASS)[:, None], 1.0, 0.0)
        pairs_F = (kept_DF * correct_DF * wrong_DF).sum(axis=0)
        # Pairs that a row is in.
        in_N = ranked.correct_N * (kept_DF * wrong_DF).reshape(-1)[stratum_N]
        in_N += ranked.wrong_N * (kept_DF * correct_DF).reshape(-1)[stratum_N]
        right_N = ranked.place_N * ranked.correct_N * in_N
        right_F = jax.ops.segment_sum(right_N, fold_N, n_folds)
        value = right_F.sum() / pairs_F.sum()
        h_N = in_N * (ranked.place_N - value) / pairs_F.sum()
        return value, right_F / pairs_F, h_N

    value_Q, fold_QF, h_QN = _over_cells(of_cell, score_NQ, y_NQ)
    return value_Q, fold_QF.T, value_Q[None] + _product(weight_BN, h_QN)


def _over_cells(function, score_NQ: jax.Array, y_NQ: jax.Array):
    """`function` of each cell's scores and outcomes, as many at a time as _CHUNK allows."""
    at_a_time = max(1, _CHUNK // (8 * len(y_NQ)))
    return jax.lax.map(lambda args: function(*args), (score_NQ.T, y_NQ.T), batch_size=at_a_time)


def _product(weight_BN: jax.Array, value_QN: jax.Array) -> jax.Array:
    return jnp.einsum("bn,qn->bq", weight_BN, value_QN, precision=HIGHEST)


def _checked(
    score_NQ: npt.ArrayLike,
    y_NQ: npt.ArrayLike,
    fold_N: np.ndarray,
    n_folds: int,
    weight_BN: npt.ArrayLike,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores, outcomes and weights as float32 on the device."""
    arrays = tuple(jnp.asarray(array, jnp.float32) for array in (score_NQ, y_NQ, weight_BN))
    shapes = [array.shape for array in arrays]
    if len(shapes[0]) != 2 or shapes[0] != shapes[1] or shapes[2][1:] != shapes[0][:1]:
        raise ValueError(
            f"expected score_NQ and y_NQ [N, Q] and weight_BN [B, N] of the same rows and cells, "
            f"got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    _check_labels("fold_N", fold_N, n_folds, len(arrays[0]))
    return arrays[0], arrays[1], arrays[2]


def _check_labels(name: str, label_N: np.ndarray, n_labels: int, n_rows: int) -> None:
    label_N = np.asarray(label_N)
    if label_N.shape != (n_rows,) or not ((label_N >= 0) & (label_N < n_labels)).all():
        raise ValueError(
            f"{name}: expected {n_rows} integers from 0 to {n_labels - 1}, one a row, got shape "
            f"{label_N.shape} with {np.unique(label_N)[:8]}"
        )
