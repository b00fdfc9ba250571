"""Multi-head latent attention: keys and values come from few channels of a token (DeepSeek)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.models.attention import continued, rotate
from routerjax.encoder.models.mixers.place import Place
from routerjax.encoder.models.partition import attend
from routerjax.runtime.tuning import Tuning

_EPS = 1e-6  # Of the norms of the few channels, whatever the config says of the others.


class LatentAttention(nnx.Module):
    """Attention of queries q and, with c = norm(kv_down(x)), keys [k(c), k_rope(x)], values v(c).

    Only k_rope and as many channels of each query turn; k_rope serves all heads. Leaves c and
    k_rope, rotated, behind, [B, T, rank] and [B, T, 1, rope_dim]; `before` are those of a prefix,
    with one row.
    """

    def __init__(
        self, config: EncoderConfig, tuning: Tuning, linear: Any, norm: Any, rngs: nnx.Rngs
    ):
        assert config.latent is not None
        D, H, s = config.width, config.n_heads, config.latent
        if s.query_rank:
            self.q_down = linear(D, s.query_rank, use_bias=config.qkv_bias, rngs=rngs)
            self.q_down_norm = norm(s.query_rank, eps=_EPS, rngs=rngs)
            self.q_up = linear(s.query_rank, H * config.head_dim, use_bias=False, rngs=rngs)
        else:
            self.q = linear(D, H * config.head_dim, use_bias=False, rngs=rngs)
        self.kv_down = linear(D, s.rank, use_bias=config.qkv_bias, rngs=rngs)
        self.kv_down_norm = norm(s.rank, eps=_EPS, rngs=rngs)
        self.k_rope = linear(D, s.rope_dim, use_bias=config.qkv_bias, rngs=rngs)
        self.k = linear(s.rank, H * s.key_dim, use_bias=False, rngs=rngs)
        self.v = linear(s.rank, H * s.value_dim, use_bias=False, rngs=rngs)
        self.o = linear(H * s.value_dim, D, use_bias=config.out_bias, rngs=rngs)
        self.config, self.shape, self.tuning = config, s, tuning

    def __call__(
        self, x_BTD: jax.Array, place: Place, before: Any = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        B, T, _ = x_BTD.shape
        c, s = self.config, self.shape

        def turned(x_BTNE: jax.Array) -> jax.Array:
            return rotate(
                x_BTNE, place.angles_BTW, place.factor, c.ropes[0].interleaved,
                self.tuning.rotates_by_product,
            )  # fmt: skip

        q = self.q_up(self.q_down_norm(self.q_down(x_BTD))) if s.query_rank else self.q(x_BTD)
        kept, turns = jnp.split(q.reshape(B, T, c.n_heads, c.head_dim), [s.key_dim], axis=-1)
        q_BTHE = jnp.concatenate([kept, turned(turns)], axis=-1)
        after = self.kv_down_norm(self.kv_down(x_BTD)), turned(self.k_rope(x_BTD)[:, :, None])
        k_BSHE, v_BSHE = self._keys_and_values(*after)
        if before is not None:
            k_1PHE, v_1PHE = self._keys_and_values(*before)
            k_BSHE, v_BSHE = continued(k_1PHE, k_BSHE), continued(v_1PHE, v_BSHE)
        x_BTHE = attend(
            q_BTHE, k_BSHE, v_BSHE, place.lengths_B, precision=self.o.precision,
            tuning=self.tuning, bidirectional=place.bidirectional, window=place.window,
            windows=c.windows, scale=c.query_scale,
        )  # fmt: skip
        return self.o(x_BTHE.reshape(B, T, -1)), after

    def _keys_and_values(
        self, few_BTC: jax.Array, rope_BT1E: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """[B, T, H, E] and [B, T, H, E'] of all heads."""
        kept, v_BTHE = (
            part(few_BTC).reshape(*few_BTC.shape[:2], self.config.n_heads, -1)
            for part in (self.k, self.v)
        )
        turned = jnp.broadcast_to(rope_BT1E, (*kept.shape[:3], self.shape.rope_dim))
        return jnp.concatenate([kept, turned], axis=-1), v_BTHE
