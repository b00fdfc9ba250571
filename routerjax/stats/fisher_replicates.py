"""Bootstrap replicates of J, and J under shuffled outcomes: exact, not linearised."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from routerjax.stats.fisher import Ridge, fisher_ridge, fisher_trace, ridge_of
from routerjax.stats.numerics import EPS, HIGHEST, same_rows

# Floats that an intermediate array of one chunk may hold.
_CHUNK = 2**24


class FisherReplicates(NamedTuple):
    """J of M targets and its bootstrap replicates, by `fisher_trace` and by `fisher_ridge`.

    On the host, float32.

    Attributes:
      value_M: [M] J by traces; NaN where it does not exist.
      draws_BM: [B, M] the replicates; NaN where a draw has none.
      ridge_M: [M] J by the ridge discriminant.
      ridge_draws_BM: [B, M] its replicates; the correlations of the states stay those of all rows.
    """

    value_M: np.ndarray
    draws_BM: np.ndarray
    ridge_M: np.ndarray
    ridge_draws_BM: np.ndarray


def fisher_replicates(
    x_ND: npt.ArrayLike, y_NM: npt.ArrayLike, weight_BN: npt.ArrayLike
) -> FisherReplicates:
    """Bootstraps J on states standardised beforehand; J by traces exactly.

    Args:
      x_ND: [N, D] float32 states, centred: a mean far from 0 costs digits.
      y_NM: [N, M] 1 = correct, 0 = wrong, NaN = not observed.
      weight_BN: [B, N] of `group_weights`.

    Returns:
      J of every target and its replicates. A replicate is biased upwards once more than J is; the
      reverse percentile takes that bias off.

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
    column_U, pattern_M = same_rows(np.isfinite(y_NM))
    draws_BM, ridge_draws_BM = _fisher_replicates(x_ND, y_NM, column_U, pattern_M, weight_BN)
    once_1N = jnp.ones((1, len(y_NM)))
    value_1M, ridge_1M = _fisher_replicates(x_ND, y_NM, column_U, pattern_M, once_1N)
    return FisherReplicates(
        np.asarray(value_1M)[0],
        np.asarray(draws_BM),
        np.asarray(ridge_1M)[0],
        np.asarray(ridge_draws_BM),
    )


def fisher_shuffled(
    x_ND: npt.ArrayLike, y_NM: npt.ArrayLike, n_shuffles: int, seed: int
) -> np.ndarray:
    """[M] float32 mean J by chance: outcomes are shuffled over the rows where they are observed.

    Args:
      x_ND: [N, D] float32 states, as for `fisher_replicates`.
      y_NM: [N, M] 1 = correct, 0 = wrong, NaN = not observed.
      n_shuffles: Number of shuffles averaged.
      seed: Of the shuffles. Targets observed on the same rows are shuffled alike.
    """
    x_ND, y_NM = jnp.asarray(x_ND, jnp.float32), np.asarray(y_NM, np.float32)
    column_U, pattern_M = same_rows(np.isfinite(y_NM))
    return np.asarray(_fisher_shuffled(x_ND, y_NM, column_U, pattern_M, seed, n_shuffles))


@jax.jit
def _fisher_replicates(x_ND, y_NM, column_U, pattern_M, weight_BN):
    square_N = jnp.square(x_ND).sum(axis=1)
    rows_held = (y_NM.shape[1] + len(column_U)) * sum(x_ND.shape)
    ridge = ridge_of(jnp.einsum("nd,ne->de", x_ND, x_ND, precision=HIGHEST) / len(x_ND))
    return jax.lax.map(
        lambda weight_N: _fisher(x_ND, square_N, y_NM, column_U, pattern_M, weight_N, ridge),
        weight_BN,
        batch_size=max(1, min(len(weight_BN), _CHUNK // rows_held)),
    )


@functools.partial(jax.jit, static_argnames="n_shuffles")
def _fisher_shuffled(x_ND, y_NM, column_U, pattern_M, seed, n_shuffles):
    square_N = jnp.square(x_ND).sum(axis=1)
    observed_NU = jnp.isfinite(y_NM[:, column_U])
    ones_N = jnp.ones(len(y_NM))

    def one(key: jax.Array) -> jax.Array:
        # Observed rows come first in both orders: the k-th row of one order takes the outcome of
        # the k-th row of the other, and rows that are not observed keep NaN.
        order_NU = jnp.argsort(~observed_NU, axis=0, stable=True)
        random_NU = jnp.where(observed_NU, jax.random.uniform(key, observed_NU.shape), 2.0)
        to_NM = order_NU[:, pattern_M]
        from_NM = jnp.argsort(random_NU, axis=0)[:, pattern_M]
        moved_NM = jnp.take_along_axis(y_NM, from_NM, axis=0)
        shuffled_NM = jnp.put_along_axis(y_NM, to_NM, moved_NM, axis=0, inplace=False)
        return _fisher(x_ND, square_N, shuffled_NM, column_U, pattern_M, ones_N)[0]

    return jax.lax.map(one, jax.random.split(jax.random.key(seed), n_shuffles)).mean(axis=0)


def _fisher(
    x_ND: jax.Array,
    square_N: jax.Array,
    y_NM: jax.Array,
    column_U: jax.Array,
    pattern_M: jax.Array,
    weight_N: jax.Array,
    ridge: Ridge | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """[M] J of weighted rows, by traces and by ridge where one is given.

    Sums of the wrong class are those observed minus the correct.
    """
    class_MKN = (y_NM.T[:, None] == jnp.arange(2.0)[None, :, None]).astype(jnp.float32)
    observed_UN = class_MKN[column_U].sum(axis=1)
    n_targets = len(pattern_M)
    taken_RN = jnp.concatenate([class_MKN[:, 1], observed_UN]) * weight_N[None]
    sum_RD = jnp.einsum("rn,nd->rd", taken_RN, x_ND, precision=HIGHEST)
    correct_MD, observed_MD = sum_RD[:n_targets], sum_RD[n_targets:][pattern_M]
    sum_MKD = jnp.stack([observed_MD - correct_MD, correct_MD], axis=1)
    # Not by difference, which would leave too few digits to a class of a few rows among many.
    rows_MK = jnp.einsum("mkn,n->mk", class_MKN, weight_N, precision=HIGHEST)
    square_MK = jnp.einsum("mkn,n->mk", class_MKN, weight_N * square_N, precision=HIGHEST)
    mean_MKD = sum_MKD / rows_MK[:, :, None]
    square_MK = square_MK / rows_MK
    trace_MK = square_MK - jnp.square(mean_MKD).sum(axis=2)
    trace_MK = jnp.where(trace_MK <= 4 * EPS * square_MK, 0.0, trace_MK)
    by_trace_M = jax.vmap(fisher_trace)(rows_MK, mean_MKD, trace_MK[:, :, None])
    if ridge is None:
        return by_trace_M, None
    return by_trace_M, jax.vmap(fisher_ridge, (0, 0, None))(rows_MK, mean_MKD, ridge)
