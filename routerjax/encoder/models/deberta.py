"""DeBERTa-v2 and -v3: as BERT, with attention to words and to distances apart (arXiv 2006.03654).

Axes: R = 2T - 1 distances from key to query in a prompt of T tokens, the earliest key first.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.families.shapes import DisentangledShape
from routerjax.encoder.models import partition, products
from routerjax.encoder.models.blockwise import HIDDEN, head_chunks, shifted
from routerjax.encoder.models.feed_forward import ACTIVATIONS
from routerjax.encoder.models.norms import norm_maker
from routerjax.runtime.tuning import Tuning


class DebertaBlock(nnx.Module):
    """norm(x + attention(x)), then norm(x + feed-forward(x))."""

    def __init__(
        self, config: EncoderConfig, tuning: Tuning, linear: Any, norm: Any, rngs: nnx.Rngs
    ):
        assert config.disentangled is not None and config.query_scale is not None
        D, F, shape = config.width, config.ffn_width, config.disentangled
        self.q, self.k, self.v, self.o = (linear(D, D, rngs=rngs) for _ in range(4))
        if shape.to_position and not shape.shared_keys:
            self.position_k = linear(D, D, rngs=rngs)
        if shape.from_position and not shape.shared_keys:
            self.position_q = linear(D, D, rngs=rngs)
        self.attention_norm = norm(D, rngs=rngs)
        self.up, self.down = linear(D, F, rngs=rngs), linear(F, D, rngs=rngs)
        self.ffn_norm = norm(D, rngs=rngs)
        self.config, self.shape, self.tuning = config, shape, tuning
        self.scale = config.query_scale

    def __call__(
        self, x_BTD: jax.Array, lengths_B: jax.Array, distances_RD: jax.Array | None
    ) -> jax.Array:
        B, T, D = x_BTD.shape
        c, s = self.config, self.shape
        q, k, v = (y(x_BTD).reshape(B, T, c.n_heads, -1) for y in (self.q, self.k, self.v))
        of_heads: dict[str, jax.Array | None] = {"keys_HRE": None, "queries_HRE": None}
        if s.to_position:
            of_heads["keys_HRE"] = self._of_heads(
                self.k if s.shared_keys else self.position_k, distances_RD
            )
        if s.from_position:
            of_heads["queries_HRE"] = self._of_heads(
                self.q if s.shared_keys else self.position_q, distances_RD
            )
        local = functools.partial(
            disentangled, scale=self.scale, precision=self.q.precision, tuning=self.tuning
        )
        mixed_BTHE = partition.by_heads(local, q, k, v, lengths_B, None, of_heads)
        x_BTD = self.attention_norm(x_BTD + self.o(mixed_BTHE.reshape(B, T, D)))
        return self.ffn_norm(x_BTD + self.down(ACTIVATIONS[c.activation](self.up(x_BTD))))

    def _of_heads(self, project: Any, distances_RD: Any) -> jax.Array:
        """[H, R, E] the rows of the distances, projected."""
        x_RD = project(distances_RD)
        return x_RD.reshape(len(x_RD), self.config.n_heads, -1).transpose(1, 0, 2)


def disentangled(
    q_BTHE: jax.Array,
    k_BTHE: jax.Array,
    v_BTHE: jax.Array,
    lengths_B: jax.Array,
    window: None,
    of_heads: dict[str, jax.Array | None],
    *,
    scale: float,
    precision: jax.lax.Precision,
    tuning: Tuning,
) -> jax.Array:
    """Attention whose scores are scale * (q.k + q.K[distance] + k.Q[distance]).

    The products with all distances are computed as matrix products and then shifted into place row
    by row. Scores are held whole, for some rows of the batch at a time: prompts are short, as the
    models' positions are.

    Args:
      q_BTHE, k_BTHE, v_BTHE: [B, T, H, E] of the words.
      lengths_B: [B] int32 real tokens of each row.
      window: None; there are no windows.
      of_heads: "keys_HRE" K and "queries_HRE" Q, [H, R, E] of the distances from a key to its
        query, T - 1 (the key first) to 1 - T; None for what the model has not.
      scale: Multiplies the scores.
      precision: Of the products.
      tuning: How many scores are held at a time.

    Returns:
      [B, T, H, E]; the softmax is taken in float32. The rows of padding are finite, no more.
    """
    del window
    B, T, H, E = q_BTHE.shape
    keys_HRE, queries_HRE = of_heads["keys_HRE"], of_heads["queries_HRE"]
    product = functools.partial(jnp.matmul, precision=precision, preferred_element_type=jnp.float32)

    def some_rows(rows: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, n_real = rows
        scores = product(q, k.mT)
        if keys_HRE is not None:
            scores = scores + shifted(product(q, keys_HRE.mT[None]))
        if queries_HRE is not None:
            # Of a key's row the distances run the other way.
            by_key = shifted(product(k, queries_HRE[:, ::-1].mT[None]))
            scores = scores + by_key.mT
        seen = jnp.arange(T)[None, None, None] < n_real
        scores = scores * scale + jnp.where(seen, 0.0, HIDDEN)
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = product(weights.astype(v.dtype), v)
        return (mixed / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)

    # Three matrices of scores a head, of which two are twice as wide.
    n_chunks = head_chunks(B, 5 * H * T * T, tuning.attention_scores)
    by_row = (x.transpose(0, 2, 1, 3) for x in (q_BTHE, k_BTHE, v_BTHE))
    parts = (*by_row, lengths_B[:, None, None, None])
    chunks = tuple(x.reshape(n_chunks, -1, *x.shape[1:]) for x in parts)
    if n_chunks == 1:
        mixed = some_rows(tuple(x[0] for x in chunks))
    else:
        mixed = jax.lax.map(some_rows, chunks)
    return mixed.reshape(B, H, T, E).transpose(0, 2, 1, 3)


def distance_rows(shape: DisentangledShape, n_tokens: int) -> np.ndarray:
    """[R] int32 the row of the table of distances for a key T - 1 tokens before its query on.

    With buckets, near distances have a row each and far ones share rows on a logarithmic scale.
    """
    away = np.arange(n_tokens - 1, -n_tokens, -1)
    span = shape.n_buckets or shape.furthest
    bucket = away
    if shape.n_buckets:
        near = shape.n_buckets // 2
        far = np.maximum(np.abs(away), max(near, 1)).astype(np.float32) / np.float32(near)
        steps = np.log(far) / np.log(np.float32((shape.furthest - 1) / near)) * np.float32(near - 1)
        log = (np.ceil(steps) + near).astype(np.int64) * np.sign(away)
        bucket = np.where(np.abs(away) <= near, away, log)
    return np.clip(bucket + span, 0, 2 * span - 1).astype(np.int32)


class WideConv(nnx.Module):
    """The sum over the K tokens around each, every one through its own matrix, and a bias."""

    def __init__(self, width: int, size: int, dtype: Any, precision: Any, rngs: nnx.Rngs):
        draw = nnx.initializers.lecun_normal(batch_axis=0)
        self.kernel = nnx.Param(draw(rngs.params(), (size, width, width), dtype))
        self.bias = nnx.Param(jnp.zeros(width, dtype))
        self.precision = precision

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        kernel_KDD = self.kernel[...]
        size, T = len(kernel_KDD), x_BTD.shape[1]
        padded = jnp.pad(x_BTD, ((0, 0), (size // 2, size // 2), (0, 0)))
        taps = (
            products.matmul(padded[:, k : k + T].reshape(-1, x_BTD.shape[2]), w, self.precision)
            for k, w in enumerate(kernel_KDD)
        )
        return sum(taps, start=self.bias[...][None]).reshape(x_BTD.shape)


class Deberta(nnx.Module):
    """Word embeddings, n_layers blocks in one stack, a table of distances for all of them.

    Where the config has one, a convolution of state 0 joins what leaves the first block.

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
        assert not tuning.cudnn and config.disentangled is not None
        self.config, self.shape, self.tuning = config, config.disentangled, tuning
        types = {"dtype": dtype, "param_dtype": dtype}
        linear, norm = products.linear_maker(dtype, precision, tuning), norm_maker(config, dtype)
        s, D = self.shape, config.width
        self.embed = nnx.Embed(config.vocab_size, s.embed_width, rngs=rngs, **types)
        if s.positions:
            self.positions = nnx.Embed(config.max_positions, s.embed_width, rngs=rngs, **types)
        if config.n_segments:
            self.segments = nnx.Embed(config.n_segments, s.embed_width, rngs=rngs, **types)
        if s.embed_width != D:
            self.embed_project = linear(s.embed_width, D, use_bias=False, rngs=rngs)
        self.embed_norm = norm(D, rngs=rngs)
        if s.relative:
            n_rows = 2 * (s.n_buckets or s.furthest)
            self.distances = nnx.Embed(n_rows, D, rngs=rngs, **types)
            if s.distances_normed:
                self.distances_norm = norm(D, rngs=rngs)
        if s.conv_width:
            self.conv = WideConv(D, s.conv_width, dtype, precision, rngs)
            self.conv_norm = norm(D, rngs=rngs)

        @nnx.split_rngs(splits=config.n_layers)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> DebertaBlock:
            return DebertaBlock(config, tuning, linear, norm, rngs)

        self.blocks = nnx.List([stack(rngs)])
        self.lead, self.lenders = config.lead, config.lenders

    def start(
        self, tokens_BT: jax.Array, lengths_B: jax.Array, n_before: int = 0
    ) -> tuple[jax.Array, Any]:
        """Hidden state 0, and what every block needs to know of the batch."""
        assert n_before == 0, "what sees both ways has no prefix"
        s, T = self.shape, tokens_BT.shape[1]
        x_BTD = self.embed(tokens_BT)
        if s.positions:
            # A bucket may reach past the last position. Only padding lies there.
            known_T = jnp.minimum(jnp.arange(T), self.config.max_positions - 1)
            x_BTD = x_BTD + self.positions(known_T)[None]
        if self.config.n_segments:
            x_BTD = x_BTD + self.segments(jnp.zeros((1, 1), jnp.int32))
        if s.embed_width != self.config.width:
            x_BTD = self.embed_project(x_BTD)
        distances_RD = None
        if s.relative:
            distances_RD = self.distances(jnp.asarray(distance_rows(s, T)))
            if s.distances_normed:
                distances_RD = self.distances_norm(distances_RD)
        return self.embed_norm(x_BTD), (lengths_B, distances_RD)

    def apply_block(
        self,
        block: DebertaBlock,
        i: jax.Array,
        x_BTD: jax.Array,
        batch: Any,
        before: None = None,
    ) -> tuple[jax.Array, None]:
        """Hidden state i + 1 from hidden state i; what sees both ways leaves nothing behind."""
        y_BTD = block(x_BTD, *batch)
        if not self.shape.conv_width:
            return y_BTD, None

        def convolved(x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
            # Hugging Face sets state 0 to zero where there is padding.
            real_BT = jnp.arange(x_BTD.shape[1])[None] < batch[0][:, None]
            seen_BTD = self.conv(jnp.where(real_BT[:, :, None], x_BTD, 0))
            return self.conv_norm(y_BTD + ACTIVATIONS[self.shape.conv_activation](seen_BTD))

        return jax.lax.cond(i == 0, convolved, lambda x_BTD, y_BTD: y_BTD, x_BTD, y_BTD), None

    def finish(self, x_BTD: jax.Array) -> jax.Array:
        """The last hidden state: there is no final norm."""
        return x_BTD
