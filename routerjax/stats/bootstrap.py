"""A Poisson bootstrap over groups of queries: its weights, and intervals from its replicates.

A draw gives every group of queries one weight from Poisson(1), which stands for how often the group
is drawn. All rows of a group share the weight, and all cells share the draws, so that differences
between cells are paired. Nothing is fitted again in a draw: scaler, PCA and models stay as they
are, and the intervals show the spread over the queries judged, not that of training.
"""

import functools
import math
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from routerjax.data.groups import numbered
from routerjax.runtime.files import digest

LARGEST_SEED = 2**31 - 1  # An int32, as compiled programs take it.
# P(Poisson(1) <= k) in units of 2^-32, for every k for which 32 bits can tell it from 1.
_CUMULATIVE = np.cumsum(np.exp(-1.0) / np.cumprod([1.0, *range(1, 13)])) * 2.0**32
_THRESHOLDS = np.floor(_CUMULATIVE[_CUMULATIVE < 2.0**32 - 1]).astype(np.uint32)


def group_weights(groups: Sequence[str], draws: int, seed: int) -> np.ndarray:
    """[B, N] float32 Poisson(1) weights, equal for the rows of one group.

    A weight is a function of the group's name, the number of the draw and the seed alone: neither
    the order of the rows nor what other groups there are changes it.

    Args:
      groups: [N] the group of each row.
      draws: B.
      seed: Of the random numbers, 0 to 2^31 - 1.

    Raises:
      ValueError: The seed is out of range.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed: expected 0 to {LARGEST_SEED}, got {seed}")
    names, group_N = numbered(groups)
    digests = "".join(digest(name, size=8) for name in names)
    name_G2 = np.frombuffer(bytes.fromhex(digests), "<u4").reshape(-1, 2)
    weight_GB = np.asarray(_poisson(name_G2, seed, draws))
    return weight_GB.T[:, group_N].astype(np.float32)


def value_and_draws(groups: Sequence[str], draws: int, seed: int = 0) -> np.ndarray:
    """[1 + B, N] `group_weights` below a row of ones, whose replicate is the value itself."""
    if not len(groups):
        return np.ones((1 + draws, 0), np.float32)
    ones_1N = np.ones((1, len(groups)), np.float32)
    return np.concatenate([ones_1N, group_weights(groups, draws, seed)])


def weighted_sums(weight_BN: np.ndarray, value_NQ: np.ndarray) -> np.ndarray:
    """[B, ...] float64 the sum of values over rows in each replicate.

    Args:
      weight_BN: [B, N] how often each row counts.
      value_NQ: [N, ...].
    """
    # In float64 for a few draws at a time: all at once would take too much memory.
    parts = np.array_split(weight_BN, -(-len(weight_BN) // 64))
    value_NQ = np.asarray(value_NQ, np.float64)
    columns_NQ = value_NQ.reshape(len(value_NQ), math.prod(value_NQ.shape[1:]))
    sums_BQ = np.concatenate([weight_bN.astype(np.float64) @ columns_NQ for weight_bN in parts])
    return sums_BQ.reshape(len(weight_BN), *value_NQ.shape[1:])


def weighted_means(weight_BN: np.ndarray, value_NQ: np.ndarray) -> np.ndarray:
    """As `weighted_sums`, the means; NaN in a replicate in which no row counts."""
    sums_BQ = weighted_sums(weight_BN, value_NQ)
    total_B1 = weight_BN.sum(axis=1, dtype=np.float64).reshape(-1, *[1] * (sums_BQ.ndim - 1))
    return np.divide(sums_BQ, total_B1, out=np.full(sums_BQ.shape, np.nan), where=total_B1 > 0)


def reverse_percentile(
    value: npt.ArrayLike,
    draws_B: npt.ArrayLike,
    level: float = 0.95,
    smallest: float = -np.inf,
    largest: float = np.inf,
) -> tuple[np.ndarray, np.ndarray]:
    """The reverse percentile ("basic") interval: [2 v - q_high, 2 v - q_low] of the replicates.

    Replicates of a biased statistic are biased once more. Mirroring them about the statistic takes
    the bias off, where plain percentiles would double it.

    Args:
      value: [...] the statistic.
      draws_B: [B, ...] its replicates; those that are not finite are left out.
      level: Of confidence, in (0, 1).
      smallest: Lower limit of both ends, such as 0.
      largest: Upper limit of both ends, such as 1 for an AUC.

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
    """[G, B] uint8 draws by inversion: the number of thresholds that 32 random bits reach."""

    def of_group(name_2: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), name_2[0]), name_2[1])
        bits_B = jax.random.bits(key, (draws,), jnp.uint32)
        return (bits_B[:, None] >= jnp.array(_THRESHOLDS)[None]).sum(axis=1).astype(jnp.uint8)

    return jax.lax.map(of_group, name_G2, batch_size=1024)
