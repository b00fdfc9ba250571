"""Attention and rotations, shared by all families."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.models.blockwise import (
    HIDDEN,
    attend_blockwise,
    by_distance,
    head_chunks,
    visible,
)
from routerjax.encoder.models.splash import attend_splash, splash_is_legal
from routerjax.runtime.tuning import Tuning


def rotate(
    x_BTNE: jax.Array,
    angles_BTW: jax.Array,
    factor: jax.Array | float = 1,
    interleaved: bool = False,
    by_product: bool = False,
    scale_E: jax.Array | None = None,
) -> jax.Array:
    """Rotates every head by its position; of W channels, e is paired with e + W/2.

    Args:
      x_BTNE: [B, T, heads, E] queries or keys.
      angles_BTW: [B or 1, T, W / 2] float32 radians; W at most E, channels from W on stay.
      factor: Multiplies the rotated channels.
      interleaved: Whether 2e is paired with 2e + 1. First members of all pairs may be returned
        before the second ones, in queries as in keys, whose products do not depend on the order.
      by_product: Whether each channel's partner comes from a matrix product (`Tuning`).
      scale_E: None, or float32 what each channel is multiplied by first; only by_product.

    Returns:
      As x_BTNE; computed in float32.
    """
    if by_product:
        return _rotate_by_product(x_BTNE, angles_BTW, factor, interleaved, scale_E)
    assert scale_E is None, "it belongs to the tables of a rotation by product"
    cos, sin = (f(angles_BTW)[:, :, None, :] * factor for f in (jnp.cos, jnp.sin))
    half = angles_BTW.shape[-1]
    if interleaved:
        first, second = x_BTNE[..., : 2 * half : 2], x_BTNE[..., 1 : 2 * half : 2]
        kept = x_BTNE[..., 2 * half :]
    else:
        first, second, kept = jnp.split(x_BTNE, (half, 2 * half), axis=-1)
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([rotated.astype(x_BTNE.dtype), kept], axis=-1)


def _rotate_by_product(
    x_BTNE: jax.Array,
    angles_BTW: jax.Array,
    factor: jax.Array | float,
    interleaved: bool,
    scale_E: jax.Array | None,
) -> jax.Array:
    """`rotate` as x * cos + partner(x) * sin, every channel in its place.

    The partners, with their signs, are x times a matrix of 0 and 1, which is exact.
    """
    half, n_kept = angles_BTW.shape[-1], x_BTNE.shape[-1] - 2 * angles_BTW.shape[-1]
    first = np.arange(0, 2 * half, 2) if interleaved else np.arange(half)
    second = first + (1 if interleaved else half)
    partner_EE = np.zeros((x_BTNE.shape[-1],) * 2, np.float32)
    partner_EE[second, first], partner_EE[first, second] = -1, 1

    def by_channel(turned_BTW: jax.Array, kept: float) -> jax.Array:
        both = (turned_BTW * factor,) * 2
        pairs = jnp.stack(both, axis=-1) if interleaved else jnp.concatenate(both, axis=-1)
        pairs = pairs.reshape(*turned_BTW.shape[:2], 2 * half)
        return jnp.pad(pairs, ((0, 0), (0, 0), (0, n_kept)), constant_values=kept)[:, :, None]

    partner_BTNE = jnp.einsum(
        "btne,ef->btnf", x_BTNE, jnp.asarray(partner_EE, x_BTNE.dtype),
        precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32,
    )  # fmt: skip
    cos, sin = by_channel(jnp.cos(angles_BTW), 1.0), by_channel(jnp.sin(angles_BTW), 0.0)
    if scale_E is not None:
        partner_E = np.arange(x_BTNE.shape[-1])
        partner_E[first], partner_E[second] = second, first
        cos, sin = cos * scale_E[None, None, None], sin * scale_E[partner_E][None, None, None]
    return (x_BTNE.astype(jnp.float32) * cos + partner_BTNE * sin).astype(x_BTNE.dtype)


def continued(before_1PGE: jax.Array, x_BTGE: jax.Array) -> jax.Array:
    """[B, P + T, G, E] a prefix's keys or values before every row's own."""
    shape = (x_BTGE.shape[0], *before_1PGE.shape[1:])
    return jnp.concatenate([jnp.broadcast_to(before_1PGE, shape), x_BTGE], axis=1)


def attend(
    q_BTHE: jax.Array,
    k_BSGE: jax.Array,
    v_BSGE: jax.Array,
    lengths_B: jax.Array,
    precision: jax.lax.Precision,
    tuning: Tuning,
    *,
    bidirectional: bool = False,
    window: jax.Array | int | None = None,
    windows: tuple[int, ...] = (),
    scale: float | None = None,
    soft_cap: float = 0.0,
    sinks_H: jax.Array | None = None,
    bias_HR: jax.Array | None = None,
    factor_BTH: jax.Array | None = None,
) -> jax.Array:
    """Scaled dot-product attention with grouped key/value heads.

    Heads are laid out as one batch of plain matrix products: on a CPU two to eight times as fast
    as an einsum that leaves the head axis between the tokens and the channels. Heads are taken in
    chunks of a bounded number of scores, which bounds the temporary memory; the softmax is divided
    by its sum after the second product, where there is less to divide.

    Args:
      q_BTHE: [B, T, H, E] queries.
      k_BSGE: [B, S, G, E] keys; query head h reads key head h // (H / G). The last T of them are
        the queries' own tokens, those before a prefix that every row has whole.
      v_BSGE: [B, S, G, E'] values; they may be of another width.
      lengths_B: [B] int32 real tokens of each row's T, at least 1. Rows are padded on the right, so
        that causality alone hides padding from every real token.
      precision: Of the two products.
      tuning: How many scores are held at a time, and up to how many tokens all of a head's.
      bidirectional: Whether a query sees later keys too, up to the row's length.
      window: Scalar int32, how many tokens back a query sees, itself included (and as many ahead if
        bidirectional); None for all.
      windows: The values that `window` can have, for a kernel that is compiled for each of them; ()
        where they are not known.
      scale: Multiplies the scores; None for E^-0.5.
      soft_cap: Scaled scores s become cap * tanh(s / cap); 0 for none.
      sinks_H: None, or for each query head the score of a key without a value: it joins the sum
        that the softmax divides by.
      bias_HR: None, or [H, S + T - 1] float32 what is added to a scaled score by the distance from
        its query to its key, the key S - 1 tokens before its query first.
      factor_BTH: None, or float32 what multiplies each query's scores beside `scale`.

    Returns:
      [B, T, H, E']; the softmax is taken in float32. The rows of padding are finite, no more.
    """
    B, T, H, E = q_BTHE.shape
    S, G = k_BSGE.shape[1:3]
    scale = E**-0.5 if scale is None else scale
    fused = T >= tuning.splash_from and splash_is_legal(q_BTHE.dtype, bias_HR, window, windows)
    whole = not fused and T * S <= longest_whole(tuning, bidirectional) ** 2
    if factor_BTH is not None:
        factor_BTH, scale = factor_BTH * scale, 1.0
        if not whole:
            q_BTHE = (q_BTHE * factor_BTH[..., None]).astype(q_BTHE.dtype)
    if fused:
        return attend_splash(
            q_BTHE, k_BSGE, v_BSGE, lengths_B, tuning, bidirectional=bidirectional,
            window=window, windows=windows, scale=scale, soft_cap=soft_cap, sinks_H=sinks_H,
        )  # fmt: skip
    if not whole:
        return attend_blockwise(
            q_BTHE, k_BSGE, v_BSGE, lengths_B, precision, tuning, bidirectional=bidirectional,
            window=window, scale=scale, soft_cap=soft_cap, sinks_H=sinks_H, bias_HR=bias_HR,
        )  # fmt: skip
    n_chunks = head_chunks(B * G, H // G * T * S, tuning.attention_scores)
    # Axes: chunks, key/value heads of a chunk, then the matrices. The H / G query heads of a
    # key/value head are further rows of its product.
    q = (q_BTHE * scale).transpose(0, 2, 1, 3).reshape(n_chunks, -1, H // G * T, E)
    k = k_BSGE.transpose(0, 2, 3, 1).reshape(n_chunks, -1, E, S)
    v = v_BSGE.transpose(0, 2, 1, 3).reshape(n_chunks, -1, S, v_BSGE.shape[-1])
    # Of each key/value head's matrices: how many of its keys are real, and its rows' sinks.
    n_real = jnp.repeat(S - T + lengths_B, G).reshape(n_chunks, -1, 1, 1)
    sinks = None
    if sinks_H is not None:
        sinks_GR = jnp.repeat(sinks_H.astype(jnp.float32), T).reshape(G, -1)
        sinks = jnp.tile(sinks_GR, (B, 1)).reshape(n_chunks, -1, H // G * T, 1)
    factors = None
    if factor_BTH is not None:
        factors = factor_BTH.transpose(0, 2, 1).reshape(n_chunks, -1, H // G * T, 1)
    bias = None
    if bias_HR is not None:
        bias_GR = bias_HR.reshape(G, -1)
        bias = jnp.tile(bias_GR, (B, 1)).reshape(n_chunks, -1, H // G, S + T - 1)

    def one_chunk(heads: tuple[Any, ...]) -> jax.Array:
        q, k, v, n_real, sinks, bias, factors = heads
        scores = jnp.matmul(q, k, precision=precision, preferred_element_type=jnp.float32)
        if factors is not None:
            scores = scores * factors
        if soft_cap:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        if bias is not None:
            scores = scores + by_distance(bias, T).reshape(scores.shape)
        t_R1 = jnp.tile(jnp.arange(S - T, S), H // G)[:, None]
        seen = visible(t_R1, jnp.arange(S)[None], n_real, bidirectional, window)
        # An addition, as a select would split what XLA's CPU backend makes one parallel kernel of,
        # and leave the first product to one core. HIDDEN plus a score is HIDDEN.
        scores = scores + jnp.where(seen, 0.0, HIDDEN)
        most = scores.max(axis=-1, keepdims=True)
        if sinks is not None:
            most = jnp.maximum(most, sinks)
        weights = jnp.exp(scores - most)
        total = weights.sum(axis=-1, keepdims=True)
        if sinks is not None:
            total = total + jnp.exp(sinks - most)
        if tuning.divides_first:
            weights = weights / total
        mixed = jnp.matmul(
            weights.astype(v.dtype), v, precision=precision, preferred_element_type=jnp.float32
        )
        return (mixed if tuning.divides_first else mixed / total).astype(v.dtype)

    heads = (q, k, v, n_real, sinks, bias, factors)
    if n_chunks <= tuning.unrolled_head_chunks:
        each = [jax.tree.map(lambda x, i=i: x[i], heads) for i in range(n_chunks)]
        mixed = jnp.stack([one_chunk(chunk) for chunk in each])
    else:
        mixed = jax.lax.map(one_chunk, heads)
    return mixed.reshape(B, H, T, -1).transpose(0, 2, 1, 3)


def longest_whole(tuning: Tuning, bidirectional: bool) -> int:
    """Tokens up to which a head's scores are computed whole."""
    return tuning.longest_bidirectional if bidirectional else tuning.longest_causal


def cudnn_is_legal(config: EncoderConfig, dtype: Any, max_tokens: int, tuning: Tuning) -> bool:
    """Whether cuDNN's fused attention computes what this encoder asks for.

    cuDNN has no cap of the scores, no sinks and one window for all layers at most; of these only
    the plain case is taken: causal, half precision, heads of a multiple of 8 channels and no more
    than the device allows, values as wide as keys, and windows that no prompt reaches.

    Args:
      config: Of the encoder.
      dtype: Of queries, keys and values.
      max_tokens: Longest prompt.
      tuning: Whether the devices have cuDNN, and its widest head there.
    """
    return (
        tuning.cudnn
        and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
        and not config.bidirectional
        and not config.soft_cap
        and not config.sinks
        and config.latent is None
        and config.global_shape is None
        and config.head_dim % 8 == 0
        and config.head_dim <= tuning.cudnn_head_dim
        and min(config.windows) >= max_tokens
    )


def attend_cudnn(
    q_BTHE: jax.Array,
    k_BSGE: jax.Array,
    v_BSGE: jax.Array,
    lengths_B: jax.Array,
    scale: float | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Causal `attend` without a window, by cuDNN; for encoders of which `cudnn_is_legal`.

    Args:
      implementation: Of `jax.nn.dot_product_attention`; "xla" computes the same anywhere.
      Others: As in `attend`.

    Returns:
      [B, T, H, E]. The rows of padding may be anything, NaN too.
    """
    n_before = k_BSGE.shape[1] - q_BTHE.shape[1]
    # cuDNN counts queries and keys from the same token: a prefix gets queries too, which are 0.
    q_BSHE = jnp.pad(q_BTHE, ((0, 0), (n_before, 0), (0, 0), (0, 0)))
    lengths_B = (n_before + lengths_B).astype(jnp.int32)
    mixed_BSHE = jax.nn.dot_product_attention(
        q_BSHE, k_BSGE, v_BSGE, scale=scale, is_causal=True, query_seq_lengths=lengths_B,
        key_value_seq_lengths=lengths_B, implementation=implementation,
    )  # fmt: skip
    return mixed_BSHE[:, n_before:]
