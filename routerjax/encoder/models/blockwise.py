"""Attention over long prompts: block by block of queries and keys, never T x T scores."""

from typing import Any

import jax
import jax.numpy as jnp

HIDDEN = -1e30  # the score of a key that is not seen

# Tokens of a block of queries, and of keys: on CPU its scores and values stay in the cache.
BLOCKS = {"cpu": 128}
BLOCK_ELSEWHERE = 512


def visible(
    query: jax.Array,
    key: jax.Array,
    n_real: jax.Array,
    bidirectional: bool,
    window: jax.Array | int | None,
) -> jax.Array:
    """Whether a query sees a key.

    Args:
      query: [Q, 1] positions among the keys.
      key: [1, K] positions.
      n_real: [heads, 1, 1] keys of each row that are no padding.
      bidirectional: As of `attend`.
      window: As of `attend`.

    Returns:
      [1 or heads, Q or 1, K] bool.
    """
    back = query - key
    if bidirectional:
        seen = key[None] < n_real
        return seen if window is None else seen & (jnp.abs(back) < window)[None]
    seen = back >= 0
    return (seen if window is None else seen & (back < window))[None]


def attend_blockwise(
    q_BTHE: jax.Array,
    k_BSGE: jax.Array,
    v_BSGE: jax.Array,
    lengths_B: jax.Array,
    precision: jax.lax.Precision,
    *,
    most_scores: int,
    bidirectional: bool,
    window: jax.Array | int | None,
    scale: float,
    soft_cap: float,
    sinks_H: jax.Array | None,
) -> jax.Array:
    """As `attend`, with the softmax gathered on the way (arXiv 2205.14135, 2112.05682).

    Of each query are kept the largest score m so far, the sum of exp(score - m), and as much of the
    weighted mean of values; a block of keys with a larger score scales the others down. Blocks of
    keys that no query of a block can see (later ones, those before the window, padding) are never
    computed: the inner loop's bounds say so. Temporary memory is linear in T and S.

    Args:
      most_scores: Scores held at a time, at least those of one block.
      Others: As of `attend`.

    Returns:
      [B, T, H, E]. Rows of padding are finite, no more.
    """
    B, T, H, E = q_BTHE.shape
    S, G = k_BSGE.shape[1:3]
    R, block = H // G, BLOCKS.get(jax.default_backend(), BLOCK_ELSEWHERE)
    n_q, n_k = -(-T // block), -(-S // block)
    n_turns = turns(B * G, R * block * block, most_scores)

    def cut(x_BTNE: jax.Array, n: int) -> jax.Array:
        """[turns, blocks, key/value heads of a turn, query heads of each, tokens of a block, E]."""
        x = jnp.pad(x_BTNE, ((0, 0), (0, n * block - x_BTNE.shape[1]), (0, 0), (0, 0)))
        x = x.reshape(B, n, block, G, -1, E).transpose(1, 0, 3, 4, 2, 5)
        return x.reshape(n, n_turns, B * G // n_turns, -1, block, E).swapaxes(0, 1)

    rows = (B * G // n_turns, R * block)
    q = cut(q_BTHE * scale, n_q).reshape(n_turns, n_q, *rows, E)
    k, v = (cut(x, n_k)[:, :, :, 0] for x in (k_BSGE, v_BSGE))
    n_real = jnp.repeat(S - T + lengths_B, G).reshape(n_turns, -1, 1, 1)
    sinks = None
    if sinks_H is not None:
        sinks_GR = jnp.repeat(sinks_H.astype(jnp.float32), block).reshape(G, -1)
        sinks = jnp.tile(sinks_GR, (B, 1)).reshape(n_turns, *rows, 1)

    def heads(turn: tuple[Any, ...]) -> jax.Array:
        q, k, v, n_real, sinks = turn
        n_seen = jnp.max(n_real)

        def of_queries(numbered: tuple[jax.Array, jax.Array]) -> jax.Array:
            i, q = numbered
            first = S - T + i * block
            last = first + block - 1
            # Blocks of keys from `start` up to `stop` hold all that these queries see.
            start, stop = jnp.int32(0), -(-n_seen // block)
            if not bidirectional:
                stop = jnp.minimum(stop, last // block + 1)
            if window is not None:
                start = jnp.maximum(0, first - window + 1) // block
                stop = jnp.minimum(stop, (last + window - 1) // block + 1)
            positions = jnp.tile(first + jnp.arange(block), R)[:, None]

            def of_keys(j: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
                most, total, mixed = state
                k_j, v_j = (jax.lax.dynamic_index_in_dim(x, j, keepdims=False) for x in (k, v))
                scores = jnp.matmul(
                    q, k_j.mT, precision=precision, preferred_element_type=jnp.float32
                )
                if soft_cap:
                    scores = soft_cap * jnp.tanh(scores / soft_cap)
                keys = (j * block + jnp.arange(block))[None]
                seen = visible(positions, keys, n_real, bidirectional, window)
                scores = jnp.where(seen, scores, HIDDEN)
                larger = jnp.maximum(most, scores.max(axis=-1, keepdims=True))
                weights, kept = jnp.exp(scores - larger), jnp.exp(most - larger)
                added = jnp.matmul(
                    weights.astype(v.dtype), v_j,
                    precision=precision, preferred_element_type=jnp.float32,
                )  # fmt: skip
                total = kept * total + weights.sum(axis=-1, keepdims=True)
                return larger, total, kept * mixed + added

            # A sink is a key that has been seen already, with the value 0.
            most = jnp.full((*rows, 1), HIDDEN) if sinks is None else sinks
            total = jnp.full((*rows, 1), 0.0 if sinks is None else 1.0)
            state = most, total, jnp.zeros((*rows, E))
            _, total, mixed = jax.lax.fori_loop(start, stop, of_keys, state)
            # A block of padding alone has seen nothing.
            return (mixed / jnp.maximum(total, 1e-30)).astype(v.dtype)

        return jax.lax.map(of_queries, (jnp.arange(n_q), q))

    mixed = jax.lax.map(heads, (q, k, v, n_real, sinks))
    mixed = mixed.swapaxes(0, 1).reshape(n_q, B, G, R, block, E).transpose(1, 0, 4, 2, 3, 5)
    return mixed.reshape(B, n_q * block, H, E)[:, :T]


def turns(n_heads: int, scores_per_head: int, most_scores: int) -> int:
    """The fewest turns that divide the heads and hold no more scores than that, or one head's."""
    most = max(1, most_scores // scores_per_head)
    return next(n for n in range(1, n_heads + 1) if n_heads % n == 0 and n_heads // n <= most)
