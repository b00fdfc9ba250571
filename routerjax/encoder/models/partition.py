"""What each device does with its own share, where the compiler must not choose the layout.

A capture on several devices is compiled inside `jax.set_mesh`. The functions here find that mesh by
themselves, and without one do nothing but call what they wrap.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from routerjax.encoder.models import attention
from routerjax.runtime.devices import DATA, MODEL
from routerjax.runtime.tuning import Tuning

# Linear layers of which each device of the model axis has some outputs, or some inputs.
BY_OUTPUTS = {"q", "q_up", "position_k", "position_q", "k", "v", "gate", "up"}
BY_INPUTS = {"o", "down"}


def attend(
    q_BTHE: jax.Array,
    k_BSGE: jax.Array,
    v_BSGE: jax.Array,
    lengths_B: jax.Array,
    *,
    precision: jax.lax.Precision,
    tuning: Tuning,
    window: jax.Array | int | None = None,
    sinks_H: jax.Array | None = None,
    bias_HR: jax.Array | None = None,
    factor_BTH: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """`attention.attend`, each device with its own rows and its own query heads.

    Args and returns: As in `attention.attend`.
    """

    def local(q, k, v, lengths_B, window, of_heads, factor=None):
        return attention.attend(
            q, k, v, lengths_B, precision, tuning, window=window, factor_BTH=factor, **of_heads,
            **options,
        )  # fmt: skip

    of_heads = {"sinks_H": sinks_H, "bias_HR": bias_HR}
    more = () if factor_BTH is None else (factor_BTH,)
    return by_heads(local, q_BTHE, k_BSGE, v_BSGE, lengths_B, window, of_heads, *more)


def attend_cudnn(
    q_BTHE: jax.Array,
    k_BSGE: jax.Array,
    v_BSGE: jax.Array,
    lengths_B: jax.Array,
    scale: float | None = None,
) -> jax.Array:
    """`attention.attend_cudnn`, split alike."""

    def local(q, k, v, lengths_B, *nothing):
        del nothing
        return attention.attend_cudnn(q, k, v, lengths_B, scale)

    return by_heads(local, q_BTHE, k_BSGE, v_BSGE, lengths_B, None, {})


def by_memory(
    local: Callable[..., tuple[jax.Array, jax.Array]],
    tokens: tuple[jax.Array, ...],
    memory_BHEE: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`local(*tokens, memory_BHEE)` with each device's own rows and the memories of its own heads.

    Args:
      local: Returns [B, T, H, ...] and the memory [B, H, E, E'] after the last token.
      tokens: Arrays [B, T, heads, ...]; split where each one's heads divide the model axis, else
        each device of it has them all.
      memory_BHEE: [B, H, E, E'] before the first token.
    """
    mesh = mesh_here()
    if mesh is None:
        return local(*tokens, memory_BHEE)
    rows = rows_axis(tokens[0], mesh)
    divide = all(x.shape[2] % mesh.shape[MODEL] == 0 for x in tokens)
    heads = MODEL if divide else None
    of_tokens, of_memory = P(rows, None, heads), P(rows, heads)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(of_tokens,) * len(tokens) + (of_memory,),
        out_specs=(of_tokens, of_memory),
        check_vma=False,
    )(*tokens, memory_BHEE)


def by_experts(
    local: Callable[..., jax.Array],
    x_ND: jax.Array,
    experts_NK: jax.Array,
    weights_NK: jax.Array,
    experts: Any,
) -> jax.Array:
    """`local(x_ND, experts_NK, weights_NK, experts)` with each device's own tokens and experts.

    Args:
      local: Returns [N, D]; its experts are numbered from 0, and their number stands for one that
        is on another device and adds nothing.
      x_ND: [N, D] tokens.
      experts_NK: [N, K] int32 the experts of each.
      weights_NK: [N, K] float32.
      experts: Arrays [X, ...] of parameters; split where X divides the model axis.

    Returns:
      [N, D], the sum over all devices of the model axis.
    """
    mesh = mesh_here()
    if mesh is None:
        return local(x_ND, experts_NK, weights_NK, experts)
    rows = P(rows_axis(x_ND, mesh))
    n_experts = len(jax.tree.leaves(experts)[0])
    split = n_experts % mesh.shape[MODEL] == 0

    def of_device(x_ND, experts_NK, weights_NK, experts):
        if not split:
            return local(x_ND, experts_NK, weights_NK, experts)
        n_own = len(jax.tree.leaves(experts)[0])
        own_NK = experts_NK - jax.lax.axis_index(MODEL) * n_own
        own_NK = jnp.where((own_NK >= 0) & (own_NK < n_own), own_NK, n_own)
        return jax.lax.psum(local(x_ND, own_NK, weights_NK, experts), MODEL)

    return jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(rows, rows, rows, P(MODEL) if split else P()),
        out_specs=rows,
        check_vma=False,
    )(x_ND, experts_NK, weights_NK, experts)


def by_heads(
    local: Callable[..., jax.Array],
    q_BTHE: jax.Array,
    k_BSGE: jax.Array,
    v_BSGE: jax.Array,
    lengths_B: jax.Array,
    window: jax.Array | int | None,
    of_heads: dict[str, jax.Array | None],
    *more_BTH: jax.Array,
) -> jax.Array:
    """`local` of each device's rows and query heads, and of the key/value heads that these read.

    Key/value heads are split too where they divide the model axis; elsewhere each device has all of
    them and takes its own. Arrays of `of_heads` are split by query heads, further ones by rows and
    query heads.
    """
    mesh = mesh_here()
    if mesh is None:
        return local(q_BTHE, k_BSGE, v_BSGE, lengths_B, window, of_heads, *more_BTH)
    per_key = q_BTHE.shape[2] // k_BSGE.shape[2]
    split_keys = k_BSGE.shape[2] % mesh.shape[MODEL] == 0
    rows = rows_axis(q_BTHE, mesh)

    def of_device(q_BTHE, k_BSGE, v_BSGE, *rest):
        if not split_keys:
            n_own = q_BTHE.shape[2]
            first = jax.lax.axis_index(MODEL) * n_own
            k_BSGE, v_BSGE = (_own_heads(x, first, n_own, per_key) for x in (k_BSGE, v_BSGE))
        return local(q_BTHE, k_BSGE, v_BSGE, *rest)

    heads = P(rows, None, MODEL)
    keys = heads if split_keys else P(rows)
    return jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(heads, keys, keys, P(rows), P(), P(MODEL), *(heads for _ in more_BTH)),
        out_specs=heads,
        # Loop counters and sums that start at 0 count as the same on all devices.
        check_vma=False,
    )(q_BTHE, k_BSGE, v_BSGE, lengths_B, window, of_heads, *more_BTH)


def _own_heads(x_BSGE: jax.Array, first: jax.Array, n_own: int, per_key: int) -> jax.Array:
    """The key/value heads that the query heads `first` to `first + n_own - 1` read."""
    if per_key % n_own == 0:
        return jax.lax.dynamic_slice_in_dim(x_BSGE, first // per_key, 1, axis=2)
    # Query heads of a device that do not share key heads evenly get one each.
    return jnp.take(x_BSGE, (first + jnp.arange(n_own)) // per_key, axis=2)


def mesh_here() -> Any:
    """The mesh that is being compiled for, None for a single device or inside of its program."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 or mesh.are_all_axes_manual else mesh


def rows_axis(x: jax.Array, mesh: Any) -> str | None:
    """The axis that rows are split over; a prompt's prefix is one row, which every device has."""
    return DATA if x.shape[0] % mesh.shape[DATA] == 0 else None
