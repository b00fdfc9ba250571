"""Attention over long prompts: tile by tile of queries and keys, never T x T scores.

Axes: S tokens of keys and values, those of a shared prefix among them; R = H / G query heads of a
key/value head; Q queries and K keys of a tile.
"""

from typing import Any

import jax
import jax.numpy as jnp

from routerjax.runtime.tuning import Tuning

HIDDEN = -1e30  # the score of a key that is not seen


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
      n_real: [heads, 1, 1] keys of each row that are not padding.
      bidirectional: As in `attend`.
      window: As in `attend`.

    Returns:
      [1 or heads, Q or 1, K] bool.
    """
    back = query - key
    if bidirectional:
        seen = key[None] < n_real
        return seen if window is None else seen & (jnp.abs(back) < window)[None]
    seen = back >= 0
    return (seen if window is None else seen & (back < window))[None]


def by_distance(bias_R: jax.Array, n_queries: int) -> jax.Array:
    """Numbers by the distance of key and query, for every pair of T queries and S keys.

    By copying and cutting, as a gather of single numbers is slow: row t of the copies, each cut by
    one, begins t numbers earlier than the first.

    Args:
      bias_R: [..., S + T - 1] by distance, the most negative first.
      n_queries: T.

    Returns:
      [..., T, S] bias_R[..., s - t + T - 1].
    """
    *lead, R = bias_R.shape
    return shifted(jnp.broadcast_to(bias_R[..., None, :], (*lead, n_queries, R)))


def shifted(x_TR: jax.Array) -> jax.Array:
    """[..., T, S] x_TR[..., t, s - t + T - 1] of x_TR [..., T, S + T - 1]."""
    *lead, T, R = x_TR.shape
    padded = jnp.pad(x_TR, [(0, 0)] * (len(lead) + 1) + [(0, 1)])
    cut = padded.reshape(*lead, -1)[..., : T * R].reshape(*lead, T, R)
    return cut[..., T - 1 :]


def attend_blockwise(
    q_BTHE: jax.Array,
    k_BSGE: jax.Array,
    v_BSGE: jax.Array,
    lengths_B: jax.Array,
    precision: jax.lax.Precision,
    tuning: Tuning,
    *,
    bidirectional: bool,
    window: jax.Array | int | None,
    scale: float,
    soft_cap: float,
    sinks_H: jax.Array | None,
    bias_HR: jax.Array | None,
) -> jax.Array:
    """`attend` with an online softmax (arXiv 2205.14135, 2112.05682).

    The state of each query is the largest score m so far, the sum of exp(score - m), and the sum of
    values so weighted; a tile of keys with a larger score scales what came before down. Tiles of
    keys that no query of a tile can see (later ones, those before the window, padding) lie outside
    the inner loop's bounds and are never computed. Temporary memory is linear in T and S.

    Args:
      tuning: Tokens of a tile, and how many scores are held at a time (those of one tile at least).
      Others: As in `attend`.

    Returns:
      [B, T, H, E']. Rows of padding are finite, no more.
    """
    B, T, H, _ = q_BTHE.shape
    S, G = k_BSGE.shape[1:3]
    R, tile = H // G, tuning.attention_tile
    n_q, n_k = -(-T // tile), -(-S // tile)
    n_chunks = head_chunks(B * G, R * tile * tile, tuning.attention_scores)

    def cut(x_BTNE: jax.Array, n: int) -> jax.Array:
        """[chunks, tiles, key/value heads of a chunk, query heads of each, tokens of a tile, E]."""
        x = jnp.pad(x_BTNE, ((0, 0), (0, n * tile - x_BTNE.shape[1]), (0, 0), (0, 0)))
        x = x.reshape(B, n, tile, G, -1, x.shape[-1]).transpose(1, 0, 3, 4, 2, 5)
        return x.reshape(n, n_chunks, B * G // n_chunks, -1, *x.shape[-2:]).swapaxes(0, 1)

    rows = (B * G // n_chunks, R * tile)
    q = cut(q_BTHE * scale, n_q).reshape(n_chunks, n_q, *rows, q_BTHE.shape[-1])
    k, v = (cut(x, n_k)[:, :, :, 0] for x in (k_BSGE, v_BSGE))
    n_real = jnp.repeat(S - T + lengths_B, G).reshape(n_chunks, -1, 1, 1)
    sinks = None
    if sinks_H is not None:
        sinks_GR = jnp.repeat(sinks_H.astype(jnp.float32), tile).reshape(G, -1)
        sinks = jnp.tile(sinks_GR, (B, 1)).reshape(n_chunks, *rows, 1)
    bias = None
    if bias_HR is not None:
        # What lies beyond the first and the last distance is of padding.
        bias_GR = jnp.pad(bias_HR, ((0, 0), (tile, tile))).reshape(G, -1)
        bias = jnp.tile(bias_GR, (B, 1)).reshape(n_chunks, rows[0], R, -1)

    def one_chunk(heads: tuple[Any, ...]) -> jax.Array:
        q, k, v, n_real, sinks, bias = heads
        n_seen = jnp.max(n_real)

        def of_queries(numbered: tuple[jax.Array, jax.Array]) -> jax.Array:
            i, q = numbered
            first = S - T + i * tile
            last = first + tile - 1
            # Tiles of keys from `start` up to `stop` hold all that these queries see.
            start, stop = jnp.int32(0), -(-n_seen // tile)
            if not bidirectional:
                stop = jnp.minimum(stop, last // tile + 1)
            if window is not None:
                start = jnp.maximum(0, first - window + 1) // tile
                stop = jnp.minimum(stop, (last + window - 1) // tile + 1)
            positions = jnp.tile(first + jnp.arange(tile), R)[:, None]

            def of_keys(j: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
                most, total, mixed = state
                k_j, v_j = (jax.lax.dynamic_index_in_dim(x, j, keepdims=False) for x in (k, v))
                scores = jnp.matmul(
                    q, k_j.mT, precision=precision, preferred_element_type=jnp.float32
                )
                if soft_cap:
                    scores = soft_cap * jnp.tanh(scores / soft_cap)
                if bias is not None:
                    nearest = j * tile - last + S - 1 + tile
                    near = jax.lax.dynamic_slice_in_dim(bias, nearest, 2 * tile - 1, axis=-1)
                    scores = scores + by_distance(near, tile).reshape(scores.shape)
                keys = (j * tile + jnp.arange(tile))[None]
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
            state = most, total, jnp.zeros((*rows, v.shape[-1]))
            _, total, mixed = jax.lax.fori_loop(start, stop, of_keys, state)
            # A tile of padding alone has seen nothing.
            return (mixed / jnp.maximum(total, 1e-30)).astype(v.dtype)

        return jax.lax.map(of_queries, (jnp.arange(n_q), q))

    mixed = jax.lax.map(one_chunk, (q, k, v, n_real, sinks, bias))
    mixed = mixed.swapaxes(0, 1).reshape(n_q, B, G, R, tile, -1).transpose(1, 0, 4, 2, 3, 5)
    return mixed.reshape(B, n_q * tile, H, -1)[:, :T]


def head_chunks(n_heads: int, scores_per_head: int, most_scores: int) -> int:
    """The fewest equal chunks of heads that hold at most so many scores, or one head each."""
    most = max(1, most_scores // scores_per_head)
    return next(n for n in range(1, n_heads + 1) if n_heads % n == 0 and n_heads // n <= most)
