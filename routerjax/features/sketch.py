"""Leading principal components of columns too many for a covariance: a streamed sketch.

Subspace iteration on A = Z'Z / n, where Z are the standardised rows of all sites side by side: each
pass over the store multiplies A by an [E, K] basis. The plain iteration separates eigenvalue
lambda from the unwanted ones below `cut` by lambda / cut a pass, which is slow on the flat tails of
activations. The three-term recurrence of the Chebyshev polynomials on [0, cut] costs the same pass
and separates as (x + sqrt(x^2 - 1)), x = 2 lambda / cut - 1: ten passes do the work of some twenty.

References:
  Zhou, Saad, Tiago and Chelikowsky, "Self-consistent-field calculations using Chebyshev-filtered
  subspace iteration", J. Comput. Phys. 219 (2006). Halko, Martinsson and Tropp, "Finding structure
  with randomness", SIAM Review 53 (2011).
"""

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from routerjax.features.row_blocks import RowBlock, fold
from routerjax.stats.numerics import HIGHEST, add_compensated

# The sketch is drawn at multiples of this width, whatever the width asked for, so that any two
# fits of up to 300 components start from the same sketch and the narrower one is a prefix.
SKETCH_WIDTH = 384
_SPARE = 84

# Leading 300 eigenvalues to a relative 1e-3 on spectra as flat as 1/i (1e-4 for the leading 200).
PASSES = 12

# Passes before the unwanted end of the spectrum is known well enough to filter by.
_PLAIN_PASSES = 2


def leading_components(
    blocks: Callable[[], Iterable[RowBlock]],
    mean_SD: jax.Array,
    inverse_scale_SD: jax.Array,
    width: int,
    passes: int = PASSES,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Leading eigenvectors of the correlation matrix of concatenated sites.

    Args:
      blocks: Starts a pass over the row blocks; called once a pass.
      mean_SD: [S, D] column means of the S = L * P sites.
      inverse_scale_SD: [S, D] 1 / standard deviation, 0 for columns to leave out.
      width: C, components wanted.
      passes: Passes over the blocks, at least 1.

    Returns:
      components_EC with E = S * D, orthonormal columns; eigenvalues_C (of the population), in
      descending order; residual_C = |A v - lambda v|, within which A has an eigenvalue of each
      lambda.
    """
    n_columns = mean_SD.size
    n_sketch = min(n_columns, SKETCH_WIDTH * -(-(width + _SPARE) // SKETCH_WIDTH))
    basis_EK = _draw(inverse_scale_SD, n_sketch)
    previous_EK, step = jnp.zeros_like(basis_EK), -_PLAIN_PASSES
    for left in reversed(range(passes)):
        product_EK = _multiply(blocks(), mean_SD, inverse_scale_SD, basis_EK)
        if left:
            basis_EK, previous_EK = _filter(basis_EK, previous_EK, product_EK, step)
            step += 1
    components_EK, eigenvalues_K, residual_K = _rayleigh_ritz(basis_EK, product_EK)
    width = min(width, n_sketch)
    return components_EK[:, :width], eigenvalues_K[:width], residual_K[:width]


@functools.partial(jax.jit, static_argnames="n_sketch")
def _draw(inverse_scale_SD: jax.Array, n_sketch: int) -> jax.Array:
    """A random orthonormal basis [E, K] of the columns that vary."""
    sketch_EK = jax.random.normal(jax.random.key(0), (inverse_scale_SD.size, n_sketch))
    return jnp.linalg.qr(sketch_EK * (inverse_scale_SD.reshape(-1, 1) > 0))[0]


def _multiply(
    blocks: Iterable[RowBlock], mean_SD: jax.Array, inverse_scale_SD: jax.Array, basis_EK: jax.Array
) -> jax.Array:
    """A @ basis, [E, K], in one pass."""
    basis_SDK = basis_EK.reshape(*mean_SD.shape, -1)
    sums = jnp.float32(0), basis_SDK, mean_SD, basis_EK[0]

    def start(h_LPRD, weight_R, y_RM):
        del h_LPRD, weight_R, y_RM
        return jax.tree.map(jnp.zeros_like, (sums, sums))

    def step(carry, h_LPRD, weight_R, y_RM):
        del y_RM
        return _add_product(carry, h_LPRD, weight_R, mean_SD, inverse_scale_SD, basis_SDK)

    return _centred(*fold(blocks, start, step)[0]).reshape(basis_EK.shape)


@jax.jit
def _centred(
    weight: jax.Array, product_SDK: jax.Array, first_SD: jax.Array, total_K: jax.Array
) -> jax.Array:
    """The mean of Z'(Z basis), were Z centred exactly, of the sums of `_add_product`.

    A mean of 10^6 times the spread, rounded to float32, is up to 6% of the spread off.
    """
    mean_SD, mean_K = first_SD / weight, total_K / weight
    return product_SDK / weight - mean_SD[:, :, None] * mean_K[None, None]


@jax.jit
def _add_product(carry, h_LPRD, weight_R, mean_SD, inverse_scale_SD, basis_SDK):
    """Adds one block to the sums of w, Z'W(Z basis), w Z and w Z basis.

    Site by site, so that Z is never formed whole.
    """
    h_SRD = h_LPRD.reshape(-1, *h_LPRD.shape[2:])

    def standardised(h_RD, mean_D, inverse_scale_D):
        return (h_RD - mean_D[None]) * inverse_scale_D[None]

    def forward(t_RK, site):
        *x, basis_DK = site
        return t_RK + jnp.matmul(standardised(*x), basis_DK, precision=HIGHEST), None

    def backward(_, site):
        z_RD = standardised(*site)
        product_DK = jnp.einsum("rd,rk->dk", z_RD, weighted_RK, precision=HIGHEST)
        return None, (product_DK, jnp.einsum("r,rd->d", weight_R, z_RD, precision=HIGHEST))

    zeros_RK = jnp.zeros((h_SRD.shape[1], basis_SDK.shape[2]), jnp.float32)
    sites = (h_SRD, mean_SD, inverse_scale_SD)
    t_RK, _ = jax.lax.scan(forward, zeros_RK, (*sites, basis_SDK))
    weighted_RK = weight_R[:, None] * t_RK
    _, (product_SDK, first_SD) = jax.lax.scan(backward, None, sites)
    high, low = carry
    more = weight_R.sum(), product_SDK, first_SD, weighted_RK.sum(axis=0)
    return add_compensated(high, low, more)


@jax.jit
def _filter(
    basis_EK: jax.Array, previous_EK: jax.Array, product_EK: jax.Array, step: int
) -> tuple[jax.Array, jax.Array]:
    """One step of the recurrence, orthonormalised; the step before it, in the same coordinates.

    Both are multiplied by the same inverse triangle, which the recurrence, being linear, allows.
    Without it all columns would turn to the leading component within a few steps.
    """
    ritz_KK = jnp.matmul(basis_EK.T, product_EK, precision=HIGHEST)
    half = jnp.linalg.eigvalsh((ritz_KK + ritz_KK.T) / 2)[0] / 2
    # Step 0 is T_1 = x; step 1 weighs T_0 twice as the scaled recurrence wants; before, plain.
    centre = jnp.where(step >= 0, half, 0.0)
    momentum = jnp.where(step >= 1, jnp.square(half) / jnp.where(step == 1, 2.0, 4.0), 0.0)
    next_EK = product_EK - centre * basis_EK - momentum * previous_EK
    next_EK, triangle_KK = jnp.linalg.qr(next_EK)
    # Fewer rows than sketch columns leave zeros on the triangle's diagonal; what belongs to them
    # is in the null space of A and of no interest.
    diagonal_K = jnp.abs(jnp.diagonal(triangle_KK))
    lost_K = diagonal_K <= 1e-6 * diagonal_K.max()
    safe_KK = triangle_KK + jnp.diag(jnp.where(lost_K, diagonal_K.max(), 0.0))
    before_EK = jax.scipy.linalg.solve_triangular(safe_KK, basis_EK.T, trans=1).T
    return next_EK, jnp.where(lost_K[None], 0.0, before_EK)


@jax.jit
def _rayleigh_ritz(basis_EK: jax.Array, product_EK: jax.Array):
    """Eigenpairs of A within the basis, and how far each is from being one of A."""
    ritz_KK = jnp.matmul(basis_EK.T, product_EK, precision=HIGHEST)
    eigenvalues_K, rotation_KK = jnp.linalg.eigh((ritz_KK + ritz_KK.T) / 2)
    eigenvalues_K, rotation_KK = eigenvalues_K[::-1], rotation_KK[:, ::-1]
    components_EK = jnp.matmul(basis_EK, rotation_KK, precision=HIGHEST)
    image_EK = jnp.matmul(product_EK, rotation_KK, precision=HIGHEST)
    residual_K = jnp.linalg.norm(image_EK - components_EK * eigenvalues_K[None], axis=0)
    return components_EK, eigenvalues_K, residual_K
