"""Intervals for J and AUC of cells: a Poisson bootstrap over groups of queries.

A draw gives every group of queries one weight from Poisson(1), which stands for how often the group
is drawn; all its rows share it, and all cells share the draws, so that differences between cells
are paired. Nothing is fitted again in a draw: scaler, PCA and models stay as they are, and the
intervals tell the spread that comes from the queries judged, not that of training.
"""

import functools
import hashlib
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from routerjax.features.moments import fisher_trace
from routerjax.features.numerics import EPS, HIGHEST
from routerjax.probes.cells import FoldLayout

# A dataset with fewer rows than this in either class says too little about a target.
MIN_CLASS = 5

# Floats that an intermediate array of one chunk may hold.
_CHUNK = 2**24

# P(Poisson(1) <= k) in units of 2^-32, until nothing of it is left.
_CUMULATIVE = np.cumsum(np.exp(-1.0) / np.cumprod([1.0, *range(1, 13)])) * 2.0**32
_THRESHOLDS = np.floor(_CUMULATIVE[_CUMULATIVE < 2.0**32 - 1]).astype(np.uint32)


class AucDraws(NamedTuple):
    """An AUC of Q cells and its bootstrap replicates, on the host.

    Attributes:
      value_Q: [Q] float32 the statistic; NaN where it is not defined.
      fold_FQ: [F, Q] float32 the same of each fold's rows alone.
      draws_BQ: [B, Q] float32 the replicates; NaN where a draw has none.
    """

    value_Q: np.ndarray
    fold_FQ: np.ndarray
    draws_BQ: np.ndarray


class FisherDraws(NamedTuple):
    """J of M targets and its bootstrap replicates, on the host.

    Attributes:
      value_M: [M] float32 J; NaN where it does not exist.
      draws_BM: [B, M] float32 the replicates; NaN where a draw has none.
    """

    value_M: np.ndarray
    draws_BM: np.ndarray


def group_weights(groups: Sequence[str], draws: int, seed: int) -> np.ndarray:
    """Poisson(1) weights, one for each group and draw.

    A weight is a function of the group's name, the number of the draw and the seed alone: neither
    the order of the rows nor what other groups there are changes it.

    Args:
      groups: [N] the group of each row.
      draws: B.
      seed: Of the random numbers.

    Returns:
      [B, N] float32; rows of one group have equal columns.
    """
    names, group_N = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    name_G2 = np.frombuffer(b"".join(digests), "<u4").reshape(-1, 2)
    weight_GB = np.asarray(_poisson(name_G2, seed, draws))
    return weight_GB.T[:, group_N].astype(np.float32)


def auc_draws(
    score_NQ: npt.ArrayLike,
    y_NQ: npt.ArrayLike,
    fold_N: np.ndarray,
    n_folds: int,
    weight_BN: npt.ArrayLike,
) -> AucDraws:
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
      weight_BN: [B, N] of `group_weights`; put on the device beforehand, it travels there once.

    Returns:
      The AUCs and their replicates.

    Raises:
      ValueError: The shapes differ, or a fold is out of range.
    """
    score_NQ, y_NQ, weight_BN = _checked(score_NQ, y_NQ, fold_N, n_folds, weight_BN)
    layout = FoldLayout.of(np.asarray(fold_N), n_folds)
    found = _auc_draws(score_NQ, y_NQ, jnp.asarray(fold_N), *layout, weight_BN)
    return AucDraws(*(np.asarray(leaf) for leaf in found))


def within_auc_draws(
    score_NQ: npt.ArrayLike,
    y_NQ: npt.ArrayLike,
    fold_N: np.ndarray,
    n_folds: int,
    dataset_N: np.ndarray,
    n_datasets: int,
    weight_BN: npt.ArrayLike,
) -> AucDraws:
    """Bootstraps the AUC over pairs of equal dataset and equal fold, every pair of equal weight.

    Datasets with under 5 rows of either class, over all folds, are left out of a cell; so are folds
    whose scores are all equal. The statistic is v = sum_g U_g / sum_g n1_g n0_g over strata g =
    (dataset, fold), U_g the pairs of g in the right order. A replicate is linear in the weights,

        v + sum_n w_n h_n,  h_n = n_other (place_n - v) / sum_g n1_g n0_g,

    place_n as in `auc_draws`, n_other the rows of the other class in n's stratum; the h_n add up to
    0. In strata of a few rows the full bootstrap, which weights a pair by w_i w_j, counts the noise
    of single pairs three times, this one twice (and the truth once): its intervals are up to a
    tenth shorter there and cover as stated.

    Args:
      score_NQ: [N, Q] out-of-fold scores of Q cells; NaN rows do not count.
      y_NQ: [N, Q] 1 = correct, 0 = wrong, NaN = not observed.
      fold_N: [N] integers in [0, n_folds).
      n_folds: F.
      dataset_N: [N] integers in [0, n_datasets).
      n_datasets: How many there are.
      weight_BN: [B, N] of `group_weights`.

    Returns:
      The AUCs and their replicates; a fold's own counts the same datasets as the whole.

    Raises:
      ValueError: The shapes differ, or a fold or a dataset is out of range.
    """
    score_NQ, y_NQ, weight_BN = _checked(score_NQ, y_NQ, fold_N, n_folds, weight_BN)
    _check_labels("dataset_N", dataset_N, n_datasets, len(y_NQ))
    found = _within_auc_draws(
        score_NQ, y_NQ, jnp.asarray(fold_N), jnp.asarray(dataset_N), weight_BN, n_folds, n_datasets
    )
    return AucDraws(*(np.asarray(leaf) for leaf in found))


def fisher_draws(
    x_ND: npt.ArrayLike, y_NM: npt.ArrayLike, weight_BN: npt.ArrayLike
) -> FisherDraws:
    """Bootstraps J by traces (`fisher_trace`), exactly, on states standardised beforehand.

    Args:
      x_ND: [N, D] float32 states, centred: a mean far from 0 costs digits.
      y_NM: [N, M] 1 = correct, 0 = wrong, NaN = not observed.
      weight_BN: [B, N] of `group_weights`.

    Returns:
      J of every target and its replicates. A replicate is biased upwards once more than J is, which
      the reverse percentile takes back.

    Raises:
      ValueError: The shapes differ.
    """
    x_ND, y_NM = jnp.asarray(x_ND, jnp.float32), np.asarray(y_NM, np.float32)
    weight_BN = jnp.asarray(weight_BN, jnp.float32)
    if x_ND.ndim != 2 or y_NM.shape[:1] != x_ND.shape[:1] or weight_BN.shape[1:] != x_ND.shape[:1]:
        raise ValueError(
            f"expected x_ND [N, D], y_NM [N, M] and weight_BN [B, N] of the same N rows, got "
            f"{x_ND.shape}, {y_NM.shape} and {weight_BN.shape}"
        )
    column_U, pattern_M = _patterns(np.isfinite(y_NM))
    draws_BM = _fisher_draws(x_ND, y_NM, column_U, pattern_M, weight_BN)
    value_1M = _fisher_draws(x_ND, y_NM, column_U, pattern_M, jnp.ones((1, len(y_NM))))
    return FisherDraws(np.asarray(value_1M)[0], np.asarray(draws_BM))


def fisher_shuffled(
    x_ND: npt.ArrayLike, y_NM: npt.ArrayLike, n_shuffles: int, seed: int
) -> np.ndarray:
    """Mean J under outcomes shuffled over the rows where they are observed: what J is by chance.

    Args:
      x_ND: [N, D] float32 states, as for `fisher_draws`.
      y_NM: [N, M] 1 = correct, 0 = wrong, NaN = not observed.
      n_shuffles: How many to take the mean of.
      seed: Of the shuffles. Targets observed on the same rows are shuffled alike.

    Returns:
      [M] float32; NaN where J does not exist.
    """
    x_ND, y_NM = jnp.asarray(x_ND, jnp.float32), np.asarray(y_NM, np.float32)
    column_U, pattern_M = _patterns(np.isfinite(y_NM))
    return np.asarray(_fisher_shuffled(x_ND, y_NM, column_U, pattern_M, seed, n_shuffles))


def reverse_percentile(
    value: npt.ArrayLike,
    draws_B: npt.ArrayLike,
    level: float = 0.95,
    smallest: float = -np.inf,
    largest: float = np.inf,
) -> tuple[np.ndarray, np.ndarray]:
    """The reverse percentile ("basic") interval: [2 v - q_high, 2 v - q_low] of the replicates.

    A statistic that is biased is biased once more in its replicates; turning them round about the
    statistic takes the bias back, where the plain percentiles would double it.

    Args:
      value: [...] the statistic.
      draws_B: [B, ...] its replicates; those that are not finite are left out.
      level: Of confidence, in (0, 1).
      smallest: What the low end is raised to, such as 0.
      largest: What the high end is taken down to, such as 1 for an AUC.

    Returns:
      Both ends, of `value`'s shape, float64; NaN where the statistic is not finite or under half of
      the draws have one.
    """
    value, draws_B = np.asarray(value, np.float64), np.asarray(draws_B)
    draws_B = np.where(np.isfinite(draws_B), draws_B, np.nan).astype(np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice encountered", RuntimeWarning)
        low, high = np.nanquantile(draws_B, [(1 - level) / 2, (1 + level) / 2], axis=0)
    known = np.isfinite(value) & (np.isfinite(draws_B).mean(axis=0) >= 0.5)
    ends = (np.where(known, 2 * value - end, np.nan) for end in (high, low))
    low, high = (np.clip(end, smallest, largest) for end in ends)
    return low, high


@functools.partial(jax.jit, static_argnames="draws")
def _poisson(name_G2: jax.Array, seed: jax.Array, draws: int) -> jax.Array:
    """[G, B] uint8 draws by inversion: how many thresholds 32 random bits reach."""

    def of_group(name_2: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), name_2[0]), name_2[1])
        bits_B = jax.random.bits(key, (draws,), jnp.uint32)
        return (bits_B[:, None] >= jnp.array(_THRESHOLDS)[None]).sum(axis=1).astype(jnp.uint8)

    return jax.lax.map(of_group, name_G2, batch_size=1024)


class _Ranked(NamedTuple):
    """One cell's rows among the other class of their stratum; G strata.

    Attributes:
      place_N: [N] placements (ties half); 0 where the row or the other class does not count.
      correct_N: [N] 1 for rows of the correct class that count.
      wrong_N: [N] 1 for those of the wrong class.
      correct_G: [G] their numbers.
      wrong_G: [G]
    """

    place_N: jax.Array
    correct_N: jax.Array
    wrong_N: jax.Array
    correct_G: jax.Array
    wrong_G: jax.Array


def _ranked(score_N: jax.Array, y_N: jax.Array, stratum_N: jax.Array, n_strata: int) -> _Ranked:
    """Placements inside strata, all of them by one sort."""
    counts_N = jnp.isfinite(score_N) & jnp.isfinite(y_N)
    correct_N = jnp.where(counts_N & (y_N == 1), 1.0, 0.0)
    wrong_N = jnp.where(counts_N & (y_N == 0), 1.0, 0.0)
    score_N = jnp.where(counts_N, score_N, jnp.inf)
    order_N = jnp.lexsort((score_N, stratum_N))
    score_N, group_N = score_N[order_N], stratum_N[order_N]
    # A run is a stretch of equal score in one stratum.
    at_N, edge = jnp.arange(len(score_N)), jnp.array([True])
    change_N = (score_N[1:] != score_N[:-1]) | (group_N[1:] != group_N[:-1])
    first_N = jax.lax.cummax(jnp.where(jnp.concatenate([edge, change_N]), at_N, 0))
    ends_N = jnp.concatenate([change_N, edge])
    last_N = jax.lax.cummin(jnp.where(ends_N, at_N, len(score_N)), reverse=True)

    def among(class_N: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[N] share of the class below each sorted row, half of ties; [G] rows of it."""
        size_G = jax.ops.segment_sum(class_N, stratum_N, n_strata)
        upto_N = jnp.concatenate([jnp.zeros(1), jnp.cumsum(class_N[order_N])])
        below_N = 0.5 * (upto_N[first_N] + upto_N[last_N + 1])
        below_N = below_N - (jnp.cumsum(size_G) - size_G)[group_N]
        return below_N / jnp.maximum(size_G, 1.0)[group_N], size_G

    (wrong_below_N, wrong_G), (correct_below_N, correct_G) = among(wrong_N), among(correct_N)
    place_N = jnp.where(correct_N[order_N] > 0, wrong_below_N, 1 - correct_below_N)
    both_N = ((correct_G > 0) & (wrong_G > 0))[group_N]
    place_N = jnp.where(both_N & counts_N[order_N], place_N, 0.0)
    # Back to the rows' own order.
    place_N = jnp.zeros_like(place_N).at[order_N].set(place_N)
    return _Ranked(place_N, correct_N, wrong_N, correct_G, wrong_G)


def _without_equal(score_N: jax.Array, fold_N: jax.Array, n_folds: int) -> jax.Array:
    """Scores, NaN in folds where they are all equal: such a model says nothing, not 0.5."""
    known_N = jnp.isfinite(score_N)
    low_F = jax.ops.segment_min(jnp.where(known_N, score_N, jnp.inf), fold_N, n_folds)
    high_F = jax.ops.segment_max(jnp.where(known_N, score_N, -jnp.inf), fold_N, n_folds)
    return jnp.where((low_F == high_F)[fold_N], jnp.nan, score_N)


@jax.jit
def _auc_draws(score_NQ, y_NQ, fold_N, row_FR, real_FR, weight_BN):
    n_folds = len(row_FR)

    def of_cell(score_N: jax.Array, y_N: jax.Array) -> tuple[jax.Array, ...]:
        ranked = _ranked(_without_equal(score_N, fold_N, n_folds), y_N, fold_N, n_folds)
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
def _within_auc_draws(score_NQ, y_NQ, fold_N, dataset_N, weight_BN, n_folds, n_datasets):
    stratum_N = dataset_N * n_folds + fold_N

    def of_cell(score_N: jax.Array, y_N: jax.Array) -> tuple[jax.Array, ...]:
        score_N = _without_equal(score_N, fold_N, n_folds)
        ranked = _ranked(score_N, y_N, stratum_N, n_datasets * n_folds)
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
    """`function` of each cell's scores and outcomes; as many at a time as memory is meant to hold.

    Returns:
      Its results, cells leading.
    """
    at_a_time = max(1, _CHUNK // (8 * len(y_NQ)))
    return jax.lax.map(lambda args: function(*args), (score_NQ.T, y_NQ.T), batch_size=at_a_time)


def _product(weight_BN: jax.Array, value_QN: jax.Array) -> jax.Array:
    return jnp.einsum("bn,qn->bq", weight_BN, value_QN, precision=HIGHEST)


@jax.jit
def _fisher_draws(x_ND, y_NM, column_U, pattern_M, weight_BN):
    square_N = jnp.square(x_ND).sum(axis=1)
    rows_held = (y_NM.shape[1] + len(column_U)) * sum(x_ND.shape)
    return jax.lax.map(
        lambda weight_N: _fisher(x_ND, square_N, y_NM, column_U, pattern_M, weight_N),
        weight_BN,
        batch_size=max(1, min(len(weight_BN), _CHUNK // rows_held)),
    )


@functools.partial(jax.jit, static_argnames="n_shuffles")
def _fisher_shuffled(x_ND, y_NM, column_U, pattern_M, seed, n_shuffles):
    square_N = jnp.square(x_ND).sum(axis=1)
    observed_NU = jnp.isfinite(y_NM[:, column_U])
    ones_N = jnp.ones(len(y_NM))

    def one(key: jax.Array) -> jax.Array:
        # Observed rows come first in both orders: the k-th of one takes the outcome of the k-th of
        # the other, and the rest pass their NaN among themselves.
        order_NU = jnp.argsort(~observed_NU, axis=0, stable=True)
        random_NU = jnp.where(observed_NU, jax.random.uniform(key, observed_NU.shape), 2.0)
        to_NM = order_NU[:, pattern_M]
        from_NM = jnp.argsort(random_NU, axis=0)[:, pattern_M]
        moved_NM = jnp.take_along_axis(y_NM, from_NM, axis=0)
        shuffled_NM = jnp.put_along_axis(y_NM, to_NM, moved_NM, axis=0, inplace=False)
        return _fisher(x_ND, square_N, shuffled_NM, column_U, pattern_M, ones_N)

    return jax.lax.map(one, jax.random.split(jax.random.key(seed), n_shuffles)).mean(axis=0)


def _fisher(
    x_ND: jax.Array,
    square_N: jax.Array,
    y_NM: jax.Array,
    column_U: jax.Array,
    pattern_M: jax.Array,
    weight_N: jax.Array,
) -> jax.Array:
    """[M] J of weighted rows. Sums of the wrong class are those observed less the correct."""
    class_MKN = (y_NM.T[:, None] == jnp.arange(2.0)[None, :, None]).astype(jnp.float32)
    observed_UN = class_MKN[column_U].sum(axis=1)
    n_targets = len(pattern_M)
    taken_RN = jnp.concatenate([class_MKN[:, 1], observed_UN]) * weight_N[None]
    sum_RD = jnp.einsum("rn,nd->rd", taken_RN, x_ND, precision=HIGHEST)
    correct_MD, observed_MD = sum_RD[:n_targets], sum_RD[n_targets:][pattern_M]
    sum_MKD = jnp.stack([observed_MD - correct_MD, correct_MD], axis=1)
    # Not by difference: of a class of a few rows among many, too few digits would be left.
    rows_MK = jnp.einsum("mkn,n->mk", class_MKN, weight_N, precision=HIGHEST)
    square_MK = jnp.einsum("mkn,n->mk", class_MKN, weight_N * square_N, precision=HIGHEST)
    mean_MKD = sum_MKD / rows_MK[:, :, None]
    square_MK = square_MK / rows_MK
    trace_MK = square_MK - jnp.square(mean_MKD).sum(axis=2)
    trace_MK = jnp.where(trace_MK <= 4 * EPS * square_MK, 0.0, trace_MK)
    return jax.vmap(fisher_trace)(rows_MK, mean_MKD, trace_MK[:, :, None])


def _patterns(observed_NM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[U] the first target of each set of observed rows, and [M] each target's."""
    bits_MX = np.packbits(observed_NM.T, axis=1)
    _, column_U, pattern_M = np.unique(bits_MX, axis=0, return_index=True, return_inverse=True)
    return column_U.astype(np.int32), pattern_M.reshape(-1).astype(np.int32)


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
