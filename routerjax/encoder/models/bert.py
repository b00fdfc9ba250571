"""BERT, RoBERTa, DistilBERT, MPNet: bidirectional, post-norm, embedded positions.

MiniLM is a BERT.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.models import products
from routerjax.encoder.models.feed_forward import ACTIVATIONS
from routerjax.encoder.models.norms import norm_maker
from routerjax.encoder.models.partition import attend
from routerjax.runtime.tuning import Tuning


class BertBlock(nnx.Module):
    """norm(x + attention(x)), then norm(x + feed-forward(x))."""

    def __init__(
        self, config: EncoderConfig, tuning: Tuning, linear: Any, norm: Any, rngs: nnx.Rngs
    ):
        D, F = config.width, config.ffn_width
        self.q, self.k, self.v, self.o = (linear(D, D, rngs=rngs) for _ in range(4))
        self.attention_norm = norm(D, rngs=rngs)
        self.up, self.down = linear(D, F, rngs=rngs), linear(F, D, rngs=rngs)
        self.ffn_norm = norm(D, rngs=rngs)
        self.n_heads, self.activation = config.n_heads, config.activation
        self.tuning = tuning

    def __call__(
        self, x_BTD: jax.Array, lengths_B: jax.Array, bias_HR: jax.Array | None
    ) -> jax.Array:
        B, T, D = x_BTD.shape
        q, k, v = (
            project(x_BTD).reshape(B, T, self.n_heads, -1) for project in (self.q, self.k, self.v)
        )
        mixed_BTHE = attend(
            q, k, v, lengths_B, precision=self.q.precision, tuning=self.tuning,
            bidirectional=True, bias_HR=bias_HR,
        )  # fmt: skip
        mixed_BTD = mixed_BTHE.reshape(B, T, D)
        x_BTD = self.attention_norm(x_BTD + self.o(mixed_BTD))
        return self.ffn_norm(x_BTD + self.down(ACTIVATIONS[self.activation](self.up(x_BTD))))


class Bert(nnx.Module):
    """Word, position and segment embeddings, n_layers blocks in one stack; no pooler.

    Args:
      config: The family's shape.
      dtype: Of the parameters and of the products.
      precision: Of the products; HIGHEST where float32 is claimed.
      tuning: For the devices that the model runs on.
      rngs: For random weights; `nnx.eval_shape` gives the shapes without making any.
    """

    def __init__(
        self,
        config: EncoderConfig,
        dtype: Any,
        precision: jax.lax.Precision,
        tuning: Tuning,
        rngs: nnx.Rngs,
    ):
        assert not tuning.cudnn, "it is for causal attention"
        self.tuning, types = tuning, {"dtype": dtype, "param_dtype": dtype}
        linear = products.linear_maker(dtype, precision, tuning)
        norm = norm_maker(config, dtype)
        D = config.width
        self.max_positions, self.padding_token = config.max_positions, config.padding_token
        # RoBERTa's rows up to the padding token's number are never read but for that one.
        unread = 0 if config.padding_token is None else config.padding_token + 1
        self.embed = nnx.Embed(config.vocab_size, D, rngs=rngs, **types)
        self.positions = nnx.Embed(unread + config.max_positions, D, rngs=rngs, **types)
        if config.n_segments:
            self.segments = nnx.Embed(config.n_segments, D, rngs=rngs, **types)
        self.has_segments = config.n_segments > 0
        if config.n_distances:
            self.distances = nnx.Embed(config.n_distances, config.n_heads, rngs=rngs, **types)
        self.has_distances = config.n_distances > 0
        self.embed_norm = norm(D, rngs=rngs)

        @nnx.split_rngs(splits=config.n_layers)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> BertBlock:
            return BertBlock(config, tuning, linear, norm, rngs)

        self.blocks = nnx.List([stack(rngs)])
        self.lead, self.lenders = config.lead, config.lenders

    def start(
        self, tokens_BT: jax.Array, lengths_B: jax.Array, n_before: int = 0
    ) -> tuple[jax.Array, Any]:
        """Hidden state 0, and what every block needs to know of the batch."""
        assert n_before == 0, "what sees both ways has no prefix"
        positions_T = jnp.arange(tokens_BT.shape[1])
        # A bucket may reach past the last position. Only padding lies there, but it must be finite:
        # attention gives it weight 0, and 0 x NaN is NaN.
        if self.padding_token is None:
            known_BT = jnp.minimum(positions_T, self.max_positions - 1)[None]
        else:
            counted_BT = (tokens_BT != self.padding_token).astype(jnp.int32)
            known_BT = jnp.minimum(jnp.cumsum(counted_BT, axis=1), self.max_positions) * counted_BT
            known_BT = known_BT + self.padding_token
        x_BTD = self.embed(tokens_BT) + self.positions(known_BT)
        if self.has_segments:
            x_BTD = x_BTD + self.segments(jnp.zeros((1, 1), jnp.int32))
        bias_HR = None
        if self.has_distances:
            T = len(positions_T)
            rows_R = distance_rows(np.arange(1 - T, T))
            bias_HR = self.distances(jnp.asarray(rows_R)).T.astype(jnp.float32)
        return self.embed_norm(x_BTD), (lengths_B, bias_HR)

    def apply_block(
        self,
        block: BertBlock,
        i: jax.Array,
        x_BTD: jax.Array,
        batch: Any,
        before: None = None,
    ) -> tuple[jax.Array, None]:
        """Hidden state i + 1 from hidden state i; what sees both ways leaves nothing behind."""
        return block(x_BTD, *batch), None

    def finish(self, x_BTD: jax.Array) -> jax.Array:
        """The last hidden state: BERT has no final norm."""
        return x_BTD


def distance_rows(distance_R: np.ndarray) -> np.ndarray:
    """The rows of MPNet's table of distances: 16 for keys up to the query, 16 for later ones.

    Of these 16, the first 8 are of one distance each, the others of distances up to 128 in steps of
    equal ratio; the last one is also of all beyond.

    Args:
      distance_R: [R] whole numbers, from the query to the key.
    """
    away = np.abs(distance_R)
    steps = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(8))
    steps = steps / np.float32(math.log(16)) * np.float32(8)
    far = np.minimum(8 + steps.astype(np.int32), 15)
    return np.where(away < 8, away, far) + 16 * (distance_R > 0)
