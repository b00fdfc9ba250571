"""Which units a row drops: random words by hashing, a few integer operations each.

Threefry, JAX's generator, took a seventh of an epoch on a CPU. Dropout needs no more than words
that member, epoch, row and unit do not link; only the keys they start from are threefry's.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def row_keys(key: jax.Array, rows_R: jax.Array) -> jax.Array:
    """[R] uint32 a random word for each row's dropout, however rows are batched or split.

    Args:
      key: Of jax.random, of one member and epoch.
      rows_R: [R] row numbers.
    """
    salt_2 = jax.random.bits(key, (2,), jnp.uint32)
    # The second pass, with a salt of its own: keys of one salt alone would be another's, shifted.
    return _mixed(_mixed(rows_R.astype(jnp.uint32) + salt_2[0]) ^ salt_2[1])


def keep(keys_R: jax.Array, widths: Sequence[int], shares: Any) -> list[jax.Array | None]:
    """[R, width] bool which units stay, for each layer; None where its width is 0.

    Args:
      keys_R: [R] uint32, as `row_keys` makes them.
      widths: Units of each hidden layer; 0 where none is ever dropped.
      shares: Share dropped of each, below 1; may be traced.
    """
    # What tells a row's words apart has nothing in common between neighbours.
    of_units = _mixed(np.arange(1, sum(widths) + 1, dtype=np.uint32))
    words = _mixed(keys_R[:, None] + of_units[None])
    ends = np.cumsum(widths)
    return [
        words[:, end - width : end] >= _threshold(shares[i]) if width else None
        for i, (end, width) in enumerate(zip(ends, widths, strict=True))
    ]


def _mixed(x: Any) -> Any:
    """A hash of uint32 to uint32, one to one: `lowbias32` of Wellons' hash prospector (2018)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _threshold(share: Any) -> jax.Array:
    """The words below it are the share of all that is dropped."""
    return (jnp.asarray(share, jnp.float32) * 2.0**32).astype(jnp.uint32)
