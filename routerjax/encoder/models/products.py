"""Linear layers: products of float32 and float16, of bfloat16 also on a CPU, and of float8.

XLA's CPU backend widens what a product or an indexing of bfloat16 reads, and moves that out of
loops: a scan over stacked weights then makes a float32 copy of all of them at every batch. float16
is indexed as it is.

In float8 a weight is a code of float8_e4m3fn times a scale of its output channel, made when the
weights are loaded. What enters a product is quantised there, each token with a scale of its own;
nothing is calibrated. Of rows x and w of D numbers each, summed in float32:

    scale(x) = max |x| / 448            codes(x) = round(x / scale(x))
    product  = (sum over d of codes(x)_d * codes(w)_d) * scale(x) * scale(w)
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from routerjax.encoder.families.config import EncoderConfig
from routerjax.runtime.tuning import Tuning

FLOAT8 = jnp.float8_e4m3fn
LARGEST = float(jnp.finfo(FLOAT8).max)
# Parameters of a layer in float8, where one of another dtype has a kernel.
CODES, SCALES = "codes", "scales"
# Largest magnitude by which a row is scaled at least, so that zeros have a scale too.
_LEAST = 2.0**-100
# Mixers and feed-forward layers (`BlockKind`) all of whose products may be float8's.
_IN_FLOAT8 = {"attention", "borrowing", "borrowing_global", "global", "dense", "wide", "none"}


def linear_maker(dtype: Any, precision: Any, tuning: Tuning) -> Callable[..., Any]:
    """A linear layer as a function of its widths (use_bias and rngs), with the platform's products.

    Args:
      dtype: Of parameters and products; of float8 with a bfloat16 layer's input and output.
      precision: Of the products, but for float8's.
      tuning: For the devices.
    """
    if dtype == FLOAT8:
        return functools.partial(Float8Linear, tuning=tuning)
    product = dot_general if tuning.widens_bfloat16 else jax.lax.dot_general
    return functools.partial(
        nnx.Linear, precision=precision, dot_general=product, dtype=dtype, param_dtype=dtype
    )


def dot_general(
    x: jax.Array,
    y: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> jax.Array:
    """jax.lax.dot_general for a CPU: products of bfloat16 add up in float32.

    XLA's CPU backend has kernels for such products, five times as fast as float32's where the
    processor multiplies bfloat16 (AMX). Products that add up in bfloat16 take float32's kernels.
    """
    dtype = preferred_element_type or jnp.result_type(x, y)
    if x.dtype == y.dtype == jnp.bfloat16:
        preferred_element_type = jnp.float32
    product = jax.lax.dot_general(
        x, y, dimension_numbers, precision, preferred_element_type, out_sharding=out_sharding
    )
    return product.astype(dtype)


def matmul(x_RD: jax.Array, kernel_DF: jax.Array, precision: Any) -> jax.Array:
    """[R, F] the product by `dot_general`."""
    return dot_general(x_RD, kernel_DF, (((1,), (0,)), ((), ())), precision)


# What is indexed by its bits on a CPU: dtypes, and integers as wide.
_BITS = {
    jnp.dtype(jnp.bfloat16): jnp.dtype(jnp.uint16),
    jnp.dtype(jnp.float8_e4m3fn): jnp.dtype(jnp.uint8),
}
_NUMBERS = {bits: dtype for dtype, bits in _BITS.items()}


def bits_of_stacks(params: nnx.State) -> nnx.State:
    """The parameters with all stacked weights of bfloat16 and float8 read as bits, for `index`.

    Args:
      params: Of a model on CPU devices; its stacks are its `blocks`.

    Returns:
      The same memory, not a copy.
    """

    def read(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        bits = _BITS.get(x.dtype)
        if path[0].key != "blocks" or bits is None:
            return x
        shards = [
            jax.device_put(np.asarray(shard.data).view(bits), shard.device, may_alias=True)
            for shard in x.addressable_shards
        ]
        return jax.make_array_from_single_device_arrays(x.shape, x.sharding, shards)

    return jax.tree_util.tree_map_with_path(read, params)


def to_bits(weights: Any) -> Any:
    """Inside a program, a tree of weights, bfloat16 and float8 as bits, for `index`."""

    def bits(x: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(x, _BITS[x.dtype]) if x.dtype in _BITS else x

    return jax.tree.map(bits, weights)


def index(stack: jax.Array, i: jax.Array | int) -> jax.Array:
    """stack[i] along axis 0.

    Args:
      stack: [X, ...] numbers, or the bits of bfloat16 as uint16 or of float8 as uint8.
      i: Scalar.
    """
    x = jax.lax.dynamic_index_in_dim(stack, i, keepdims=False)
    return jax.lax.bitcast_convert_type(x, _NUMBERS[x.dtype]) if x.dtype in _NUMBERS else x


def float8_refusal(config: EncoderConfig, tuning: Tuning) -> str | None:
    """Why an encoder is not computed in float8 on these devices; None where it is."""
    parts = {part for kind in config.kinds for part in (kind.mixer, kind.ffn)}
    others = sorted(parts - _IN_FLOAT8)
    if not config.ropes or config.disentangled is not None or others:
        what = f" with {', '.join(others)}" if others else ""
        return (
            f"float8 is for decoders of attention and dense feed-forward layers alone, and this is "
            f"a {config.family} model{what}; take bfloat16"
        )
    if tuning.float8_products is None:
        return (
            "float8 is for NVIDIA GPUs of compute capability 8.9 or more (and CPUs, which compute "
            "the same by products of bfloat16); these devices gain nothing by it; take bfloat16"
        )
    return None


@jax.jit
def quantised(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Codes and scales of rows.

    Args:
      x: [..., D] of any dtype.

    Returns:
      Codes [..., D] float8_e4m3fn and scales [..., 1] float32, whose product is about x; NaN where
      a row is not finite.
    """
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis=-1, keepdims=True), _LEAST) / LARGEST
    return (x / scale).astype(FLOAT8), scale


class Float8Linear(nnx.Module):
    """[..., D] to [..., F] in bfloat16: x @ kernel + bias, both sides of the product in float8.

    The codes lie [F, D]: a GPU's products of float8 read both sides along D, and the compiler would
    transpose a kernel [D, F] at every batch.
    """

    def __init__(
        self, n_in: int, n_out: int, *, use_bias: bool, tuning: Tuning, rngs: nnx.Rngs
    ) -> None:
        draw = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        codes_FD, scales_F1 = quantised(draw(rngs.params(), (n_out, n_in), jnp.float32))
        self.codes, self.scales = nnx.Param(codes_FD), nnx.Param(scales_F1[:, 0])
        self.bias = nnx.Param(jnp.zeros(n_out, jnp.bfloat16)) if use_bias else None
        # As nnx.Linear has them.
        self.param_dtype, self.precision = jnp.bfloat16, jax.lax.Precision.DEFAULT
        self.tuning = tuning

    def __call__(self, x: jax.Array) -> jax.Array:
        codes, scales = quantised(x)
        y = float8_product(codes, self.codes[...], self.tuning) * scales
        y = y * jnp.expand_dims(self.scales[...], range(y.ndim - 1))
        if self.bias is not None:
            y = y + jnp.expand_dims(self.bias[...].astype(jnp.float32), range(y.ndim - 1))
        return y.astype(jnp.bfloat16)


def float8_product(x: jax.Array, codes_FD: jax.Array, tuning: Tuning) -> jax.Array:
    """[..., F] float32 sums of products of codes.

    Args:
      x: [..., D] codes.
      codes_FD: [F, D] codes.
      tuning: Whether they are multiplied as they are, or as the same numbers in bfloat16.
    """
    # cuBLAS sums float8 in less than float32 unless the highest precision is asked for.
    precision = jax.lax.Precision.HIGHEST
    if not tuning.float8_products:
        x, codes_FD = x.astype(jnp.bfloat16), codes_FD.astype(jnp.bfloat16)
        precision = jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(
        x, codes_FD, (((x.ndim - 1,), (1,)), ((), ())), precision,
        preferred_element_type=jnp.float32,
    )  # fmt: skip


def state_dtype(dtype: Any) -> Any:
    """Of all that is not a block's product: bfloat16 of float8, else the dtype itself."""
    return jnp.bfloat16 if dtype == FLOAT8 else dtype
