"""Decoder-only LLMs (Llama, Mistral, Qwen2, Qwen3) up to their final norm; no LM head."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from routerjax.encoder.attention import attend, rotary_frequencies, rotate
from routerjax.encoder.config import EncoderConfig

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    # As Hugging Face writes it; jax.nn.gelu goes by erfc, which takes three times as long on CPU.
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5)),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


class Attention(nnx.Module):
    """Causal self-attention with rotary positions and grouped key/value heads."""

    def __init__(self, config: EncoderConfig, linear: Any, norm: Any, rngs: nnx.Rngs):
        D, H, G, E = config.width, config.n_heads, config.n_kv_heads, config.head_dim
        self.q = linear(D, H * E, use_bias=config.qkv_bias, rngs=rngs)
        self.k = linear(D, G * E, use_bias=config.qkv_bias, rngs=rngs)
        self.v = linear(D, G * E, use_bias=config.qkv_bias, rngs=rngs)
        self.o = linear(H * E, D, use_bias=config.out_bias, rngs=rngs)
        if config.qk_norm:
            self.q_norm, self.k_norm = norm(E, rngs=rngs), norm(E, rngs=rngs)
        self.qk_norm, self.head_dim = config.qk_norm, E

    def __call__(self, x_BTD: jax.Array, angles_TE: jax.Array, visible_BTT: jax.Array) -> jax.Array:
        B, T, _ = x_BTD.shape
        q_BTHE, k_BTGE, v_BTGE = (
            project(x_BTD).reshape(B, T, -1, self.head_dim) for project in (self.q, self.k, self.v)
        )
        if self.qk_norm:
            q_BTHE, k_BTGE = self.q_norm(q_BTHE), self.k_norm(k_BTGE)
        q_BTHE, k_BTGE = rotate(q_BTHE, angles_TE), rotate(k_BTGE, angles_TE)
        x_BTHE = attend(q_BTHE, k_BTGE, v_BTGE, visible_BTT, self.q.precision)
        return self.o(x_BTHE.reshape(B, T, -1))


class GatedFeedForward(nnx.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(self, config: EncoderConfig, linear: Any, rngs: nnx.Rngs):
        D, F, bias = config.width, config.ffn_width, config.ffn_bias
        self.gate = linear(D, F, use_bias=bias, rngs=rngs)
        self.up = linear(D, F, use_bias=bias, rngs=rngs)
        self.down = linear(F, D, use_bias=bias, rngs=rngs)
        self.activation = config.activation

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return self.down(ACTIVATIONS[self.activation](self.gate(x_BTD)) * self.up(x_BTD))


class DecoderBlock(nnx.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: EncoderConfig, linear: Any, norm: Any, rngs: nnx.Rngs):
        self.attention_norm = norm(config.width, rngs=rngs)
        self.attention = Attention(config, linear, norm, rngs)
        self.ffn_norm = norm(config.width, rngs=rngs)
        self.ffn = GatedFeedForward(config, linear, rngs)

    def __call__(self, x_BTD: jax.Array, angles_TE: jax.Array, visible_BTT: jax.Array) -> jax.Array:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), angles_TE, visible_BTT)
        return x_BTD + self.ffn(self.ffn_norm(x_BTD))


class Decoder(nnx.Module):
    """Embedding, n_layers stacked blocks, final norm.

    Args:
      config: The family's shape.
      dtype: Of the parameters and of the products.
      precision: Of the products; HIGHEST where float32 is claimed.
      rngs: For random weights; `nnx.eval_shape` gives the shapes without making any.
    """

    def __init__(
        self, config: EncoderConfig, dtype: Any, precision: jax.lax.Precision, rngs: nnx.Rngs
    ):
        types = {"dtype": dtype, "param_dtype": dtype}
        linear = functools.partial(nnx.Linear, precision=precision, **types)
        norm: Any = functools.partial(nnx.RMSNorm, epsilon=config.norm_eps, **types)
        self.embed = nnx.Embed(config.vocab_size, config.width, rngs=rngs, **types)

        @nnx.split_rngs(splits=config.n_layers)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> DecoderBlock:
            return DecoderBlock(config, linear, norm, rngs)

        self.blocks = stack(rngs)
        self.norm = norm(config.width, rngs=rngs)
        self.config = config

    def start(self, tokens_BT: jax.Array, lengths_B: jax.Array) -> tuple[jax.Array, Any]:
        """Hidden state 0, and what every block needs to know of the batch."""
        T = tokens_BT.shape[1]
        positions_T = jnp.arange(T)
        angles_TE = positions_T[:, None].astype(jnp.float32) * rotary_frequencies(self.config)[None]
        back_TT = positions_T[:, None] - positions_T[None, :]
        windows_L = jnp.asarray(self.config.windows, jnp.int32)
        # Rows are padded on the right, so causality alone hides the padding from every real token.
        return self.embed(tokens_BT), (angles_TE, back_TT, windows_L)

    def apply_block(self, block: DecoderBlock, i: jax.Array, x_BTD: jax.Array, batch: Any):
        """Hidden state i + 1 from hidden state i."""
        angles_TE, back_TT, windows_L = batch
        visible_TT = (back_TT >= 0) & (back_TT < windows_L[i])
        return block(x_BTD, angles_TE, visible_TT[None])

    def finish(self, x_BTD: jax.Array) -> jax.Array:
        """The last hidden state, which Hugging Face returns after the final norm."""
        return self.norm(x_BTD)
