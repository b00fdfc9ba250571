"""The gated DeltaNet mixer: attention's place taken by a memory of fixed size."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.models import partition
from routerjax.encoder.models.mixers.delta_rule import delta_rule
from routerjax.encoder.models.mixers.place import Place
from routerjax.encoder.models.mixers.short_conv import DepthwiseConv, last_inputs
from routerjax.runtime.tuning import Tuning


class DeltaNet(nnx.Module):
    """out(norm(delta rule of convolved q, k, v) * silu(z)), as in Qwen3-Next and Qwen3.5.

    Leaves behind what its convolution and its memory hold after every row's last real token:
    (conv_tail [B, K - 1, channels of q, k and v], memory [B, H, E, E'] float32); `before` is the
    same of a prefix, with one row.
    """

    def __init__(
        self, config: EncoderConfig, tuning: Tuning, linear: Any, norm: Any, rngs: nnx.Rngs
    ):
        assert config.delta is not None
        shape, D = config.delta, config.width
        keys, values = shape.n_key_heads * shape.key_dim, shape.n_value_heads * shape.value_dim
        self.q = linear(D, keys, use_bias=False, rngs=rngs)
        self.k = linear(D, keys, use_bias=False, rngs=rngs)
        self.v = linear(D, values, use_bias=False, rngs=rngs)
        self.z = linear(D, values, use_bias=False, rngs=rngs)
        self.beta = linear(D, shape.n_value_heads, use_bias=False, rngs=rngs)
        self.decay = linear(D, shape.n_value_heads, use_bias=False, rngs=rngs)
        dtype = self.q.param_dtype
        self.q_conv = DepthwiseConv(keys, shape.conv_width, dtype, rngs)
        self.k_conv = DepthwiseConv(keys, shape.conv_width, dtype, rngs)
        self.v_conv = DepthwiseConv(values, shape.conv_width, dtype, rngs)
        self.A_log = nnx.Param(jnp.zeros((shape.n_value_heads,), dtype))
        self.dt_bias = nnx.Param(jnp.ones((shape.n_value_heads,), dtype))
        # Its weight lies about 1, whatever the other norms of the family do.
        self.norm = norm(shape.value_dim, offset=0.0, rngs=rngs)
        self.out = linear(values, D, use_bias=False, rngs=rngs)
        self.shape, self.tuning = shape, tuning

    def __call__(
        self, x_BTD: jax.Array, place: Place, before: Any = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        B, T, _ = x_BTD.shape
        s = self.shape
        real_BT1 = place.real_BT[:, :, None]
        # Padding may hold anything, infinities too; it must not reach the memory.
        x_BTD = jnp.where(real_BT1, x_BTD, 0)
        # [B, K - 1 + T, channels] each, what stands before the first token included.
        inputs = [jnp.concatenate([tail, x], axis=1) for tail, x in zip(
            self._tails(before, B), (self.q(x_BTD), self.k(x_BTD), self.v(x_BTD)), strict=True
        )]  # fmt: skip
        convs = self.q_conv, self.k_conv, self.v_conv
        q, k, v = (jax.nn.silu(conv(x)) for conv, x in zip(convs, inputs, strict=True))
        decay_BTH = -jnp.exp(self._vector(self.A_log)) * jax.nn.softplus(
            self.decay(x_BTD).astype(jnp.float32) + self._vector(self.dt_bias)
        )
        beta_BTH = jax.nn.sigmoid(self.beta(x_BTD).astype(jnp.float32))
        if before is None:
            memory = jnp.zeros((B, s.n_value_heads, s.key_dim, s.value_dim), jnp.float32)
        else:
            memory = jnp.broadcast_to(before[1], (B, *before[1].shape[1:]))
        tokens = (
            q.reshape(B, T, s.n_key_heads, s.key_dim),
            k.reshape(B, T, s.n_key_heads, s.key_dim),
            v.reshape(B, T, s.n_value_heads, s.value_dim),
            jnp.where(real_BT1, decay_BTH, 0),
            jnp.where(real_BT1, beta_BTH, 0),
        )
        rule = functools.partial(delta_rule, most_floats=self.tuning.delta_floats, chunk=s.chunk)
        mixed_BTHE, memory = partition.by_memory(rule, tokens, memory)
        tails = [last_inputs(x, place.lengths_B, s.conv_width) for x in inputs]
        z_BTHE = self.z(x_BTD).reshape(mixed_BTHE.shape).astype(jnp.float32)
        mixed_BTHE = self.norm(mixed_BTHE).astype(jnp.float32) * jax.nn.silu(z_BTHE)
        y_BTD = self.out(mixed_BTHE.reshape(B, T, -1).astype(x_BTD.dtype))
        return y_BTD, (jnp.concatenate(tails, axis=-1), memory)

    def _tails(self, before: Any, n_rows: int) -> list[jax.Array]:
        """[B, K - 1, channels] what the convolutions of q, k and v see before the first token."""
        widths = [conv.kernel.shape[-1] for conv in (self.q_conv, self.k_conv, self.v_conv)]
        shape = n_rows, self.shape.conv_width - 1, sum(widths)
        tail = jnp.zeros(shape, self.q.dtype) if before is None else before[0]
        return jnp.split(jnp.broadcast_to(tail, shape), [widths[0], widths[0] + widths[1]], axis=-1)

    def _vector(self, param: nnx.Param) -> jax.Array:
        return param[...].astype(jnp.float32)[None, None]
