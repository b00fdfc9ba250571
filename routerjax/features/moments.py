"""Streaming moments of hidden states: totals, and per class (wrong, correct) of every target.

One pass over the row blocks accumulates, for all layers, poolings and targets at once, sums of
x - shift and of its squares (and products, if asked), where shift is the mean of the first used
rows. Three things make float32 enough. A variance is a difference of two sums, which cancel where
the mean is large beside the spread; about a pilot mean they do not. The sums of blocks are added in
double-float (numerics.py), so that a million blocks lose no more than one. And states are
multiplied by a power of two, so that their squares stay in range whatever their scale.

No D x D matrix is ever kept per target: J needs per-class means and variances per dimension only.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from routerjax.encoder.selection import Selection
from routerjax.features.row_blocks import AlignedOutcomes, fold, least_variation, stream
from routerjax.stats.numerics import (
    CONSTANT_STATE,
    HIGHEST,
    add_compensated,
    inverse_scale,
    unit_of,
    variance,
)
from routerjax.store.store import ActivationStore

# Of the first row block every how manieth row says of which scale the states are.
_SAMPLED = 16

# Columns of a half from which on a symmetric product is made of three quarters.
_WORTH_HALVING = 128


class Sums(NamedTuple):
    """Sums over rows for one (layer, pooling), about a shift. K = 2: wrong, correct.

    x and shift are multiplied by a unit, which is 1 but for states of extreme scale.

    Attributes:
      weight: [] sum of w.
      first_D: [D] sum of w (x - shift).
      square_D: [D] sum of w (x - shift)^2.
      gram_DD: [D, D] sum of w (x - shift)(x - shift)', or None.
      unit_weight: [] sum of w over rows that are not the zero vector.
      unit_weight2: [] the same of w^2.
      unit_D: [D] sum of w x / |x|.
      class_weight_MK: [M, 2] sum of w over the rows of target m's class k.
      class_first_MKD: [M, 2, D] sum of w (x - shift) over them.
      class_square_MKD: [M, 2, D] sum of w (x - shift)^2 over them.
    """

    weight: jax.Array
    first_D: jax.Array
    square_D: jax.Array
    gram_DD: jax.Array | None
    unit_weight: jax.Array
    unit_weight2: jax.Array
    unit_D: jax.Array
    class_weight_MK: jax.Array
    class_first_MKD: jax.Array
    class_square_MKD: jax.Array


class Running(NamedTuple):
    """The state of a pass: leaves of `Sums` with leading axes [L, P].

    Attributes:
      shift_LPD: [L, P, D] what is subtracted from every row.
      unit_LP: [L, P] powers of two that the differences are multiplied by.
      high: The sums.
      low: What rounding took from them; high + low is the sum in double-float.
    """

    shift_LPD: jax.Array
    unit_LP: jax.Array
    high: Sums
    low: Sums


class Moments(NamedTuple):
    """Moments of one (layer, pooling); stacked with leading axes [L, P] by `finish`.

    Variances and covariance are those of the population (ddof 0). All are of the states times
    `unit`, which changes no ratio.

    Attributes:
      unit: [] a power of two.
      least: [] of numerics.CONSTANT_STATE, for the dtype that the states are stored in.
      weight: [] rows used.
      mean_D: [D].
      variance_D: [D].
      covariance_DD: [D, D], or None where the pass did not ask for it.
      unit_D: [D] mean of x / |x|.
      unit_rows: [] rows in that mean; (sum w)^2 / (sum w^2) for weights other than 0 and 1.
      class_weight_MK: [M, 2] rows of class 0 (wrong) and 1 (correct) of each target.
      class_offset_MKD: [M, 2, D] class mean minus mean_D; NaN for a class without rows. Kept as
        differences, because beside a large mean they would be lost to rounding.
      class_variance_MKD: [M, 2, D] variance within each class; NaN for a class without rows.
    """

    unit: jax.Array
    least: jax.Array
    weight: jax.Array
    mean_D: jax.Array
    variance_D: jax.Array
    covariance_DD: jax.Array | None
    unit_D: jax.Array
    unit_rows: jax.Array
    class_weight_MK: jax.Array
    class_offset_MKD: jax.Array
    class_variance_MKD: jax.Array

    @property
    def inverse_scale_D(self) -> jax.Array:
        """[D] 1 / standard deviation, 0 where a dimension does not vary; see numerics."""
        return inverse_scale(self.mean_D, self.variance_D, self.least)


@functools.partial(jax.jit, static_argnames="gram")
def begin(h_LPRD: jax.Array, weight_R: jax.Array, y_RM: jax.Array, gram: bool = False) -> Running:
    """A pass before its first block: zero sums about the mean of that block's used rows.

    Args:
      h_LPRD: [L, P, R, D] float32, the first block.
      weight_R: [R] its weights, not all 0.
      y_RM: [R, M] its outcomes; only the shape matters here.
      gram: Whether to accumulate products of dimensions too.

    Returns:
      The state that `update` takes.
    """
    total = jnp.maximum(weight_R.sum(), 1.0)
    shift_LPD = jnp.einsum("lprd,r->lpd", h_LPRD, weight_R / total, precision=HIGHEST)
    unit_LP = jax.vmap(jax.vmap(unit_of))(h_LPRD[:, :, ::_SAMPLED])
    sums = functools.partial(_sums_of_all, gram=gram)
    shapes = jax.eval_shape(sums, h_LPRD, shift_LPD, unit_LP, weight_R, y_RM)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return Running(shift_LPD, unit_LP, zeros, jax.tree.map(jnp.zeros_like, zeros))


@functools.partial(jax.jit, donate_argnums=0)
def update(state: Running, h_LPRD: jax.Array, weight_R: jax.Array, y_RM: jax.Array) -> Running:
    """Adds one block of rows.

    Args:
      state: The sums so far; donated.
      h_LPRD: [L, P, R, D] float32 hidden states.
      weight_R: [R] float32, 0 for rows that do not count.
      y_RM: [R, M] float32, 1 = correct, 0 = wrong, NaN = not observed, which counts in the totals
        and for no class.

    Returns:
      The sums with the block in them.
    """
    gram = state.high.gram_DD is not None
    block = _sums_of_all(h_LPRD, state.shift_LPD, state.unit_LP, weight_R, y_RM, gram)
    return Running(state.shift_LPD, state.unit_LP, *add_compensated(state.high, state.low, block))


@jax.jit
def finish(state: Running, least: float = CONSTANT_STATE["float16"]) -> Moments:
    """The moments that the sums stand for.

    Args:
      state: After the last block.
      least: As `Moments` has it.

    Returns:
      `Moments` with leading axes [L, P] on every field.
    """
    # In a double-float the high part is the sum rounded to float32: the low part has done its work.
    of = functools.partial(moments_of, least=least)
    return jax.vmap(jax.vmap(of))(state.high, state.shift_LPD, state.unit_LP)


def collect(
    store: ActivationStore,
    rows: AlignedOutcomes,
    selection: Selection,
    gram: bool = False,
) -> Moments:
    """Streams a store once and returns the moments of all its used rows.

    Args:
      store: The hidden states.
      rows: Weights and outcomes in store order.
      selection: The sites.
      gram: Whether to return covariances: 8 bytes x L x P x D^2 while accumulating.

    Returns:
      `Moments` on the device, leading axes [L, P] as selected.
    """
    start = functools.partial(begin, gram=gram)
    return finish(fold(stream(store, rows, selection), start, update), least_variation(store))


def sums_of(
    x_RD: jax.Array,
    shift_D: jax.Array,
    weight_R: jax.Array,
    y_RM: jax.Array,
    gram: bool,
    unit: float | jax.Array = 1.0,
) -> Sums:
    """Sums of one block for one (layer, pooling).

    Args:
      x_RD: [R, D] its states.
      shift_D: [D] what is subtracted from every row.
      weight_R: [R] weights.
      y_RM: [R, M] outcomes.
      gram: Whether to sum products of dimensions too.
      unit: What the differences are multiplied by.
    """
    norm_R = jnp.sqrt(jnp.square(x_RD * unit).sum(axis=1))
    unit_weight_R = jnp.where(norm_R > 0, weight_R, 0.0)
    direction_R = unit_weight_R / jnp.where(norm_R > 0, norm_R, 1.0)
    x_RD = (x_RD - shift_D[None]) * unit

    # One product for all rows and all classes: [1 + 2 M, R] x [R, D].
    class_MKR = class_weights(weight_R, y_RM)
    weight_SR = jnp.concatenate([weight_R[None], class_MKR.reshape(-1, len(weight_R))])
    first_SD, square_SD = (
        jnp.einsum("sr,rd->sd", weight_SR, power_RD, precision=HIGHEST)
        for power_RD in (x_RD, jnp.square(x_RD))
    )
    shape = (*class_MKR.shape[:2], -1)
    return Sums(
        weight_R.sum(),
        first_SD[0],
        square_SD[0],
        _gram(x_RD, weight_R) if gram else None,
        unit_weight_R.sum(),
        jnp.square(unit_weight_R).sum(),
        # Not shifted: anisotropy is about the angle at the origin.
        _over_rows(direction_R, x_RD) + direction_R.sum() * (shift_D * unit),
        class_MKR.sum(axis=2),
        first_SD[1:].reshape(shape),
        square_SD[1:].reshape(shape),
    )


def moments_of(
    sums: Sums,
    shift_D: jax.Array,
    unit: float | jax.Array = 1.0,
    least: float | jax.Array = CONSTANT_STATE["float16"],
) -> Moments:
    """The moments that the sums of one (layer, pooling) stand for; arguments as in `Moments`."""
    first_D = sums.first_D / sums.weight
    covariance_DD = None
    if sums.gram_DD is not None:
        covariance_DD = sums.gram_DD / sums.weight - first_D[:, None] * first_D[None, :]
    rows_MK1 = sums.class_weight_MK[:, :, None]
    class_first_MKD = sums.class_first_MKD / rows_MK1
    return Moments(
        jnp.float32(unit),
        jnp.float32(least),
        sums.weight,
        shift_D * unit + first_D,
        variance(sums.square_D / sums.weight, first_D),
        covariance_DD,
        sums.unit_D / sums.unit_weight,
        jnp.square(sums.unit_weight) / sums.unit_weight2,
        sums.class_weight_MK,
        class_first_MKD - first_D[None, None],
        variance(sums.class_square_MKD / rows_MK1, class_first_MKD),
    )


def class_weights(weight_R: jax.Array, y_RM: jax.Array) -> jax.Array:
    """Weights of the rows of each target's two classes.

    Args:
      weight_R: [R] weights of the rows.
      y_RM: [R, M] 1 = correct, 0 = wrong, NaN = not observed.

    Returns:
      [M, 2, R]: the row's weight where it belongs to the class, else 0.
    """
    belongs_MKR = y_RM.T[:, None, :] == jnp.arange(2.0)[None, :, None]
    return jnp.where(belongs_MKR, weight_R[None, None, :], 0.0)


def _over_rows(w_R: jax.Array, x_RD: jax.Array) -> jax.Array:
    return jnp.einsum("r,rd->d", w_R, x_RD, precision=HIGHEST)


def _gram(x_RD: jax.Array, w_R: jax.Array) -> jax.Array:
    # The same array on both sides; with the weight on one of them XLA would make two.
    x_RD = x_RD * jnp.sqrt(w_R)[:, None]

    def product(a_RD: jax.Array, b_RE: jax.Array) -> jax.Array:
        return jnp.einsum("rd,re->de", a_RD, b_RE, precision=HIGHEST)

    half = x_RD.shape[1] // 2
    if half < _WORTH_HALVING:
        return product(x_RD, x_RD)
    # Three quarters of the work: the fourth is the transpose of the second.
    a_RD, b_RE = x_RD[:, :half], x_RD[:, half:]
    ab_DE = product(a_RD, b_RE)
    rows = (product(a_RD, a_RD), ab_DE), (ab_DE.T, product(b_RE, b_RE))
    return jnp.concatenate([jnp.concatenate(row, axis=1) for row in rows])


def _sums_of_all(
    h_LPRD: jax.Array,
    shift_LPD: jax.Array,
    unit_LP: jax.Array,
    weight_R: jax.Array,
    y_RM: jax.Array,
    gram: bool,
) -> Sums:
    """`sums_of` over layers and poolings, one after the other: a site's rows fit a cache."""
    shape = h_LPRD.shape[:2]
    sites = [x.reshape(-1, *x.shape[2:]) for x in (h_LPRD, shift_LPD, unit_LP)]

    def of_site(site: list[jax.Array]) -> Sums:
        x_RD, shift_D, unit = site
        return sums_of(x_RD, shift_D, weight_R, y_RM, gram, unit)

    sums = jax.lax.map(of_site, sites)
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), sums)
