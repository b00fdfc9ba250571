"""Attention and rotations, shared by all families."""

from typing import Any

import jax
import jax.numpy as jnp

# Attention scores held at a time: 8 MiB of float32 stay in a CPU's cache, 1 GiB fills a GPU.
_SCORES = {"cpu": 2**21}
_SCORES_ELSEWHERE = 2**28
HIDDEN = -1e30  # the score of a key that is not seen


def rotate(x_BTNE: jax.Array, angles_BTW: jax.Array, factor: jax.Array | float = 1) -> jax.Array:
    """Turns every head by its position; of W channels, e is paired with e + W/2.

    Args:
      x_BTNE: [B, T, heads, E] queries or keys.
      angles_BTW: [B or 1, T, W / 2] float32 radians; W at most E, channels from W on stay.
      factor: Multiplies the turned channels.

    Returns:
      As x_BTNE; computed in float32.
    """
    cos, sin = (f(angles_BTW)[:, :, None, :] * factor for f in (jnp.cos, jnp.sin))
    half = angles_BTW.shape[-1]
    first, second, stays = jnp.split(x_BTNE, (half, 2 * half), axis=-1)
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x_BTNE.dtype), stays], axis=-1)


def attend(
    q_BTHE: jax.Array,
    k_BSGE: jax.Array,
    v_BSGE: jax.Array,
    lengths_B: jax.Array,
    precision: jax.lax.Precision,
    *,
    bidirectional: bool = False,
    window: jax.Array | int | None = None,
    scale: float | None = None,
    soft_cap: float = 0.0,
    sinks_H: jax.Array | None = None,
) -> jax.Array:
    """Scaled dot-product attention with grouped key/value heads.

    Heads are laid out as one batch of plain matrix products: measured on CPU, two to eight times
    faster than an einsum that leaves the head axis between the tokens and the channels. Heads are
    taken in turns of a bounded number of scores, which keeps these in the CPU's cache (at 512
    tokens 3 times faster than all at once) and bounds the temporary memory of long prompts; the
    softmax is divided by its sum after the second product, where there is less to divide.

    Args:
      q_BTHE: [B, T, H, E] queries.
      k_BSGE: [B, S, G, E] keys; query head h reads key head h // (H / G). The last T of them are
        the queries' own tokens, those before a prefix that every row has whole.
      v_BSGE: [B, S, G, E] values.
      lengths_B: [B] int32 real tokens of each row's T, at least 1. Rows are padded on the right, so
        that causality alone hides padding from every real token.
      precision: Of the two products.
      bidirectional: Whether a query sees later keys too, up to the row's length.
      window: Scalar int32, how many tokens back a query sees, itself included (and as many ahead if
        bidirectional); None for all.
      scale: Multiplies the scores; None for E^-0.5.
      soft_cap: Scaled scores s become cap * tanh(s / cap); 0 for none.
      sinks_H: None, or for each query head the score of a key without a value: it joins the sum
        that the softmax divides by.

    Returns:
      [B, T, H, E]; the softmax is taken in float32. The rows of padding are finite, no more.
    """
    B, T, H, E = q_BTHE.shape
    S, G = k_BSGE.shape[1:3]
    n_turns = _turns(B * G, H // G * T * S)
    # Axes: turns, key/value heads of a turn, then the matrices. The H / G query heads of a
    # key/value head are further rows of its product.
    scale = E**-0.5 if scale is None else scale
    q = (q_BTHE * scale).transpose(0, 2, 1, 3).reshape(n_turns, -1, H // G * T, E)
    k = k_BSGE.transpose(0, 2, 3, 1).reshape(n_turns, -1, E, S)
    v = v_BSGE.transpose(0, 2, 1, 3).reshape(n_turns, -1, S, E)
    # Of each key/value head's matrices: how many of its keys are real, and its rows' sinks.
    n_real = jnp.repeat(S - T + lengths_B, G).reshape(n_turns, -1, 1, 1)
    sinks = None
    if sinks_H is not None:
        sinks_GR = jnp.repeat(sinks_H.astype(jnp.float32), T).reshape(G, -1)
        sinks = jnp.tile(sinks_GR, (B, 1)).reshape(n_turns, -1, H // G * T, 1)

    def turn(heads: tuple[Any, ...]) -> jax.Array:
        q, k, v, n_real, sinks = heads
        scores = jnp.matmul(q, k, precision=precision, preferred_element_type=jnp.float32)
        if soft_cap:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        t_R1 = jnp.tile(jnp.arange(S - T, S), H // G)[:, None]
        seen = visible(t_R1, jnp.arange(S)[None], n_real, bidirectional, window)
        scores = jnp.where(seen, scores, HIDDEN)
        most = scores.max(axis=-1, keepdims=True)
        if sinks is not None:
            most = jnp.maximum(most, sinks)
        weights = jnp.exp(scores - most)
        total = weights.sum(axis=-1, keepdims=True)
        if sinks is not None:
            total = total + jnp.exp(sinks - most)
        mixed = jnp.matmul(
            weights.astype(v.dtype), v, precision=precision, preferred_element_type=jnp.float32
        )
        return (mixed / total).astype(v.dtype)

    turns = (q, k, v, n_real, sinks)
    once = jax.tree.map(lambda x: x[0], turns)
    mixed = jax.lax.map(turn, turns) if n_turns > 1 else turn(once)
    return mixed.reshape(B, H, T, E).transpose(0, 2, 1, 3)


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


def _turns(n_heads: int, scores_per_head: int) -> int:
    """The fewest turns that divide the heads and hold no more scores than suit the device."""
    most = _SCORES.get(jax.default_backend(), _SCORES_ELSEWHERE) // scores_per_head
    return next(
        n for n in range(1, n_heads + 1) if n_heads % n == 0 and n_heads // n <= max(1, most)
    )
