"""MXFP4: four-bit floating-point numbers in groups of 32 that share a power of two.

OCP Microscaling Formats (MX) Specification 1.0: an element is E2M1 (a sign, two bits of exponent,
one of mantissa), a group's scale is E8M0: 2^(s - 127).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

GROUP = 32  # elements that share a scale

_MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
# By code.
ELEMENTS = np.concatenate([_MAGNITUDES, -_MAGNITUDES])


@functools.partial(jax.jit, static_argnames="dtype")
def unpack(blocks: jax.Array, scales: jax.Array, dtype: Any) -> jax.Array:
    """The numbers of packed rows.

    Exact in bfloat16 and wider, but for scales at the ends of float32's range: below s = 2, numbers
    smaller than 2^-126 become zeros; s = 255 (not a number) gives NaN or infinity.

    Args:
      blocks: [..., groups, 16] uint8, two elements each: the earlier one in the lower four bits.
      scales: [..., groups] uint8.
      dtype: Of the result.

    Returns:
      [..., groups * 32].
    """
    pairs = jnp.stack([blocks & 15, blocks >> 4], axis=-1)
    elements = jnp.asarray(ELEMENTS)[pairs].reshape(*scales.shape, GROUP)
    # The scale is a float32's exponent: put into its bits, it is exact on every device.
    powers = jax.lax.bitcast_convert_type(scales.astype(jnp.uint32) << 23, jnp.float32)
    return (elements * powers[..., None]).astype(dtype).reshape(*scales.shape[:-1], -1)
