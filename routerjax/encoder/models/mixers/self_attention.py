"""The attention of most families: rotary positions, grouped key/value heads."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.models.attention import continued, rotate
from routerjax.encoder.models.mixers.place import Place
from routerjax.encoder.models.norms import inverse_rms, unit_rms
from routerjax.encoder.models.partition import attend, attend_cudnn
from routerjax.runtime.tuning import Tuning


class Attention(nnx.Module):
    """Self-attention with rotary positions and grouped key/value heads.

    Leaves its keys, rotated, and its values behind, [B, T, G, E] each; `before` are those of a
    prefix, [1, P, G, E].

    Args:
      tied_values: Whether the values are the keys before norm and rotation.
      borrows: Whether an earlier layer's keys and values are read: `before` is then a pair, what
        that layer had before these tokens and what it leaves behind them. Nothing is left behind.
    """

    def __init__(
        self,
        config: EncoderConfig,
        tuning: Tuning,
        linear: Any,
        norm: Any,
        rngs: nnx.Rngs,
        tied_values: bool = False,
        borrows: bool = False,
    ):
        D, H, G, E = config.width, config.n_heads, config.n_kv_heads, config.head_dim
        self.q = linear(D, H * E, use_bias=config.qkv_bias, rngs=rngs)
        if not borrows:
            self.k = linear(D, G * E, use_bias=config.qkv_bias, rngs=rngs)
            if not tied_values:
                self.v = linear(D, G * E, use_bias=config.qkv_bias, rngs=rngs)
        self.o = linear(H * E, D, use_bias=config.out_bias, rngs=rngs)
        if config.output_gate:
            self.gate = linear(D, H * E, use_bias=config.qkv_bias, rngs=rngs)
        if config.qk_norm:
            wide = config.qk_norm == "projection"
            self.q_norm = norm(H * E if wide else E, rngs=rngs)
            if not borrows:
                self.k_norm = norm(G * E if wide else E, rngs=rngs)
        if config.sinks:
            self.sinks = nnx.Param(jnp.zeros(H, self.q.param_dtype))
        self.config, self.tuning = config, tuning
        self.tied_values, self.borrows = tied_values, borrows

    def splits(self, n: int) -> bool:
        """Whether n devices can each attend with some heads, and need leave nothing behind."""
        c = self.config
        whole = c.qk_norm == "projection" or self.borrows or any(i is not None for i in c.lenders)
        shared = isinstance(self.q, nnx.Linear) and not whole  # Float8's parameters lie otherwise.
        return shared and c.n_heads % n == 0 and c.n_kv_heads % n == 0

    def __call__(self, x_BTD: jax.Array, place: Place, before: Any = None) -> tuple[jax.Array, Any]:
        B, T, _ = x_BTD.shape
        c = self.config
        # The kernel of longer prompts takes no factors of scores.
        folds = self.tuning.folds_query_norm and c.qk_norm == "head" and T < self.tuning.splash_from
        q_BTHE = self._heads(self.q(x_BTD), self.q_norm if c.qk_norm and not folds else None)
        factor_BTH = scale_E = None
        if folds:
            factor_BTH = inverse_rms(q_BTHE.astype(jnp.float32), c.norm_eps)[..., 0]
            scale_E = self.q_norm.scale_D
        q_BTHE = self._rotated(q_BTHE, place, scale_E)
        if c.query_growth is not None:
            beta, step = c.query_growth
            growth_T = 1 + beta * jnp.log1p((place.positions_T // step).astype(jnp.float32))
            q_BTHE = q_BTHE * growth_T[None, :, None, None].astype(q_BTHE.dtype)
        if self.borrows:
            before, after = before
        else:
            after = self._keys_and_values(x_BTD, place)
        k_BSGE, v_BSGE = after if before is None else map(continued, before, after)
        if self.tuning.cudnn:
            x_BTHE = attend_cudnn(q_BTHE, k_BSGE, v_BSGE, place.lengths_B, scale=c.query_scale)
        else:
            x_BTHE = attend(
                q_BTHE, k_BSGE, v_BSGE, place.lengths_B, precision=self.q.precision,
                tuning=self.tuning, bidirectional=place.bidirectional, window=place.window,
                windows=c.windows, scale=c.query_scale, soft_cap=c.soft_cap,
                sinks_H=self.sinks[...] if c.sinks else None, factor_BTH=factor_BTH,
            )  # fmt: skip
        mixed = x_BTHE.reshape(B, T, -1)
        if c.output_gate:
            mixed = mixed * jax.nn.sigmoid(self.gate(x_BTD))
        added_BTD = self.o(mixed)
        if self.tuning.cudnn:
            # NaN in a row of padding would reach the next block's keys and values. Here, and not
            # before the product, the compiler does this while it adds to the residual stream.
            added_BTD = jnp.where(place.real_BT[..., None], added_BTD, 0)
        return added_BTD, None if self.borrows else after

    def _keys_and_values(self, x_BTD: jax.Array, place: Place) -> tuple[jax.Array, jax.Array]:
        k = self.k(x_BTD)
        v_BTGE = self._heads(k if self.tied_values else self.v(x_BTD), None)
        k_BTGE = self._heads(k, self.k_norm if self.config.qk_norm else None)
        if self.config.value_norm:
            v_BTGE = unit_rms(v_BTGE, self.config.norm_eps).astype(v_BTGE.dtype)
        return self._rotated(k_BTGE, place), v_BTGE

    def _heads(self, projected: jax.Array, norm: Any) -> jax.Array:
        """[B, T, heads, E] of [B, T, heads * E], normed whole or head by head."""
        B, T, _ = projected.shape
        if norm is not None and self.config.qk_norm == "projection":
            projected = norm(projected)
        x_BTNE = projected.reshape(B, T, -1, self.config.head_dim)
        return norm(x_BTNE) if norm is not None and self.config.qk_norm == "head" else x_BTNE

    def _rotated(
        self, x_BTNE: jax.Array, place: Place, scale_E: jax.Array | None = None
    ) -> jax.Array:
        # Tables may be wider than this layer's heads; what is beyond turns nothing.
        angles_BTW = place.angles_BTW[..., : self.config.head_dim // 2]
        interleaved, by_product = self.config.ropes[0].interleaved, self.tuning.rotates_by_product
        return rotate(x_BTNE, angles_BTW, place.factor, interleaved, by_product, scale_E)
