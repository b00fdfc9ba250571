"""Device meshes, the shardings of batches, and dispatches ahead of their results."""

import itertools
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA, MODEL = "data", "model"
Item = TypeVar("Item")


def power_of_two(n: int) -> int:
    """The least power of two that is at least n: padding to it keeps compiled shapes few."""
    return 1 << (n - 1).bit_length()


def make_mesh(spec: str = "auto", devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that batches are split over by `data` and parameters by `model`.

    Args:
      spec: "auto" for all devices of this process on `data`; or "data:N", "model:M" or
        "data:N,model:M" for the first N x M of them, where an axis that is not named is 1.
      devices: To choose from; by default those of this process. Each process of a distributed job
        has a mesh of its own, because it writes row blocks of its own.

    Raises:
      ValueError: The text is none of these, or there are fewer devices.
    """
    devices = jax.local_devices() if devices is None else devices
    sizes = {DATA: len(devices)} if spec == "auto" else _sizes(spec, len(devices))
    shape = sizes.get(DATA, 1), sizes.get(MODEL, 1)
    n = math.prod(shape)
    if not 1 <= n <= len(devices):
        raise ValueError(
            f"--mesh={spec}: this process has {len(devices)} {devices[0].platform} device(s); give "
            f"{DATA}:1 to {DATA}:{len(devices)}, a split such as {DATA}:N,{MODEL}:M of as many at "
            f"most, or auto"
        )
    # Auto: Explicit axes refuse the gather of nnx.Embed and the scatters into row blocks.
    types = (AxisType.Auto,) * 2
    try:
        mesh = jax.make_mesh(shape, (DATA, MODEL), axis_types=types, devices=devices[:n])
    except (AssertionError, NotImplementedError):
        # JAX lays out chips that fill a box of their grid, in shapes that its sides allow.
        mesh = Mesh(np.array(devices[:n]).reshape(shape), (DATA, MODEL), axis_types=types)
    rows = [_as_ring(row) for row in mesh.devices.tolist()]
    return mesh if rows == mesh.devices.tolist() else Mesh(np.array(rows), mesh.axis_names, types)


def _as_ring(devices: list[jax.Device]) -> list[jax.Device]:
    """Devices in the order in which each is nearest to the next, and the last to the first.

    What goes round the model axis then takes one link of a TPU's grid at a time. Elsewhere, and
    where it is as good, the order stays as it is.
    """
    if not 4 <= len(devices) <= 8 or not hasattr(devices[0], "coords"):
        return devices

    def links(order: Any) -> int:
        pairs = zip(order, (*order[1:], order[0]), strict=True)
        return sum(abs(x - y) for a, b in pairs for x, y in zip(a.coords, b.coords, strict=True))

    first, *others = devices
    return list(min(((first, *order) for order in itertools.permutations(others)), key=links))


def _sizes(spec: str, most: int) -> dict[str, int]:
    parts = [re.fullmatch(rf"({DATA}|{MODEL}):(\d+)", part) for part in spec.split(",")]
    sizes = {part[1]: int(part[2]) for part in parts if part}
    if len(sizes) < len(parts):
        raise ValueError(
            f"--mesh: expected 'auto', '{DATA}:N' with N from 1 to {most}, or '{DATA}:N,{MODEL}:M' "
            f"with N x M up to {most}, got {spec!r}"
        )
    return sizes


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The leading axis, a multiple of the devices on `data`, split over them."""
    return NamedSharding(mesh, P(DATA))


def over_all(mesh: Mesh) -> NamedSharding:
    """The leading axis, a multiple of the number of devices, split over all of them."""
    return NamedSharding(mesh, P(mesh.axis_names))


def in_flight(dispatched: Iterable[Item], n: int = 1) -> Iterator[Item]:
    """The items in their order, each once n more are dispatched: no device waits for the host.

    Args:
      dispatched: Dispatches as it is iterated over.
      n: Results that lie on the devices while one is fetched.
    """
    pending: deque[Item] = deque()
    for item in dispatched:
        pending.append(item)
        if len(pending) > n:
            yield pending.popleft()
    yield from pending
