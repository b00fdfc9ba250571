"""Placements: how each row's score stands among the rows of the other class; their mean is AUC."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Placements(NamedTuple):
    """Of one problem; pairs are of rows of one group.

    Attributes:
      won_N: [N] for a correct row the wrong rows scored below it, for a wrong row the correct rows
        scored above it, a tie counting half; 0 for rows that do not count.
      others_N: [N] rows of the other class, which is the most `won_N` can be.
    """

    won_N: jax.Array
    others_N: jax.Array


def placements(score_N: jax.Array, y_N: jax.Array, group_N: jax.Array) -> Placements:
    """Placements of one problem inside each group of rows, by one sort.

    Args:
      score_N: [N] scores; a row with NaN does not count.
      y_N: [N] 1 = correct, 0 = wrong, NaN = does not count.
      group_N: [N] int32 from 0 up.

    Returns:
      The placements. DeLong, DeLong and Clarke-Pearson (1988) write AUC's variance with them.
    """
    n = len(score_N)
    counts_N = jnp.isfinite(score_N) & jnp.isfinite(y_N)
    order_N = jnp.lexsort((jnp.where(counts_N, score_N, 0.0), jnp.where(counts_N, group_N, n)))
    score_N, y_N, counts_N, group_N = (a[order_N] for a in (score_N, y_N, counts_N, group_N))
    group_N = jnp.where(counts_N, group_N, n)
    correct_N, wrong_N = (counts_N & (y_N == k) for k in (1, 0))
    new_group_N = _changes(group_N)
    # A run is a stretch of equal scores in one group.
    run, group = (_stretches(new) for new in (new_group_N | _changes(score_N), new_group_N))

    def below(class_N: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Rows of a class below each row, half of those beside it; all of its group."""
        upto_N = jnp.concatenate([jnp.zeros(1), jnp.cumsum(class_N.astype(jnp.float32))])
        start_N, total_N = upto_N[group[0]], upto_N[group[1]] - upto_N[group[0]]
        return 0.5 * (upto_N[run[0]] + upto_N[run[1]]) - start_N, total_N

    (wrong_below_N, n_wrong_N), (correct_below_N, n_correct_N) = map(below, (wrong_N, correct_N))
    won_N = jnp.where(correct_N, wrong_below_N, n_correct_N - correct_below_N)
    others_N = jnp.where(correct_N, n_wrong_N, n_correct_N)
    # Back to the rows' own order.
    return Placements(
        *(jnp.zeros(n).at[order_N].set(jnp.where(counts_N, a, 0.0)) for a in (won_N, others_N))
    )


def auc(score_N: jax.Array, y_N: jax.Array) -> jax.Array:
    """P(a correct row is scored above a wrong one), ties counting half; NaN without both classes.

    Args:
      score_N: [N] scores; a row with NaN does not count.
      y_N: [N] 1 = correct, 0 = wrong, NaN = does not count.

    Returns:
      [] float32.
    """
    won_N, others_N = placements(score_N, y_N, jnp.zeros(len(score_N), jnp.int32))
    # Each pair counts once on either side of it.
    return jnp.where(others_N.sum() > 0, won_N.sum() / others_N.sum(), jnp.nan)


def _changes(a_N: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.array([True]), a_N[1:] != a_N[:-1]])


def _stretches(new_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the stretch of each row starts, and where the next one does."""
    at_N = jnp.arange(len(new_N))
    last_N = jnp.concatenate([new_N[1:], jnp.array([True])])
    start_N = jax.lax.cummax(jnp.where(new_N, at_N, 0))
    return start_N, 1 + jax.lax.cummin(jnp.where(last_N, at_N, len(new_N)), reverse=True)
