"""capture: one compiled prefill that pools every hidden state as it passes."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

_QUANTILES = {"at25": 0.25, "at50": 0.5, "at75": 0.75}
POOLINGS = ("last", "mean", "query_mean", "first", "max", *_QUANTILES)


def pool(
    x_BTD: jax.Array, lengths_B: jax.Array, spans_B2: jax.Array, poolings: tuple[str, ...]
) -> jax.Array:
    """Pools real tokens into one vector per prompt and pooling, in float32.

    Args:
      x_BTD: [B, T, D] a hidden state.
      lengths_B: [B] int32 real tokens of each row, at least 1; what follows is padding.
      spans_B2: [B, 2] int32, first token of the query itself and the one after its last.
      poolings: Names out of POOLINGS. `last` and `first` are the prompt's last and first real
        token, `mean` and `max` run over all real tokens, `query_mean` over the query's own; `at25`,
        `at50` and `at75` are the token that far into the query (rounded down).

    Returns:
      [P, B, D] float32.
    """
    t_T = jnp.arange(x_BTD.shape[1])
    real_BT = t_T[None] < lengths_B[:, None]
    starts_B, ends_B = spans_B2[:, 0], spans_B2[:, 1]
    # Padding may hold anything, infinities too; a product with 0 would not remove those.
    x_BTD = jnp.where(real_BT[:, :, None], x_BTD.astype(jnp.float32), 0.0)

    def mean_over(mask_BT: jax.Array) -> jax.Array:
        weights_BT = mask_BT / jnp.maximum(mask_BT.sum(axis=1, keepdims=True), 1)
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("bt,btd->bd", weights_BT, x_BTD, precision=highest)

    def token_at(index_B: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x_BTD, index_B[:, None, None], axis=1)[:, 0]

    def pooled(name: str) -> jax.Array:
        match name:
            case "last":
                return token_at(lengths_B - 1)
            case "first":
                return x_BTD[:, 0]
            case "mean":
                return mean_over(real_BT)
            case "query_mean":
                return mean_over((t_T[None] >= starts_B[:, None]) & (t_T[None] < ends_B[:, None]))
            case "max":
                return jnp.where(real_BT[:, :, None], x_BTD, -jnp.inf).max(axis=1)
            case _:
                steps_B = (_QUANTILES[name] * (ends_B - starts_B - 1)).astype(jnp.int32)
                return token_at(starts_B + jnp.maximum(steps_B, 0))

    return jnp.stack([pooled(name) for name in poolings])


@functools.partial(jax.jit, static_argnames=("graphdef", "layers", "poolings", "cudnn"))
def capture(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    spans_B2: jax.Array,
    *,
    layers: tuple[int, ...],
    poolings: tuple[str, ...],
    cudnn: bool = False,
) -> jax.Array:
    """Prefills a batch and returns the pooled hidden states asked for.

    The blocks run in one `lax.scan` that stops at the deepest state asked for and pools on the way,
    so the temporary memory is that of one block at any depth. Where blocks of several kinds
    alternate, a step is one group of them, so that the program does not grow with depth; what the
    deepest state needs of a last group comes after the scan. The scan runs over group *numbers* and
    indexes the stacked weights inside: scanning over `weights[:depth]` would copy them.

    Args:
      graphdef: Of a Bert or Decoder.
      params: Its parameters; of p stacks of blocks, stack s holds the blocks s, s + p, s + 2p ...
        on axis 0.
      tokens_BT: [B, T] int32, padded on the right with any valid token.
      lengths_B: [B] int32 real tokens, at least 1.
      spans_B2: [B, 2] int32, where the query's own tokens start and end.
      layers: Hidden-state indices, ascending; 0 is the embedding output, n_layers the last one,
        after the final norm (as Hugging Face's `hidden_states`).
      poolings: Names out of POOLINGS.
      cudnn: Whether cuDNN attends; where `cudnn_is_legal`.

    Returns:
      h_LPBD [L, P, B, D] float32.
    """
    model = nnx.merge(graphdef, params)
    stacks = [nnx.split(stack) for stack in model.blocks]
    period, n_layers = len(stacks), sum(len(jax.tree.leaves(w)[0]) for _, w in stacks)
    depth = layers[-1]
    assert list(layers) == sorted(set(layers)) and 0 <= layers[0] and depth <= n_layers, layers
    # State n_layers has no slot here: it is pooled after the scan, behind the final norm.
    slots_L = jnp.array([layers.index(i) if i in layers else -1 for i in range(n_layers)] + [-1])

    def pooled(x_BTD: jax.Array) -> jax.Array:
        return pool(x_BTD, lengths_B, spans_B2, poolings)

    def keep(h_LPBD: jax.Array, slot: jax.Array, x_BTD: jax.Array) -> jax.Array:
        def write(h_LPBD: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_index_in_dim(h_LPBD, pooled(x_BTD), slot, 0)

        return jax.lax.cond(slot >= 0, write, lambda h_LPBD: h_LPBD, h_LPBD)

    def run(carry: tuple[jax.Array, jax.Array], group: jax.Array | int, s: int):
        x_BTD, h_LPBD = carry
        block_def, stacked = stacks[s]
        weights = jax.tree.map(
            lambda w: jax.lax.dynamic_index_in_dim(w, group, keepdims=False), stacked
        )
        i = jnp.asarray(group * period + s)
        block = nnx.merge(block_def, weights)
        x_BTD, _ = model.apply_block(block, i, x_BTD, batch, cudnn=cudnn)
        return x_BTD, keep(h_LPBD, slots_L[i + 1], x_BTD)

    def step(carry: tuple[jax.Array, jax.Array], group: jax.Array):
        for s in range(period):
            carry = run(carry, group, s)
        return carry, None

    x_BTD, batch = model.start(tokens_BT, lengths_B)
    h_LPBD = jnp.zeros((len(layers), len(poolings), x_BTD.shape[0], x_BTD.shape[2]), jnp.float32)
    h_LPBD = keep(h_LPBD, slots_L[0], x_BTD)
    n_groups, n_more = divmod(depth, period)
    carry, _ = jax.lax.scan(step, (x_BTD, h_LPBD), jnp.arange(n_groups))
    for s in range(n_more):
        carry = run(carry, n_groups, s)
    x_BTD, h_LPBD = carry
    if depth == n_layers:
        h_LPBD = h_LPBD.at[-1].set(pooled(model.finish(x_BTD)))
    return h_LPBD
