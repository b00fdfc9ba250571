"""A block of a store while it is captured: put together, scaled and narrowed on the devices.

The host gets half the bytes, once a block, and no batch ever waits for it: an accelerator captures
short prompts faster than a core copies their states.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from routerjax.store.shards import INFINITY_BITS, SMALLEST, Narrowed, to_steps


def empty(shape_LPRD: tuple[int, ...], mesh: Mesh) -> jax.Array:
    """An empty buffer for a row block.

    Args:
      shape_LPRD: The buffer's shape; R rows at least as many as the largest batch, and enough for
        every batch to be put whole.
      mesh: The encoder's devices, which share the buffer by D where they divide it.
    """
    axes = mesh.axis_names if shape_LPRD[-1] % mesh.size == 0 else None
    return _zeros(shape_LPRD, sharding=NamedSharding(mesh, P(None, None, None, axes)))


def put(buffer_LPRD: jax.Array, h_LPBD: jax.Array, start: int) -> jax.Array:
    """The buffer with a batch from row `start` on.

    Of a block's batches only the first, of its shortest prompts, may have rows that only fill it
    (`BatchPlan.split`): the next one overwrites them.

    Args:
      buffer_LPRD: Of `empty`; donated.
      h_LPBD: States of a batch, which must fit.
      start: Row of its first.
    """
    return _put(buffer_LPRD, h_LPBD, jnp.int32(start), sharding=buffer_LPRD.sharding)


def narrowed(buffer_LPRD: jax.Array, n_rows: int, dtype: str) -> Narrowed:
    """What `ActivationStore.write_block` takes and fetches, without waiting for it.

    Args:
      buffer_LPRD: Of `put`.
      n_rows: Rows of the block.
      dtype: Out of STORE_DTYPES.
    """
    if dtype == "float32":
        h_LPRD = buffer_LPRD[:, :, :n_rows]
        zeros_LP, finite = np.zeros(h_LPRD.shape[:2], np.int32), jnp.isfinite(h_LPRD).all()
        return Narrowed(h_LPRD, h_LPRD, zeros_LP, np.bool_(False), finite)
    narrow = _narrow_to_int8 if dtype == "int8" else _narrow
    return Narrowed(*narrow(buffer_LPRD, n_rows=n_rows))


@functools.partial(jax.jit, static_argnames=("shape", "sharding"))
def _zeros(shape: tuple[int, ...], *, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.zeros(shape, jnp.float32), sharding)


@functools.partial(jax.jit, static_argnames="sharding", donate_argnums=0)
def _put(
    buffer_LPRD: jax.Array, h_LPBD: jax.Array, start: jax.Array, *, sharding: NamedSharding
) -> jax.Array:
    # Split as the buffer before it is written, so that each device writes its own share.
    h_LPBD = jax.lax.with_sharding_constraint(h_LPBD, sharding)
    buffer_LPRD = jax.lax.dynamic_update_slice_in_dim(buffer_LPRD, h_LPBD, start, axis=2)
    return jax.lax.with_sharding_constraint(buffer_LPRD, sharding)


@functools.partial(jax.jit, static_argnames="n_rows")
def _narrow(buffer_LPRD: jax.Array, *, n_rows: int) -> tuple[Any, ...]:
    """The fields of `Narrowed` for float16, as `shards.encode` has them."""
    h_LPRD = buffer_LPRD[:, :, :n_rows]
    largest_LP = jnp.abs(h_LPRD).max(axis=(2, 3))
    known_LP = jnp.where(jnp.isfinite(largest_LP), largest_LP, 1.0)
    exponents_LP = jnp.frexp(known_LP)[1].astype(jnp.int32) - 15
    scale_LP = jnp.ldexp(jnp.float32(1), -exponents_LP)
    stored = (h_LPRD * scale_LP[:, :, None, None]).astype(jnp.float16)
    # Of the bits: asked whether numbers are finite, XLA may look at those it has not rounded yet.
    finite = ((jax.lax.bitcast_convert_type(stored, jnp.uint16) << 1) < INFINITY_BITS).all()
    return h_LPRD, stored, exponents_LP, (largest_LP < SMALLEST).any(), finite


@functools.partial(jax.jit, static_argnames="n_rows")
def _narrow_to_int8(buffer_LPRD: jax.Array, *, n_rows: int) -> tuple[Any, ...]:
    """The fields of `Narrowed` for int8."""
    h_LPRD = buffer_LPRD[:, :, :n_rows]
    steps_LPRD, scale_LPR, largest_LPR = to_steps(jnp, h_LPRD)
    scale_LPR4 = jax.lax.bitcast_convert_type(scale_LPR, jnp.int8)
    stored = jnp.concatenate([steps_LPRD, scale_LPR4], axis=3)
    exponents_LP = jnp.zeros(h_LPRD.shape[:2], jnp.int32)
    return (
        h_LPRD,
        stored,
        exponents_LP,
        (largest_LPR < SMALLEST).any(),
        jnp.isfinite(scale_LPR).all(),
    )
