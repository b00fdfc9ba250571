"""The norms of all families."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from routerjax.encoder.families.config import EncoderConfig


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * (offset + scale), in float32, returned in the module's dtype."""

    def __init__(
        self, width: int, *, eps: float, offset: float, dtype: Any, rngs: nnx.Rngs | None = None
    ):
        del rngs  # Nothing is drawn; all modules are made alike.
        self.scale = nnx.Param(jnp.full((width,), 1 - offset, dtype))
        self.eps, self.offset, self.dtype = eps, offset, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x = unit_rms(x, self.eps)
        return (x * jnp.expand_dims(self.scale_D, range(x.ndim - 1))).astype(self.dtype)

    @property
    def scale_D(self) -> jax.Array:
        """[width] float32 what each normed channel is multiplied by."""
        # Gemma's weights lie about 0: 1 + weight would lose digits in bfloat16.
        return self.scale[...].astype(jnp.float32) + self.offset


def unit_rms(x: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) over the last axis, in float32."""
    x = x.astype(jnp.float32)
    return x * inverse_rms(x, eps)


def inverse_rms(x: jax.Array, eps: float) -> jax.Array:
    """[..., 1] 1 / sqrt(mean(x^2) + eps) of float32 x [..., D]."""
    return jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + eps)


def norm_maker(config: EncoderConfig, dtype: Any) -> Callable[..., Any]:
    """The family's norm as a function of its width (and rngs)."""
    if config.norm == "layer":
        # The fast variance, E[x^2] - E[x]^2, cancels where the mean is large.
        return functools.partial(
            nnx.LayerNorm,
            epsilon=config.norm_eps,
            use_bias=config.norm_bias,
            use_fast_variance=False,
            dtype=dtype,
            param_dtype=dtype,
        )
    return functools.partial(RMSNorm, eps=config.norm_eps, offset=config.norm_offset, dtype=dtype)
