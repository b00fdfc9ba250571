"""The ring: devices that share a block's parameters exchange rows and sums while they compute.

Where every device has all rows, what a branch adds is summed over the model axis by an all-reduce,
beside which a TPU computes nothing. Here a device has some of the rows between branches.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from routerjax.encoder.models.mixers.place import Place
from routerjax.encoder.models.partition import BY_INPUTS, BY_OUTPUTS, mesh_here, rows_axis
from routerjax.runtime.devices import DATA, MODEL
from routerjax.runtime.tuning import Tuning


def ring_rows(mesh: Any, tuning: Tuning) -> int:
    """What the rows of a batch must be a multiple of for its branches to run `in_ring`; 1: none do.

    Args:
      mesh: Of the encoder.
      tuning: Of its devices.
    """
    return 2 * mesh.size if tuning.collective_matmul and mesh.shape[MODEL] > 1 else 1


def by_batch(x_BTD: jax.Array, model: Any) -> jax.Array:
    """Keeps a hidden state split by rows alone, whole along D.

    Over both axes where branches of the model run `in_ring`; elsewhere each device of the model
    axis has all rows of its place on the data axis.
    """
    mesh = mesh_here()
    if mesh is None:
        return x_BTD
    rows = (DATA, MODEL) if can_ring(model, x_BTD, model.tuning) else rows_axis(x_BTD, mesh)
    return jax.lax.with_sharding_constraint(x_BTD, P(rows))


def can_ring(branch: Any, x_BTD: jax.Array, tuning: Tuning) -> bool:
    """Whether `in_ring` computes a branch of a block here, or some branch of a model.

    Args:
      branch: A mixer or a feed-forward layer; `branch.splits(n)`, where it has that method, says
        whether n devices can have a share each, and of a model whether of any.
      x_BTD: Its input.
      tuning: Of the devices.
    """
    mesh = mesh_here()
    if mesh is None or not hasattr(branch, "splits"):
        return False
    n_rows, (B, T, _) = ring_rows(mesh, tuning), x_BTD.shape
    goes_round = n_rows > 1 and B % n_rows == 0 and B * T >= tuning.ring_tokens * mesh.size
    return goes_round and branch.splits(mesh.shape[MODEL])


def in_ring(
    branch: Any,
    x_BTD: jax.Array,
    tuning: Tuning,
    place: Place | None = None,
    before: Any = None,
) -> jax.Array:
    """What a branch of a block adds, by devices that exchange rows and sums while they compute.

    A device of the model axis has some of the rows, and its share of the branch: some heads, or
    some inner columns. The rows go round the ring of these devices, one half each way. What a
    device's share adds to the rows that have come joins the sum that comes with them, and the sums
    end where their rows are from. A device waits for one exchange, not for all of them. The field
    calls it a collective matmul: Wang et al., "Overlap Communication with Dependent Computation via
    Decomposition in Large Deep Learning Models", ASPLOS 2023.

    Args:
      branch: What `can_ring` allows; called with rows of x_BTD, for a place with theirs and
        `before` too.
      x_BTD: Split by rows over both axes.
      tuning: Of the devices.
      place: Of x_BTD; None for a feed-forward layer.
      before: Keys and values of a prefix, [1, P, G, E]; None without one.

    Returns:
      [B, T, D], split as x_BTD is.
    """
    mesh = mesh_here()
    n, shard = mesh.shape[MODEL], P((DATA, MODEL))
    graphdef, state = nnx.split(branch)
    parts: dict[str, Any] = {} if place is None else place._asdict()
    arrays = {name: x for name, x in parts.items() if isinstance(x, jax.Array)}

    def of_device(state: Any, x_bTD: jax.Array, arrays: dict[str, Any], before: Any) -> jax.Array:
        rank, first = jax.lax.axis_index(MODEL), jax.lax.axis_index(DATA) * n
        own_share = nnx.merge(graphdef, jax.tree_util.tree_map_with_path(_bias_once(rank), state))
        half = x_bTD.shape[0] // 2

        def share(x: jax.Array, starts: list[jax.Array]) -> jax.Array:
            """What this device's share adds to halves of rows, counted in halves of all rows."""
            if place is None:
                return own_share(x)
            there = place._replace(**arrays).of_rows([half * at for at in starts], half)
            return own_share(x, there, before)[0]

        def added(halves: list[jax.Array], steps: int) -> list[jax.Array]:
            """To a half of the device's so many steps behind, and of the one's ahead."""
            starts = [2 * (first + (rank - steps) % n), 2 * (first + (rank + steps) % n) + 1]
            if n == 2 and halves[0].shape[0] * halves[0].shape[1] >= tuning.ring_tokens:
                return [share(x, [at]) for x, at in zip(halves, starts, strict=True)]
            return jnp.split(share(jnp.concatenate(halves), starts), 2)

        def passed(halves: list[jax.Array]) -> list[jax.Array]:
            """What comes from the neighbours when each passes its own on."""
            return [
                jax.lax.ppermute(x, MODEL, [(i, (i + way) % n) for i in range(n)])
                for x, way in zip(halves, (1, -1), strict=True)
            ]

        own = jnp.split(x_bTD, 2)
        come = passed(own)
        sums = added(come, 1)
        for steps in range(2, n):
            come = passed(come)
            sums = _sum(added(come, steps), passed(sums))
        return jnp.concatenate(_sum(added(own, 0), passed(sums)))

    specs = jax.tree_util.tree_map_with_path(_spec, state)
    return jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(specs, shard, P(), P(None, None, MODEL)),
        out_specs=shard,
        check_vma=False,
    )(state, x_BTD, arrays, before)


def _sum(xs: list[jax.Array], ys: list[jax.Array]) -> list[jax.Array]:
    return [x + y for x, y in zip(xs, ys, strict=True)]


def _names(path: tuple[Any, ...]) -> tuple[str, str]:
    """Of a layer, "" for the branch itself, and its parameter."""
    keys = [str(entry.key) for entry in path if hasattr(entry, "key")]
    return (keys[-2] if len(keys) > 1 else ""), keys[-1]


def _spec(path: tuple[Any, ...], x: jax.Array) -> P:
    """Of a parameter of a branch that is computed in shares."""
    layer, name = _names(path)
    if name == "sinks" or (layer in BY_OUTPUTS and x.ndim == 1):
        return P(MODEL)
    if layer in BY_OUTPUTS:
        return P(None, MODEL)
    return P(MODEL) if layer in BY_INPUTS and x.ndim > 1 else P()


def _bias_once(rank: jax.Array) -> Callable[[tuple[Any, ...], jax.Array], jax.Array]:
    """Leaves what the sum over the axis is to get once, the bias of its sums, to one device."""

    def own(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        layer, name = _names(path)
        return jnp.where(rank == 0, x, 0) if layer in BY_INPUTS and name == "bias" else x

    return own
