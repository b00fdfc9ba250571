"""Attention and rotations, shared by all families."""

import jax
import jax.numpy as jnp

# Attention scores held at a time: 8 MiB of float32 stay in a CPU's cache, 1 GiB fills a GPU.
_SCORES = {"cpu": 2**21}
_SCORES_ELSEWHERE = 2**28


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
    k_BTGE: jax.Array,
    v_BTGE: jax.Array,
    visible_BTT: jax.Array,
    precision: jax.lax.Precision,
    scale: float | None = None,
    soft_cap: float = 0.0,
) -> jax.Array:
    """Scaled dot-product attention with grouped key/value heads.

    Heads are laid out as one batch of plain matrix products: measured on CPU, two to eight times
    faster than an einsum that leaves the head axis between the tokens and the channels. Heads are
    taken in turns of a bounded number of scores, which keeps these in the CPU's cache (at 512
    tokens 3 times faster than all at once) and bounds the temporary memory of long prompts; the
    softmax is divided by its sum after the second product, where there is less to divide.

    Args:
      q_BTHE: [B, T, H, E] queries.
      k_BTGE: [B, T, G, E] keys; query head h reads key head h // (H / G).
      v_BTGE: [B, T, G, E] values.
      visible_BTT: [B or 1, T or 1, T] bool, whether the query (second axis) sees the key. A row
        that sees nothing gets the mean of all values: finite, and never read.
      precision: Of the two products.
      scale: Multiplies the scores; None for E^-0.5.
      soft_cap: Scaled scores s become cap * tanh(s / cap); 0 for none.

    Returns:
      [B, T, H, E]; the softmax is taken in float32.
    """
    B, T, H, E = q_BTHE.shape
    G = k_BTGE.shape[2]
    n_turns = _turns(B * G, H // G * T * T)
    # Axes: turns, key/value heads of a turn, then the matrices. The H / G query heads of a
    # key/value head are further rows of its product.
    scale = E**-0.5 if scale is None else scale
    q = (q_BTHE * scale).transpose(0, 2, 1, 3).reshape(n_turns, -1, H // G * T, E)
    k = k_BTGE.transpose(0, 2, 3, 1).reshape(n_turns, -1, E, T)
    v = v_BTGE.transpose(0, 2, 1, 3).reshape(n_turns, -1, T, E)
    if visible_BTT.shape[1] > 1:
        visible_BTT = jnp.tile(visible_BTT, (1, H // G, 1))
    row_of = (jnp.arange(B * G) // G).reshape(n_turns, -1)

    def turn(qkv: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, row = qkv
        visible = visible_BTT[row] if visible_BTT.shape[0] > 1 else visible_BTT
        scores = jnp.matmul(q, k, precision=precision, preferred_element_type=jnp.float32)
        if soft_cap:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        scores = jnp.where(visible, scores, -1e30)
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = jnp.matmul(
            weights.astype(v.dtype), v, precision=precision, preferred_element_type=jnp.float32
        )
        return (mixed / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)

    turns = (q, k, v, row_of)
    mixed = jax.lax.map(turn, turns) if n_turns > 1 else turn(tuple(x[0] for x in turns))
    return mixed.reshape(B, H, T, E).transpose(0, 2, 1, 3)


def _turns(n_heads: int, scores_per_head: int) -> int:
    """The fewest turns that divide the heads and hold no more scores than suit the device."""
    most = _SCORES.get(jax.default_backend(), _SCORES_ELSEWHERE) // scores_per_head
    return next(
        n for n in range(1, n_heads + 1) if n_heads % n == 0 and n_heads // n <= max(1, most)
    )
