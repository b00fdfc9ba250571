"""Pooling a hidden state over the real tokens of each prompt."""

import jax
import jax.numpy as jnp

from routerjax.runtime.tuning import Tuning

_QUANTILES = {"at25": 0.25, "at50": 0.5, "at75": 0.75}


POOLINGS = ("last", "mean", "query_mean", "first", "max", *_QUANTILES)


def pool(
    x_BTD: jax.Array,
    lengths_B: jax.Array,
    spans_B2: jax.Array,
    poolings: tuple[str, ...],
    tuning: Tuning,
    n_before: int = 0,
    before_3D: jax.Array | None = None,
) -> jax.Array:
    """Pools real tokens into one vector per prompt and pooling, in float32.

    Args:
      x_BTD: [B, T, D] a hidden state.
      lengths_B: [B] int32 real tokens of each row, at least 1; what follows is padding.
      spans_B2: [B, 2] int32, first token of the query itself and the one after its last.
      poolings: Names out of POOLINGS. `last` and `first` are the prompt's last and first real
        token, `mean` and `max` run over all real tokens, `query_mean` over the query's own; `at25`,
        `at50` and `at75` are the token that far into the query (rounded down).
      tuning: How a mean is computed.
      n_before: Tokens of a prefix before each row's own, which `first`, `mean` and `max` count.
      before_3D: [3, D] float32 those three of the prefix.

    Returns:
      [P, B, D] float32.
    """
    first_D, mean_D, max_D = (None, None, None) if before_3D is None else before_3D
    t_T = jnp.arange(x_BTD.shape[1])
    real_BT = t_T[None] < lengths_B[:, None]
    starts_B, ends_B = spans_B2[:, 0], spans_B2[:, 1]
    shape = x_BTD.shape[0], x_BTD.shape[2]

    def real_only(mask_BT: jax.Array) -> jax.Array:
        """In float32. Padding may hold infinities, and 0 times infinity is not 0."""
        return jnp.where(mask_BT[:, :, None], x_BTD.astype(jnp.float32), 0.0)

    def mean_over(mask_BT: jax.Array) -> jax.Array:
        n_B1 = jnp.maximum(mask_BT.sum(axis=1, keepdims=True), 1)
        if not tuning.mean_by_product:
            return real_only(mask_BT).sum(axis=1) / n_B1
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("bt,btd->bd", mask_BT / n_B1, real_only(real_BT), precision=highest)

    def token_at(index_B: jax.Array) -> jax.Array:
        x_B1D = jnp.take_along_axis(x_BTD, index_B[:, None, None], axis=1)
        return x_B1D[:, 0].astype(jnp.float32)

    def pooled(name: str) -> jax.Array:
        match name:
            case "last":
                return token_at(lengths_B - 1)
            case "first":
                first_BD = x_BTD[:, 0].astype(jnp.float32)
                return first_BD if first_D is None else jnp.broadcast_to(first_D, shape)
            case "mean":
                mean_BD = mean_over(real_BT)
                if mean_D is None:
                    return mean_BD
                share_B1 = (n_before / (n_before + lengths_B))[:, None]
                return share_B1 * mean_D[None] + (1 - share_B1) * mean_BD
            case "query_mean":
                return mean_over((t_T[None] >= starts_B[:, None]) & (t_T[None] < ends_B[:, None]))
            case "max":
                max_BTD = jnp.where(real_BT[:, :, None], x_BTD, -jnp.inf)
                max_BD = max_BTD.max(axis=1).astype(jnp.float32)
                return max_BD if max_D is None else jnp.maximum(max_BD, max_D[None])
            case _:
                steps_B = (_QUANTILES[name] * (ends_B - starts_B - 1)).astype(jnp.int32)
                return token_at(starts_B + jnp.maximum(steps_B, 0))

    return jnp.stack([pooled(name) for name in poolings])
