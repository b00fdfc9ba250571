"""Convolutions over a few tokens, and the mixer that is little else (LFM2)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.models.mixers.place import Place
from routerjax.runtime.tuning import Tuning


class DepthwiseConv(nnx.Module):
    """Each channel's sum over the K last tokens, weighted by K numbers of its own, and a bias."""

    def __init__(
        self, width: int, size: int, dtype: Any, rngs: nnx.Rngs, *, use_bias: bool = False
    ):
        noise = jax.random.normal(rngs.params(), (size, 1, width), jnp.float32)
        self.kernel = nnx.Param((noise * size**-0.5).astype(dtype))
        self.bias = nnx.Param(jnp.zeros(width, dtype)) if use_bias else None

    def __call__(self, x_BTC: jax.Array) -> jax.Array:
        """[B, K - 1 + T, C] to [B, T, C]; as K shifted products, which fuse into one loop."""
        kernel_KC = self.kernel[...][:, 0].astype(jnp.float32)
        n_tokens = x_BTC.shape[1] - len(kernel_KC) + 1
        shifted = (
            x_BTC[:, k : k + n_tokens].astype(jnp.float32) * weight_C[None, None]
            for k, weight_C in enumerate(kernel_KC)
        )
        start = jnp.zeros((), jnp.float32)
        if self.bias is not None:
            start = self.bias[...].astype(jnp.float32)[None, None]
        return sum(shifted, start=start).astype(x_BTC.dtype)


def last_inputs(x_BTC: jax.Array, lengths_B: jax.Array, size: int) -> jax.Array:
    """[B, K - 1, C] what a convolution sees before the token after a row's last real one.

    Args:
      x_BTC: [B, K - 1 + T, C] its inputs, the K - 1 before the first token included.
      lengths_B: [B] int32 real tokens of each row's T.
      size: K.
    """
    # The K - 1 last real inputs of a row begin at its length.
    last_BK = lengths_B[:, None] + jnp.arange(size - 1)[None]
    return jnp.take_along_axis(x_BTC, last_BK[:, :, None], axis=1)


class ShortConv(nnx.Module):
    """out(out_gate(x) * convolution of (in_gate(x) * value(x))).

    Leaves the K - 1 last real inputs of its convolution behind, [B, K - 1, D]; `before` are those
    of a prefix, with one row. A padded token stands behind all real ones, which do not see it.
    """

    def __init__(
        self, config: EncoderConfig, tuning: Tuning, linear: Any, norm: Any, rngs: nnx.Rngs
    ):
        del tuning, norm
        D, bias = config.width, config.conv_bias
        self.in_gate = linear(D, D, use_bias=bias, rngs=rngs)
        self.out_gate = linear(D, D, use_bias=bias, rngs=rngs)
        self.value = linear(D, D, use_bias=bias, rngs=rngs)
        dtype = self.value.param_dtype
        self.conv = DepthwiseConv(D, config.conv_width, dtype, rngs, use_bias=bias)
        self.out = linear(D, D, use_bias=bias, rngs=rngs)
        self.size = config.conv_width

    def __call__(
        self, x_BTD: jax.Array, place: Place, before: Any = None
    ) -> tuple[jax.Array, jax.Array]:
        B, _, D = x_BTD.shape
        gated_BTD = self.in_gate(x_BTD) * self.value(x_BTD)
        tail = jnp.zeros((1, self.size - 1, D), gated_BTD.dtype) if before is None else before
        tail = jnp.broadcast_to(tail, (B, self.size - 1, D))
        inputs = jnp.concatenate([tail, gated_BTD], axis=1)
        y_BTD = self.out(self.out_gate(x_BTD) * self.conv(inputs))
        return y_BTD, last_inputs(inputs, place.lengths_B, self.size)
