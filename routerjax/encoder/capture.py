"""capture: one compiled prefill that pools every hidden state on the way.

`_prefill` runs a loop through closures (run, apply, keep). Without stacks, prefixes, layers
that read earlier keys and a bounded program it is this:

    x_BTD, places = model.start(tokens_BT, lengths_B)
    states = [x_BTD]
    for i, block in enumerate(blocks[: selection.layers[-1]]):
        x_BTD, _ = model.apply_block(block, i, x_BTD, places)
        states.append(model.finish(x_BTD) if i + 1 == n_layers else x_BTD)
    return jnp.stack([pool(states[i], lengths_B, spans_B2, selection.poolings, tuning)
                      for i in selection.layers])
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from routerjax.encoder.models import products
from routerjax.encoder.models.ring import by_batch
from routerjax.encoder.pooling import pool
from routerjax.encoder.selection import Selection
from routerjax.runtime.tuning import Tuning

# Tokens of a batch up to which each block's weights come from arrays of their own; and the bytes
# and blocks up to which a model has such copies, so that they and the unrolled program stay small.
FEW_TOKENS = 256
_COPY_BYTES, _FEW_BLOCKS = 2**28, 12

_OF_A_PREFIX = ("first", "mean", "max")


class Graph:
    """A graph definition that is hashed once, not through all its modules at every call.

    Attributes:
      graphdef: Of a Bert or Decoder.
    """

    def __init__(self, graphdef: nnx.GraphDef):
        self.graphdef, self._hash = graphdef, hash(graphdef)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self.graphdef == other.graphdef


class Prefix(NamedTuple):
    """The state that the tokens all prompts of a job start with leave; see `read_prefix`.

    Attributes:
      tokens_P: [P] int32.
      lead: What the mixers of the blocks before the repeating ones left, one row each.
      groups: For each stack of the others what its blocks' mixers left: axis 0 the groups, axis 1
        one row.
      rest: The same of the blocks after the last whole group.
      pooled_L3D: [L, 3, D] float32 first token, mean and maximum of each hidden state.
    """

    tokens_P: jax.Array
    lead: tuple[Any, ...]
    groups: tuple[Any, ...]
    rest: tuple[Any, ...]
    pooled_L3D: jax.Array


@functools.partial(jax.jit, static_argnames=("graph", "selection"))
def capture(
    graph: Graph,
    params: nnx.State,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    spans_B2: jax.Array,
    *,
    selection: Selection,
    prefix: Prefix | None = None,
    blocks: tuple[Any, ...] | None = None,
) -> jax.Array:
    """Prefills a batch and returns the pooled hidden states asked for.

    The blocks run in one `lax.scan` that stops at the deepest state asked for and pools on the way,
    so that the temporary memory is that of one block at any depth. Where blocks of several kinds
    alternate, a step is one group of them, so that the program does not grow with depth; first
    blocks of kinds that do not repeat run before the scan, those of a last, incomplete group after.
    The scan runs over group *numbers* and indexes the stacked weights inside: scanning over
    `weights[:depth]` would copy them all. A CPU still copies what a step indexes, which takes a
    noticeable share of a small batch's time; with `blocks` the weights are read where they lie, and
    the loop is unrolled.

    Args:
      graph: Of a Bert or Decoder.
      params: Its parameters; on axis 0 of stack s the blocks `EncoderConfig.blocks_of(s)`. The
        stacks may be bits (`products.bits_of_stacks`).
      tokens_BT: [B, T] int32, padded on the right with any valid token.
      lengths_B: [B] int32 real tokens, at least 1.
      spans_B2: [B, 2] int32, where the query's own tokens start and end.
      selection: What to return; layers ascending.
      prefix: The tokens before every row of tokens_BT, read with the same layers; lengths and
        spans then count from its end. The result is that of the whole prompts.
      blocks: The weights of each block, of a model with one stack and without a prefix; None to
        take them from the stack.

    Returns:
      h_LPBD [L, P, B, D] float32.
    """
    batch = tokens_BT, lengths_B, spans_B2
    model = nnx.merge(graph.graphdef, params)
    return _prefill(model, batch, selection, prefix, False, blocks)[0]


def unstacked(
    params: nnx.State, n_layers: int, mesh: Mesh, tuning: Tuning
) -> tuple[Any, ...] | None:
    """The weights of each block by itself, for `capture`.

    Args:
      params: As in `capture`.
      n_layers: Blocks.
      mesh: Where the parameters lie.
      tuning: Whether these devices gain by it.

    Returns:
      Copies, as plain dicts, up to 256 MiB beside the parameters; None where the stack serves as
      well (an accelerator, or several devices), where there are several stacks, or where the model
      is too large or too deep for a second form.
    """
    stacks = list(params["blocks"].values())
    gains = mesh.size == 1 and tuning.unstacks_blocks
    n_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(stacks))
    if not gains or len(stacks) > 1 or n_layers > _FEW_BLOCKS or n_bytes > _COPY_BYTES:
        return None
    stack = nnx.to_pure_dict(stacks[0])
    # Arrays even where the first call is inside a trace: they are kept.
    with jax.ensure_compile_time_eval():
        leaves, structure = jax.tree.flatten(stack)
        blocks = zip(*map(jnp.unstack, leaves), strict=True)
        return tuple(jax.tree.unflatten(structure, block) for block in blocks)


@functools.partial(jax.jit, static_argnames=("graph", "layers"))
def read_prefix(
    graph: Graph,
    params: nnx.State,
    tokens_BP: jax.Array,
    *,
    layers: tuple[int, ...],
) -> Prefix:
    """Reads what all prompts start with, once, for `capture`.

    Args:
      graph: Of a Decoder.
      params: As in `capture`.
      tokens_BP: [B, P] int32 the same P tokens in every row; as many rows as there are devices.
      layers: Those of `capture`'s selection.
    """
    B, P = tokens_BP.shape
    batch = tokens_BP, jnp.full(B, P), jnp.tile(jnp.array([[0, P]]), (B, 1))
    model = nnx.merge(graph.graphdef, params)
    h_L3BD, left = _prefill(model, batch, Selection(layers, _OF_A_PREFIX), None, True)
    lead, groups, rest = left
    groups = jax.tree.map(lambda x: x[:, :1], groups)
    lead, rest = jax.tree.map(lambda x: x[:1], (lead, rest))
    return Prefix(tokens_BP[0], lead, groups, rest, h_L3BD[:, :, 0])


def _prefill(
    model: Any,
    batch: tuple[jax.Array, ...],
    selection: Selection,
    prefix: Prefix | None,
    leaves: bool,
    blocks: tuple[Any, ...] | None = None,
) -> tuple[jax.Array, tuple[tuple[Any, ...], ...]]:
    """h_LPBD and, if `leaves`, lead, groups and rest of a Prefix."""
    tokens_BT, lengths_B, spans_B2 = batch
    stacks = [nnx.split(stack) for stack in model.blocks]
    lead, n_layers = model.lead, sum(len(jax.tree.leaves(w)[0]) for _, w in stacks)
    period = len(stacks) - lead
    layers, poolings = selection.layers, selection.poolings
    depth = layers[-1]
    assert list(layers) == sorted(set(layers)) and 0 <= layers[0] and depth <= n_layers, layers
    assert prefix is None or len(prefix.pooled_L3D) == len(layers), "read with other layers"
    n_before = 0 if prefix is None else len(prefix.tokens_P)
    # State n_layers has no slot here: it is pooled after the scan, behind the final norm.
    slots_L = jnp.array([layers.index(i) if i in layers else -1 for i in range(n_layers)] + [-1])

    def pooled(x_BTD: jax.Array, slot: jax.Array | int) -> jax.Array:
        before_3D = None if prefix is None else prefix.pooled_L3D[slot]
        return pool(x_BTD, lengths_B, spans_B2, poolings, model.tuning, n_before, before_3D)

    def keep(h_LPBD: jax.Array, slot: jax.Array, x_BTD: jax.Array) -> jax.Array:
        def write(h_LPBD: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_index_in_dim(h_LPBD, pooled(x_BTD, slot), slot, 0)

        # What the last block writes here, `last` writes over.
        if x_BTD.shape[-1] <= model.tuning.pools_in_blocks and len(layers) == depth + 1:
            return write(h_LPBD)
        return jax.lax.cond(slot >= 0, write, lambda h_LPBD: h_LPBD, h_LPBD)

    def run(carry: tuple[jax.Array, jax.Array], group: jax.Array | int, s: int, before: Any):
        block_def, stacked = stacks[s]
        weights = jax.tree.map(lambda w: products.index(w, group), stacked)
        return apply(carry, nnx.merge(block_def, weights), group * period + s, before)

    def run_some(
        carry: tuple[jax.Array, jax.Array],
        group: Any,
        some: range,
        befores: Any,
        lent: Any = ((), ()),
    ):
        """Blocks in a row; `lent` is what those of the lead had before these tokens, and left."""
        left: list[Any] = []
        for s, before in zip(some, befores, strict=False):
            if (lender := model.lenders[s]) is not None:
                # It is one of the lead or of this row: kinds do not repeat until all have lent.
                before = (*lent[0], *befores)[lender], (*lent[1], *left)[lender]
            carry, after = run(carry, group, s, before)
            left.append(after)
        return carry, tuple(left)

    def apply(carry: tuple[jax.Array, jax.Array], block: Any, i: jax.Array | int, before: Any):
        x_BTD, h_LPBD = carry
        i = jnp.asarray(i)
        x_BTD, after = model.apply_block(block, i, x_BTD, places, before)
        x_BTD = by_batch(x_BTD, model)
        return (x_BTD, keep(h_LPBD, slots_L[i + 1], x_BTD)), after

    def step(carry: tuple[jax.Array, jax.Array], numbered: tuple[jax.Array, tuple[Any, ...]]):
        carry, left = run_some(carry, numbered[0], range(lead, len(stacks)), numbered[1], lent)
        return carry, left if leaves else None

    def last(x_BTD: jax.Array, h_LPBD: jax.Array) -> jax.Array:
        return h_LPBD.at[-1].set(pooled(model.finish(x_BTD), -1)) if depth == n_layers else h_LPBD

    x_BTD, places = model.start(tokens_BT, lengths_B, n_before)
    x_BTD = by_batch(x_BTD, model)
    h_LPBD = jnp.zeros((len(layers), len(poolings), x_BTD.shape[0], x_BTD.shape[2]), jnp.float32)
    h_LPBD = keep(h_LPBD, slots_L[0], x_BTD)
    if blocks is not None:
        assert len(stacks) == 1 and prefix is None and not leaves, "of one stack, without a prefix"

        @jax.jit  # Traced once, not for each block.
        def one_block(carry: tuple[jax.Array, jax.Array], weights: Any, i: jax.Array):
            return apply(carry, nnx.merge(stacks[0][0], weights), i, None)[0]

        for i, weights in enumerate(blocks[:depth]):
            x_BTD, h_LPBD = one_block((x_BTD, h_LPBD), weights, i)
        return last(x_BTD, h_LPBD), ()
    n_groups, n_more = divmod(max(0, depth - lead), period)
    nothing = (None,) * len(stacks)
    before = (nothing[:lead], nothing[lead:], nothing[lead:])
    if prefix is not None:
        before = (prefix.lead, prefix.groups, prefix.rest)
    carry, first = run_some((x_BTD, h_LPBD), 0, range(min(depth, lead)), before[0])
    lent, groups = (before[0], first), nothing[lead:]
    if n_groups:
        carry, groups = jax.lax.scan(step, carry, (jnp.arange(n_groups), before[1]))
    carry, rest = run_some(carry, n_groups, range(lead, lead + n_more), before[2], lent)
    return last(*carry), (first, groups, rest)
