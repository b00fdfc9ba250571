"""Pooling a hidden state over the real tokens of each prompt: one function each."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from routerjax.runtime.tuning import Tuning


@dataclasses.dataclass(frozen=True)
class State:
    """A hidden state of a batch, and what poolings ask of it.

    Attributes:
      x_BTD: [B, T, D] the state.
      lengths_B: [B] int32 real tokens of each row, at least 1; what follows is padding.
      spans_B2: [B, 2] int32, first token of the query itself and the one after its last.
      tuning: How a mean is computed.
      n_before: Tokens of a prefix before each row's own.
      before_3D: [3, D] float32 first, mean and maximum of the prefix; None without one.
    """

    x_BTD: jax.Array
    lengths_B: jax.Array
    spans_B2: jax.Array
    tuning: Tuning
    n_before: int = 0
    before_3D: jax.Array | None = None

    @property
    def real_BT(self) -> jax.Array:
        """[B, T] bool, the row's own tokens."""
        return jnp.arange(self.x_BTD.shape[1])[None] < self.lengths_B[:, None]

    @property
    def query_BT(self) -> jax.Array:
        """[B, T] bool, the tokens of the query itself."""
        t_T = jnp.arange(self.x_BTD.shape[1])
        return (t_T[None] >= self.spans_B2[:, :1]) & (t_T[None] < self.spans_B2[:, 1:])

    def mean_over(self, mask_BT: jax.Array) -> jax.Array:
        """[B, D] float32 mean of the tokens of a mask."""
        n_B1 = jnp.maximum(mask_BT.sum(axis=1, keepdims=True), 1)
        if not self.tuning.mean_by_product:
            return self._real_only(mask_BT).sum(axis=1) / n_B1
        real_BTD, highest = self._real_only(self.real_BT), jax.lax.Precision.HIGHEST
        return jnp.einsum("bt,btd->bd", mask_BT / n_B1, real_BTD, precision=highest)

    def token_at(self, index_B: jax.Array) -> jax.Array:
        """[B, D] float32 one token of each row."""
        x_B1D = jnp.take_along_axis(self.x_BTD, index_B[:, None, None], axis=1)
        return x_B1D[:, 0].astype(jnp.float32)

    def _real_only(self, mask_BT: jax.Array) -> jax.Array:
        """In float32. Padding may hold infinities, and 0 times infinity is not 0."""
        return jnp.where(mask_BT[:, :, None], self.x_BTD.astype(jnp.float32), 0.0)


def _last(state: State) -> jax.Array:
    """The prompt's last real token."""
    return state.token_at(state.lengths_B - 1)


def _first(state: State) -> jax.Array:
    """The prompt's first token, of the prefix where there is one."""
    first_BD = state.x_BTD[:, 0].astype(jnp.float32)
    return (
        first_BD
        if state.before_3D is None
        else jnp.broadcast_to(state.before_3D[0], first_BD.shape)
    )


def _mean(state: State) -> jax.Array:
    """All real tokens, those of the prefix too."""
    mean_BD = state.mean_over(state.real_BT)
    if state.before_3D is None:
        return mean_BD
    share_B1 = (state.n_before / (state.n_before + state.lengths_B))[:, None]
    return share_B1 * state.before_3D[1][None] + (1 - share_B1) * mean_BD


def _max(state: State) -> jax.Array:
    """All real tokens, those of the prefix too."""
    max_BTD = jnp.where(state.real_BT[:, :, None], state.x_BTD, -jnp.inf)
    max_BD = max_BTD.max(axis=1).astype(jnp.float32)
    return max_BD if state.before_3D is None else jnp.maximum(max_BD, state.before_3D[2][None])


def _query_mean(state: State) -> jax.Array:
    """The query's own tokens: no template, and no BOS, which attention sinks would dominate."""
    return state.mean_over(state.query_BT)


def _at(share: float, state: State) -> jax.Array:
    """The token that share of the way into the query, rounded down."""
    starts_B, ends_B = state.spans_B2[:, 0], state.spans_B2[:, 1]
    steps_B = (share * (ends_B - starts_B - 1)).astype(jnp.int32)
    return state.token_at(starts_B + jnp.maximum(steps_B, 0))


# From a state to [B, D] float32, by the name that flags and stores use.
_OF_NAME: dict[str, Callable[[State], jax.Array]] = {
    "last": _last,
    "mean": _mean,
    "query_mean": _query_mean,
    "first": _first,
    "max": _max,
    "at25": functools.partial(_at, 0.25),
    "at50": functools.partial(_at, 0.5),
    "at75": functools.partial(_at, 0.75),
}
POOLINGS = tuple(_OF_NAME)


def pool(
    x_BTD: jax.Array,
    lengths_B: jax.Array,
    spans_B2: jax.Array,
    poolings: tuple[str, ...],
    tuning: Tuning,
    n_before: int = 0,
    before_3D: jax.Array | None = None,
) -> jax.Array:
    """Pools real tokens into one vector per prompt and pooling.

    Args:
      x_BTD, lengths_B, spans_B2, tuning, n_before, before_3D: As in `State`.
      poolings: Names out of POOLINGS.

    Returns:
      [P, B, D] float32.
    """
    state = State(x_BTD, lengths_B, spans_B2, tuning, n_before, before_3D)
    return jnp.stack([_OF_NAME[name](state) for name in poolings])
