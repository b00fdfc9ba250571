"""Effective dimensionality from a sketch of the covariance, where the covariance does not fit.

d_eff = (tr C)^2 / |C|_F^2, and |C|_F^2 = E |C g|^2 for a vector g of random signs (Hutchinson's
estimator of tr C^2). With K of them, C G is a D x K sum over rows, of x (x' G), which one pass
collects; C is never there.

The error. |C g|^2 has a variance of at most 2 tr C^4 <= 2 |C|_F^4, so the relative standard error
of the estimate, and to first order of d_eff, is at most sqrt(2 / K): 12.5% for 128, 6.3% for 512.
All cells share the signs, so that differences between layers are surer than that.

Standardised states need each dimension's scale s_i before the pass that finds it. The pass uses a
pilot's scales p_i instead (those of its first block, a sample), and what they miss is put right
afterwards: with q_i = s_i^2 / p_i^2 and M_ij = C_ij^2 of the states scaled by the pilot, wanted is
sum_ij q_i q_j M_ij, known are the row sums r_i of M. About their mean c = sum q r / sum r the
estimate c^2 sum r is off by sum_ij (q_i - c)(q_j - c) M_ij, which is at most sum_i (q_i - c)^2 r_i
in size: known too, and added to the error.

References:
  Hutchinson, "A stochastic estimator of the trace of the influence matrix", Communications in
  Statistics 19 (1990). Avron and Toledo, "Randomized algorithms for estimating the trace of an
  implicit symmetric positive semi-definite matrix", J. ACM 58 (2011).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from routerjax.features.moments import Sums, moments_of
from routerjax.stats.numerics import HIGHEST, inverse_scale


class Pilot(NamedTuple):
    """What the first block tells of one (layer, pooling).

    Attributes:
      shift_D: [D] its mean, which is subtracted from every row.
      scale_D: [D] 1 / its standard deviation; 1 where it does not vary.
    """

    shift_D: jax.Array
    scale_D: jax.Array


class SketchSums(NamedTuple):
    """Sums over rows for one (layer, pooling), x about the pilot's mean.

    Attributes:
      raw_DK: [D, K] sum of w x (x' G).
      scaled_DK: [D, K] the same with x multiplied by the pilot's scale.
    """

    raw_DK: jax.Array
    scaled_DK: jax.Array


def pilot_of(x_RD: jax.Array, weight_R: jax.Array) -> Pilot:
    """The pilot from the first block's rows of one (layer, pooling).

    Args:
      x_RD: [R, D] states.
      weight_R: [R] weights, not all 0.
    """
    share_R = weight_R / weight_R.sum()
    shift_D = jnp.einsum("r,rd->d", share_R, x_RD, precision=HIGHEST)
    square_RD = jnp.square(x_RD - shift_D[None])
    inverse_D = inverse_scale(shift_D, jnp.einsum("r,rd->d", share_R, square_RD, precision=HIGHEST))
    return Pilot(shift_D, jnp.where(inverse_D > 0, inverse_D, 1.0))


@functools.partial(jax.jit, static_argnames=("width", "n"))
def draw_signs(width: int, n: int, seed: int) -> jax.Array:
    """G: [D, K] float32, -1 or 1."""
    return jax.random.rademacher(jax.random.key(seed), (width, n), jnp.float32)


def sketch_sums(
    x_RD: jax.Array, pilot: Pilot, weight_R: jax.Array, signs_DK: jax.Array
) -> SketchSums:
    """Sums of one block for one (layer, pooling).

    Args:
      x_RD: [R, D] its states.
      pilot: Its pilot.
      weight_R: [R] weights.
      signs_DK: [D, K] of `draw_signs`.
    """

    def of(x_RD: jax.Array) -> jax.Array:
        t_RK = jnp.matmul(x_RD, signs_DK, precision=HIGHEST)
        return jnp.einsum("rd,rk->dk", x_RD, weight_R[:, None] * t_RK, precision=HIGHEST)

    x_RD = x_RD - pilot.shift_D[None]
    return SketchSums(of(x_RD), of(x_RD * pilot.scale_D[None]))


def sketched_numbers(
    sums: Sums, sketch: SketchSums, pilot: Pilot, signs_DK: jax.Array
) -> dict[str, jax.Array]:
    """d_eff of one (layer, pooling) and how far it may be off.

    Args:
      sums: Its sums about the pilot's mean.
      sketch: Its sketch.
      pilot: Its pilot.
      signs_DK: [D, K] that the sketch was made with.

    Returns:
      [] each: "d_eff/SPACE" and "d_eff_trace/SPACE", which are one number here, and
      "d_eff_error/SPACE": e = b + (1 + 2 b) sqrt(2 / K), relative, the bound of the bias b and of
      the standard error; b is 0 on raw states.
    """
    moments = moments_of(sums, pilot.shift_D)
    inverse_D = moments.inverse_scale_D
    varies_D = jnp.where(inverse_D > 0, 1.0, 0.0)
    first_D = sums.first_D / sums.weight

    def row_squares(sum_DK: jax.Array, first_D: jax.Array, trace: jax.Array) -> jax.Array:
        """[D] sum_j C_ij^2 / trace^2, estimated; divided first, or squares leave float32."""
        along_K = jnp.matmul(first_D, signs_DK, precision=HIGHEST)
        product_DK = (sum_DK / sums.weight - first_D[:, None] * along_K[None]) / trace
        return jnp.square(product_DK).mean(axis=1) * varies_D

    raw_D = row_squares(sketch.raw_DK, first_D, (moments.variance_D * varies_D).sum())
    scaled_D = row_squares(sketch.scaled_DK, first_D * pilot.scale_D, varies_D.sum())
    q_D = jnp.square(inverse_D / pilot.scale_D)
    centre = (q_D * scaled_D).sum() / scaled_D.sum()
    standardised = jnp.square(centre) * scaled_D.sum()
    bias = (jnp.square(q_D - centre) * scaled_D).sum() / standardised
    noise = standard_error(signs_DK.shape[1])
    return {
        "d_eff/raw": 1 / raw_D.sum(),
        "d_eff_trace/raw": 1 / raw_D.sum(),
        "d_eff_error/raw": jnp.where(raw_D.sum() > 0, noise, jnp.nan),
        "d_eff/standardised": 1 / standardised,
        "d_eff_trace/standardised": 1 / standardised,
        "d_eff_error/standardised": bias + (1 + 2 * bias) * noise,
    }


def standard_error(n: int) -> float:
    """sqrt(2 / K), the bound of the relative standard error with K = n vectors of signs."""
    return math.sqrt(2 / n)
