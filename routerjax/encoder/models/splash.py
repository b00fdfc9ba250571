"""Fused attention on a TPU: JAX's splash attention, whose scores stay in the chip's inner memory.

The kernel takes heads of [T, E] in whole tiles of a multiple of 128 tokens, scaled queries, and a
mask that is known when it is compiled; tiles in which the mask hides all scores are not computed.
"""

from typing import Any

import jax
import jax.numpy as jnp

from routerjax.runtime.tuning import Tuning

LANES = 128  # Numbers of a row of a vector register.


def splash_is_legal(
    dtype: Any,
    bias_HR: jax.Array | None,
    window: jax.Array | int | None,
    windows: tuple[int, ...],
) -> bool:
    """Whether the kernel computes what `attend` is asked for.

    Its products are bfloat16's, it adds no bias, and its window is a number.

    Args:
      dtype: Of queries, keys and values.
      Others: As in `attend`.
    """
    known = window is None or isinstance(window, int) or bool(windows)
    return jnp.dtype(dtype) == jnp.bfloat16 and bias_HR is None and known


def attend_splash(
    q_BTHE: jax.Array,
    k_BSGE: jax.Array,
    v_BSGE: jax.Array,
    lengths_B: jax.Array,
    tuning: Tuning,
    *,
    bidirectional: bool,
    window: jax.Array | int | None,
    windows: tuple[int, ...],
    scale: float,
    soft_cap: float,
    sinks_H: jax.Array | None,
    interpret: bool = False,
) -> jax.Array:
    """`attend` by the kernel, where `splash_is_legal`.

    Args:
      tuning: Tokens of a tile, at most.
      interpret: Whether Pallas interprets the kernel, which a CPU can.
      Others: As in `attend`.

    Returns:
      [B, T, H, E']. Rows of padding are finite, no more.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    T, H = q_BTHE.shape[1:3]
    S = k_BSGE.shape[1]
    n_queries, n_keys = padded_lengths(T, S, tuning)

    def cut(x_BNHE: jax.Array, n: int) -> jax.Array:
        x_BHNE = x_BNHE.transpose(0, 2, 1, 3)
        return jnp.pad(x_BHNE, ((0, 0), (0, 0), (0, n - x_BHNE.shape[2]), (0, 0)))

    q_BHTE = cut(q_BTHE * scale, n_queries)
    k_BGSE, v_BGSE = cut(k_BSGE, n_keys), cut(v_BSGE, n_keys)
    segments = None
    if bidirectional:
        # Real tokens see each other, and so does padding. Causality alone hides padding.
        real_BS = (jnp.arange(n_keys)[None] < S - T + lengths_B[:, None]).astype(jnp.int32)
        segments = SegmentIds(real_BS[:, S - T : S - T + n_queries], real_BS)

    def of_window(window: int) -> Any:
        kernel = splash_kernel(
            H, T, S, tuning, bidirectional, window, soft_cap=soft_cap, interpret=interpret
        )

        def of_row(q_HTE: jax.Array, k_GSE: jax.Array, v_GSE: jax.Array, segments: Any) -> Any:
            return kernel(q_HTE, k_GSE, v_GSE, segments, sinks_H)

        return jax.vmap(of_row)

    seen = windows or (S if window is None else int(window),)
    choices = sorted({min(each, S) for each in seen})
    kernels = [of_window(each) for each in choices]
    of_heads = q_BHTE, k_BGSE, v_BGSE, segments
    if len(kernels) == 1:
        x_BHTE = kernels[0](*of_heads)
    else:
        assert window is not None
        index = jnp.sum(window > jnp.asarray(choices[:-1], jnp.int32))
        x_BHTE = jax.lax.switch(index, kernels, *of_heads)
    return x_BHTE[:, :, :T].transpose(0, 2, 1, 3)


def splash_kernel(
    n_heads: int,
    T: int,
    S: int,
    tuning: Tuning,
    bidirectional: bool,
    window: int,
    *,
    soft_cap: float = 0.0,
    interpret: bool = False,
) -> Any:
    """The kernel for one row's heads.

    Args:
      n_heads: Query heads.
      T: Queries, the last of S keys.
      S: Keys.
      window: Tokens that a query sees, as in `attend`; S for all of them.
      Others: As in `attend_splash`.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    n_queries, n_keys = padded_lengths(T, S, tuning)
    shape, ahead = (n_queries, n_keys), window - 1 if bidirectional else 0
    mask: Any = splash.LocalMask(shape, (window - 1, ahead), offset=S - T)
    if window >= S:
        mask = splash.FullMask(shape) if bidirectional else splash.CausalMask(shape, S - T)
    sizes = splash.BlockSizes(_tile(n_queries, tuning), _tile(n_keys, tuning))
    return splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * n_heads), block_sizes=sizes,
        attn_logits_soft_cap=soft_cap or None, interpret=interpret,
    )  # fmt: skip


def padded_lengths(T: int, S: int, tuning: Tuning) -> tuple[int, int]:
    """Queries and keys that fill their tiles; every query has its own key among them."""
    queries = -(-T // _tile(T, tuning)) * _tile(T, tuning)
    keys = S - T + queries
    return queries, -(-keys // _tile(keys, tuning)) * _tile(keys, tuning)


def _tile(n: int, tuning: Tuning) -> int:
    """Tokens of a tile: the fewest tiles that hold n, as small as they can be."""
    n_tiles = -(-n // tuning.attention_tile)
    return -(-n // (n_tiles * LANES)) * LANES
