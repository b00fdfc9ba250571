"""Linear layers, and bfloat16 on a CPU, where XLA by default computes as if it were float32.

XLA's CPU backend widens what a product or an indexing of bfloat16 reads, and moves that out of
loops: a scan over stacked weights then makes a float32 copy of all of them at every batch. float16
is indexed as it is.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from routerjax.runtime.tuning import Tuning


def linear_maker(dtype: Any, precision: Any, tuning: Tuning) -> Callable[..., nnx.Linear]:
    """nnx.Linear as a function of its widths (use_bias and rngs), with this platform's products."""
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


def bits_of_stacks(params: nnx.State) -> nnx.State:
    """The parameters with all stacked weights of bfloat16 read as uint16, for `index`.

    Args:
      params: Of a model on CPU devices; its stacks are its `blocks`.

    Returns:
      The same memory, not a copy.
    """

    def read(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        if path[0].key != "blocks" or x.dtype != jnp.bfloat16:
            return x
        shards = [
            jax.device_put(np.asarray(shard.data).view(np.uint16), shard.device, may_alias=True)
            for shard in x.addressable_shards
        ]
        return jax.make_array_from_single_device_arrays(x.shape, x.sharding, shards)

    return jax.tree_util.tree_map_with_path(read, params)


def to_bits(weights: Any) -> Any:
    """Inside a program, a tree of weights with those of bfloat16 as uint16, for `index`."""

    def bits(x: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x

    return jax.tree.map(bits, weights)


def index(stack: jax.Array, i: jax.Array | int) -> jax.Array:
    """stack[i] along axis 0.

    Args:
      stack: [X, ...] numbers, or the bits of bfloat16 as uint16.
      i: Scalar.
    """
    x = jax.lax.dynamic_index_in_dim(stack, i, keepdims=False)
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x
