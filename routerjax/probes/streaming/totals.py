"""Sums over row blocks that lie by sites on several devices, each device summing its own sites.

A site is one (layer, pooling). A slot is one site of every device. Slots are taken one after
another, each in a call of its own that changes its sums in place: beside the sums, kept in
double-float (8 bytes a number), there is one site's block product on each device. In one loop over
all sites XLA copies all sums at every turn.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from routerjax.probes.streaming.captured import Captured
from routerjax.runtime.devices import over_all, replicated
from routerjax.stats.numerics import add_compensated

# sums = one(x_RD, fixed, weight_R, y_RM, shared): those of one block of one site, in any tree.
# `fixed` is what belongs to the site, `shared` what is the same for all.
OneSite = Callable[[jax.Array, Any, jax.Array, jax.Array, Any], Any]


class Slot(NamedTuple):
    """Sums of one site of every device; leaves [n_devices, ...], split over the devices.

    Attributes:
      fixed: What belongs to each site.
      high: The sums.
      low: What rounding took from them.
    """

    fixed: Any
    high: Any
    low: Any


def total(
    captured: Captured,
    what: str,
    one: OneSite,
    fixed: list[Any] | Callable[[jax.Array, jax.Array], Any],
    shared: Any = None,
) -> list[Slot]:
    """Sums over all rows, in one pass.

    Args:
      captured: The rows.
      what: What the pass is for, beside the progress bar.
      one: The sums of one block of one site. Compiled once for each function object, so not a
        lambda.
      fixed: What belongs to the sites, slot by slot; or a function of one site's x_RD and weight_R
        in the first block that makes it.
      shared: Arrays that `one` takes, the same for all sites.

    Returns:
      The slots.

    Raises:
      FloatingPointError, resume.Stopped: As `Captured.blocks`.
    """
    mesh = captured.encoder.mesh
    slots: list[Slot] = []
    for x_SRD, weight_R, y_RM in captured.blocks(what):
        block = (x_SRD, weight_R, y_RM, shared)
        for j in range(captured.sites_per_device):
            if len(slots) == j:
                own = fixed[j] if isinstance(fixed, list) else _make(fixed, mesh, j, *block[:2])
                slots.append(Slot(own, *_zeros(one, mesh, j, own, *block)))
            slot = slots[j]
            slots[j] = Slot(slot.fixed, *_add(one, mesh, slot[1:], j, slot.fixed, *block))
    return slots


def map_slots(
    function: Callable[..., Any], mesh: Mesh, slots: list[Any], *shared: Any
) -> list[Any]:
    """`function(site, *shared)` of each site on the device that holds it, slot by slot.

    Args:
      function: A function of one site; compiled once for each function object.
      mesh: Over which sites are split.
      slots: Trees, leaves [n_devices, ...].
      *shared: Arrays that are the same for all sites.

    Returns:
      What the function returns, slot by slot, leaves [n_devices, ...].
    """
    # Waiting keeps what an eigendecomposition takes to that of one site.
    return [jax.block_until_ready(_map(function, mesh, slot, shared)) for slot in slots]


def by_site(slots: list[jax.Array]) -> np.ndarray:
    """[S, ...] on the host, in the order of `Captured`, from [n_devices, ...] of each slot."""
    value_DJ = np.stack([np.asarray(slot) for slot in slots], axis=1)
    return value_DJ.reshape(-1, *value_DJ.shape[2:])


def bytes_of(sums: Any) -> int:
    """Bytes of one site's sums in double-float.

    Args:
      sums: Of one site, as `jax.eval_shape` gives them.
    """
    return sum(8 * leaf.size for leaf in jax.tree.leaves(sums))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _add(one, mesh, sums, j, fixed, x_SRD, weight_R, y_RM, shared):
    def local(sums, fixed, x_RD, rest):
        high, low = sums
        return add_compensated(high, low, one(x_RD, fixed, *rest))

    return _on_slot(local, mesh, j, (sums, fixed), x_SRD, (weight_R, y_RM, shared))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _zeros(one, mesh, j, fixed, x_SRD, weight_R, y_RM, shared):
    def local(fixed, x_RD, rest):
        shapes = jax.eval_shape(one, x_RD, fixed, *rest)
        high = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return high, jax.tree.map(jnp.zeros_like, high)

    return _on_slot(local, mesh, j, (fixed,), x_SRD, (weight_R, y_RM, shared))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _make(function, mesh, j, x_SRD, weight_R):
    return _on_slot(lambda x_RD, rest: function(x_RD, *rest), mesh, j, (), x_SRD, (weight_R,))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _map(function, mesh, slot, shared):
    def local(slot, shared):
        return _restack(function(jax.tree.map(lambda leaf: leaf[0], slot), *shared))

    return _sharded(local, mesh, (True, False))(slot, shared)


def _on_slot(
    local: Callable[..., Any], mesh: Mesh, j: Any, slots: tuple[Any, ...], x_SRD: Any, rest: Any
) -> Any:
    """`local(*slots, x_RD, rest)` on each device, of its site in slot j."""

    def of_device(slots: Any, x_JRD: jax.Array, whole: Any) -> Any:
        j, rest = whole
        x_RD = jax.lax.dynamic_index_in_dim(x_JRD, j, keepdims=False)
        return _restack(local(*jax.tree.map(lambda leaf: leaf[0], slots), x_RD, rest))

    return _sharded(of_device, mesh, (True, True, False))(slots, x_SRD, (j, rest))


def _restack(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[None], tree)


def _sharded(local: Callable[..., Any], mesh: Mesh, split: tuple[bool, ...]) -> Callable[..., Any]:
    """`local` on each device; arguments and results are split over them, or whole on each."""
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=tuple((over_all if s else replicated)(mesh).spec for s in split),
        out_specs=over_all(mesh).spec,
        # Zeros and loop counters count as the same on all devices, and would be refused.
        check_vma=False,
    )
