"""Accuracy in float32: compensated sums, and the limits below which a column is constant."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Tree = TypeVar("Tree")

# JAX's default product of float32 is bfloat16 on TPU and TF32 on recent GPUs.
HIGHEST = jax.lax.Precision.HIGHEST

EPS = float(jnp.finfo(jnp.float32).eps)

# A state is constant over the rows where it varies by less than this share of its size, by the
# dtype that it is stored in. Float16 spaces values 2^-11 to 2^-10 apart, and an encoder's own noise
# (<= 1e-5 of the state) tips a few per cent of them over to the next one; real states vary by per
# cents of their size. Of float32 it is 8 roundings, and the encoder's noise counts as variation. Of
# int8 it is a step of a value that is the largest of its row. Denormals of float32 (below 1.2e-38)
# are 0 to XLA on a CPU, so that a state of them alone is constant; those of float16 are not.
CONSTANT_STATE = {"float16": 2.0**-12, "float32": 2.0**-21, "int8": 2.0**-7}

# A column is constant where it varies by less than 16 roundings of its mean, or than the state may.
CONSTANT_COLUMN = 2.0**-20


def same_rows(observed_NM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which targets are observed on exactly the same rows.

    Args:
      observed_NM: [N, M] bool.

    Returns:
      column_U: [U] int32, the first target of each pattern of rows, patterns in the order of their
        bits; pattern_M: [M] int32, each target's pattern.
    """
    bits_MX = np.packbits(observed_NM.T, axis=1)
    _, column_U, pattern_M = np.unique(bits_MX, axis=0, return_index=True, return_inverse=True)
    return column_U.astype(np.int32), pattern_M.reshape(-1).astype(np.int32)


def add_compensated(high: Tree, low: Tree, more: Tree) -> tuple[Tree, Tree]:
    """The new (high, low) of (high, low) + more: Knuth's two-sum leaf by leaf, renormalised.

    The pair holds a sum to twice float32's digits: `high` is the sum rounded to float32, `low` the
    rounding error. XLA does not reassociate, so the differences below survive compilation.

    Args:
      high: Arrays, in any tree.
      low: The same tree; zeros to begin with.
      more: The same tree, the numbers added.
    """

    def add(high: jax.Array, low: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = high + x
        back = total - high
        low = low + ((high - (total - back)) + (x - back))
        result = total + low
        return result, low - (result - total)

    pairs = jax.tree.map(add, high, low, more)
    return jax.tree.transpose(jax.tree.structure(high), jax.tree.structure((0, 0)), pairs)


def variance(mean_square: jax.Array, mean: jax.Array) -> jax.Array:
    """E x^2 - (E x)^2, and 0 where that is the rounding of the subtraction (NaN stays NaN)."""
    value = mean_square - jnp.square(mean)
    return jnp.where(value <= 4 * EPS * mean_square, 0.0, value)


def unit_of(x: jax.Array) -> jax.Array:
    """[] float32, a power of two that brings states of any scale to one whose squares are floats.

    Multiplying by it is exact. It is 1 where the largest magnitude of `x` is 0 or from 2^-32 to
    2^32, and else brings it to [1, 2).

    Args:
      x: float32, of any shape.
    """
    largest = jnp.abs(x).max()
    bits = jax.lax.bitcast_convert_type(largest, jnp.int32)
    exponent = jnp.clip(bits >> 23, 1, 252)  # 2^exponent stands for 2^(exponent - 127).
    unit = jax.lax.bitcast_convert_type((254 - exponent) << 23, jnp.float32)
    return jnp.where((jnp.abs(exponent - 127) <= 32) | (largest == 0), 1.0, unit)


def pilot_mean(x_RD: jax.Array, weight_R: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A unit for the states of one (layer, pooling), and their mean in it.

    The mean is taken of differences to one row, which are exact where the mean is large beside the
    spread: the rounding of a sum of the states themselves could be many times the spread.

    Args:
      x_RD: [R, D] states.
      weight_R: [R] weights, not all 0.

    Returns:
      unit [] of `unit_of`; shift_D [D].
    """
    unit = unit_of(x_RD)
    x_RD = x_RD * unit
    one_D = x_RD[weight_R.argmax()]
    share_R = weight_R / jnp.maximum(weight_R.sum(), 1.0)
    gap_D = jnp.einsum("r,rd->d", share_R, x_RD - one_D[None], precision=HIGHEST)
    return unit, one_D + gap_D


def is_constant(
    mean_D: jax.Array, variance_D: jax.Array, least: float | jax.Array = CONSTANT_STATE["float16"]
) -> jax.Array:
    """[] bool, whether a state is equal in all rows, up to the noise of computing and storing it.

    Args:
      mean_D: [D] means of one (layer, pooling).
      variance_D: [D] variances of the same.
      least: Of CONSTANT_STATE, for the dtype that the states are stored in.
    """
    spread = variance_D.sum()
    size = spread + jnp.square(mean_D).sum()
    return spread <= jnp.square(least) * size


def inverse_scale(
    mean_D: jax.Array, variance_D: jax.Array, least: float | jax.Array = CONSTANT_STATE["float16"]
) -> jax.Array:
    """[D] float32, 1 / standard deviation of each dimension, 0 where it does not vary.

    Constant columns, and all columns of a constant state, are therefore 0 once standardised.

    Args: As in `is_constant`.
    """
    varies_D = variance_D > jnp.square(jnp.minimum(CONSTANT_COLUMN, least) * mean_D)
    varies_D = varies_D & ~is_constant(mean_D, variance_D, least)
    return jnp.where(varies_D, jax.lax.rsqrt(jnp.where(varies_D, variance_D, 1.0)), 0.0)
