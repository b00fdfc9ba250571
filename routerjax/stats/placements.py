"""Placements: the share of the other class that a row's score beats; their mean is AUC."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Placements(NamedTuple):
    """One cell's rows among the other class of their stratum; G strata.

    Attributes:
      place_N: [N] placements (ties half); 0 where the row or the other class does not count.
      correct_N: [N] 1 for rows of the correct class that count.
      wrong_N: [N] 1 for rows of the wrong class that count.
      correct_G: [G] number of rows of the correct class in each stratum.
      wrong_G: [G] number of rows of the wrong class in each stratum.
    """

    place_N: jax.Array
    correct_N: jax.Array
    wrong_N: jax.Array
    correct_G: jax.Array
    wrong_G: jax.Array


def placements(
    score_N: jax.Array, y_N: jax.Array, stratum_N: jax.Array, n_strata: int
) -> Placements:
    """Placements of one cell inside strata, all strata by one sort.

    Args:
      score_N: [N] scores; a row with NaN does not count.
      y_N: [N] 1 = correct, 0 = wrong, NaN = does not count.
      stratum_N: [N] integers in [0, n_strata).
      n_strata: G.

    References:
      DeLong, DeLong and Clarke-Pearson, 1988: the variance of AUC in terms of placements.
    """
    counts_N = jnp.isfinite(score_N) & jnp.isfinite(y_N)
    correct_N = jnp.where(counts_N & (y_N == 1), 1.0, 0.0)
    wrong_N = jnp.where(counts_N & (y_N == 0), 1.0, 0.0)
    score_N = jnp.where(counts_N, score_N, jnp.inf)
    order_N = jnp.lexsort((score_N, stratum_N))
    score_N, group_N = score_N[order_N], stratum_N[order_N]
    # A run is a stretch of equal score in one stratum.
    at_N, edge = jnp.arange(len(score_N)), jnp.array([True])
    change_N = (score_N[1:] != score_N[:-1]) | (group_N[1:] != group_N[:-1])
    first_N = jax.lax.cummax(jnp.where(jnp.concatenate([edge, change_N]), at_N, 0))
    ends_N = jnp.concatenate([change_N, edge])
    last_N = jax.lax.cummin(jnp.where(ends_N, at_N, len(score_N)), reverse=True)

    def among(class_N: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[N] share of the class below each sorted row, half of ties; [G] rows of it."""
        size_G = jax.ops.segment_sum(class_N, stratum_N, n_strata)
        upto_N = jnp.concatenate([jnp.zeros(1), jnp.cumsum(class_N[order_N])])
        below_N = 0.5 * (upto_N[first_N] + upto_N[last_N + 1])
        below_N = below_N - (jnp.cumsum(size_G) - size_G)[group_N]
        return below_N / jnp.maximum(size_G, 1.0)[group_N], size_G

    (wrong_below_N, wrong_G), (correct_below_N, correct_G) = among(wrong_N), among(correct_N)
    place_N = jnp.where(correct_N[order_N] > 0, wrong_below_N, 1 - correct_below_N)
    both_N = ((correct_G > 0) & (wrong_G > 0))[group_N]
    place_N = jnp.where(both_N & counts_N[order_N], place_N, 0.0)
    # Back to the rows' own order.
    place_N = jnp.zeros_like(place_N).at[order_N].set(place_N)
    return Placements(place_N, correct_N, wrong_N, correct_G, wrong_G)


def auc(score_N: jax.Array, y_N: jax.Array) -> jax.Array:
    """[] float32 P(a correct row is scored above a wrong one), ties counting half.

    NaN without rows of both classes. Args: As in `placements`.
    """
    placed = placements(score_N, y_N, jnp.zeros(len(score_N), jnp.int32), 1)
    n_correct, n_wrong = placed.correct_G[0], placed.wrong_G[0]
    both = (n_correct > 0) & (n_wrong > 0)
    return jnp.where(both, (placed.place_N * placed.correct_N).sum() / n_correct, jnp.nan)
