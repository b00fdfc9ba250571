"""The Mamba-2 mixer: a memory that decays and is written to token by token.

Axes: H heads, G groups of heads, E channels of a head, N rows of a memory, C tokens of a chunk.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.models import partition
from routerjax.encoder.models.mixers.place import Place
from routerjax.encoder.models.mixers.short_conv import DepthwiseConv, last_inputs
from routerjax.encoder.models.norms import unit_rms
from routerjax.runtime.devices import power_of_two
from routerjax.runtime.tuning import Tuning

HIGHEST = jax.lax.Precision.HIGHEST


class Mamba(nnx.Module):
    """out(norm(state space of convolved x, b, c * silu(z))), as in Nemotron-H.

    Leaves behind what its convolution and its memory hold after every row's last real token:
    (conv_tail [B, K - 1, channels of x, b and c], memory [B, H, N, E] float32); `before` is the
    same of a prefix, with one row.
    """

    def __init__(
        self, config: EncoderConfig, tuning: Tuning, linear: Any, norm: Any, rngs: nnx.Rngs
    ):
        del tuning, norm
        assert config.mamba is not None
        s, D = config.mamba, config.width
        inner, shared = s.n_heads * s.head_dim, s.n_groups * s.memory_dim
        self.z = linear(D, inner, use_bias=s.bias, rngs=rngs)
        self.x = linear(D, inner, use_bias=s.bias, rngs=rngs)
        self.b = linear(D, shared, use_bias=s.bias, rngs=rngs)
        self.c = linear(D, shared, use_bias=s.bias, rngs=rngs)
        self.step = linear(D, s.n_heads, use_bias=s.bias, rngs=rngs)
        dtype = self.x.param_dtype
        self.x_conv, self.b_conv, self.c_conv = (
            DepthwiseConv(width, s.conv_width, dtype, rngs, use_bias=s.conv_bias)
            for width in (inner, shared, shared)
        )
        self.A_log = nnx.Param(jnp.zeros((s.n_heads,), dtype))
        self.D = nnx.Param(jnp.ones((s.n_heads,), dtype))
        self.dt_bias = nnx.Param(jnp.ones((s.n_heads,), dtype))
        self.norm_scale = nnx.Param(jnp.ones((inner,), dtype))
        self.out = linear(inner, D, use_bias=s.bias, rngs=rngs)
        self.shape, self.eps = s, config.norm_eps

    def __call__(
        self, x_BTD: jax.Array, place: Place, before: Any = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        B, T, _ = x_BTD.shape
        s = self.shape
        real_BT1 = place.real_BT[:, :, None]
        # Padding may hold anything, infinities too; it must not reach the memory.
        x_BTD = jnp.where(real_BT1, x_BTD, 0)
        projected = self.x(x_BTD), self.b(x_BTD), self.c(x_BTD)
        inner, shared = projected[0].shape[-1], projected[1].shape[-1]
        shape = B, s.conv_width - 1, inner + 2 * shared
        tail = jnp.zeros(shape, x_BTD.dtype) if before is None else before[0]
        tails = jnp.split(jnp.broadcast_to(tail, shape), [inner, inner + shared], axis=-1)
        inputs = [jnp.concatenate(each, axis=1) for each in zip(tails, projected, strict=True)]
        convs = self.x_conv, self.b_conv, self.c_conv
        x, b, c = (jax.nn.silu(conv(each)) for conv, each in zip(convs, inputs, strict=True))
        step_BTH = self.step(x_BTD).astype(jnp.float32) + self._vector(self.dt_bias)
        step_BTH = jnp.maximum(jax.nn.softplus(step_BTH), s.least_step)
        # A step of length 0 leaves the memory as it is.
        step_BTH = jnp.where(real_BT1, step_BTH, 0)
        memory = jnp.zeros((1, s.n_heads, s.memory_dim, s.head_dim), jnp.float32)
        memory = memory if before is None else before[1]
        x_BTHE = x.reshape(B, T, s.n_heads, s.head_dim).astype(jnp.float32)
        tokens = (
            c.reshape(B, T, s.n_groups, s.memory_dim),
            b.reshape(B, T, s.n_groups, s.memory_dim),
            x_BTHE * step_BTH[..., None],
            -jnp.exp(self._vector(self.A_log)) * step_BTH,
        )
        scan = functools.partial(state_space, chunk=s.chunk)
        mixed_BTHE, memory = partition.by_memory(
            scan, tokens, jnp.broadcast_to(memory, (B, *memory.shape[1:]))
        )
        mixed_BTHE = mixed_BTHE + x_BTHE * self._vector(self.D)[..., None]
        mixed = mixed_BTHE.reshape(B, T, inner) * jax.nn.silu(self.z(x_BTD).astype(jnp.float32))
        normed = unit_rms(mixed.reshape(B, T, s.n_groups, -1), self.eps).reshape(B, T, inner)
        normed = self.norm_scale[...][None, None] * normed.astype(x_BTD.dtype)
        left = [last_inputs(each, place.lengths_B, s.conv_width) for each in inputs]
        return self.out(normed), (jnp.concatenate(left, axis=-1), memory)

    def _vector(self, param: nnx.Param) -> jax.Array:
        return param[...].astype(jnp.float32)[None, None]


def state_space(
    c_BTGN: jax.Array,
    b_BTGN: jax.Array,
    x_BTHE: jax.Array,
    decay_BTH: jax.Array,
    state_BHNE: jax.Array,
    *,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Writes to and reads the memory S [N, E] of every head, from the first token to the last.

    Token by token:

        S <- exp(decay) S + b x^T
        o  = S^T c

    computed in chunks of C tokens (the dual form): with D_ij = exp(decay summed over j < t <= i),

        o_i = D_i0 S^T c_i + sum over j <= i of D_ij (c_i . b_j) x_j

    so that from chunk to chunk there remain three products and a sum. All of it is float32 at the
    highest precision. A token with decay 0 and x 0 leaves S as it is.

    Args:
      c_BTGN: [B, T, G, N] what is read with; head h reads group h // (H / G).
      b_BTGN: [B, T, G, N] what is written with.
      x_BTHE: [B, T, H, E] what is written.
      decay_BTH: [B, T, H] float32 logarithms of the decay, at most 0.
      state_BHNE: [B, H, N, E] float32 memory before the first token.
      chunk: The most tokens of a chunk.

    Returns:
      o_BTHE [B, T, H, E] and the memory after the last token, both float32.

    References:
      Transformers are SSMs, arXiv 2405.21060.
    """
    B, T, H, E = x_BTHE.shape
    G, N = c_BTGN.shape[2:]
    C = min(chunk, power_of_two(T))
    n_chunks = -(-T // C)
    product = functools.partial(jnp.einsum, precision=HIGHEST)

    def cut(x: jax.Array, *heads: int) -> jax.Array:
        """[chunks, B, C, heads, ...] in float32; what is missing at the end is zeros."""
        x = jnp.pad(x, ((0, 0), (0, n_chunks * C - T)) + ((0, 0),) * (x.ndim - 2))
        x = x.reshape(B, n_chunks, C, *heads, *x.shape[3:]).astype(jnp.float32)
        return jnp.moveaxis(x, 1, 0)

    later_CC = jnp.tril(jnp.ones((C, C), bool))[None, :, :, None, None]

    def one_chunk(state: jax.Array, parts: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        # R heads of a group: b batch, i and j tokens, g groups, r heads, n rows, e channels.
        c, b, x, decay = parts
        sums = jnp.cumsum(decay, axis=1)
        between = jnp.where(later_CC, sums[:, :, None] - sums[:, None], -jnp.inf)
        scores = product("bign,bjgn->bijg", c, b)[..., None] * jnp.exp(between)
        o = product("bijgr,bjgre->bigre", scores, x)
        o = o + product("bign,bgrne->bigre", c, state) * jnp.exp(sums)[..., None]
        kept = jnp.exp(sums[:, -1:] - sums)[..., None] * x
        state = state * jnp.exp(sums[:, -1])[..., None, None] + product(
            "bjgn,bjgre->bgrne", b, kept
        )
        return state, o

    parts = cut(c_BTGN, G), cut(b_BTGN, G), cut(x_BTHE, G, H // G), cut(decay_BTH, G, H // G)
    state, o = jax.lax.scan(one_chunk, state_BHNE.reshape(B, G, H // G, N, E), parts)
    o_BTHE = jnp.moveaxis(o, 0, 1).reshape(B, n_chunks * C, H, E)[:, :T]
    return o_BTHE, state.reshape(B, H, N, E)
