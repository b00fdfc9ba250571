"""Device meshes and shardings, made in this one file; `jax.distributed` start-up."""

import os
import re
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA = "data"


def make_mesh(spec: str = "auto", devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that batches are split over; parameters lie whole on every device of it.

    Args:
      spec: "auto" for all devices of this process, or "data:N" for the first N of them.
      devices: To choose from; by default those of this process. Each process of a distributed job
        has a mesh of its own, because its blocks of the store are its own too.

    Returns:
      A mesh with the one axis "data".

    Raises:
      ValueError: The text is neither, or there are fewer devices.
    """
    devices = jax.local_devices() if devices is None else devices
    match = re.fullmatch(rf"{DATA}:(\d+)", spec)
    if spec != "auto" and not match:
        raise ValueError(
            f"--mesh: expected 'auto' or 'data:N' with N from 1 to {len(devices)}, got {spec!r}"
        )
    n = int(match[1]) if match else len(devices)
    if not 1 <= n <= len(devices):
        raise ValueError(
            f"--mesh={spec}: this process has {len(devices)} {devices[0].platform} device(s); give "
            f"data:1 to data:{len(devices)}, or auto"
        )
    # Auto: nnx.Embed's gather and the blocks' scatters are refused on Explicit axes.
    return jax.make_mesh((n,), (DATA,), axis_types=(AxisType.Auto,), devices=devices[:n])


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The leading axis, which is a multiple of the number of devices, split over them."""
    return NamedSharding(mesh, P(DATA))


def start_distributed() -> None:
    """Joins the processes of a cluster job; call it before anything else uses a device.

    Where JAX recognises the cluster (Slurm, TPU pods, Open MPI, Kubernetes) it finds the others by
    itself; elsewhere set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
      RuntimeError: There is no cluster to be found.
    """
    numbers = [os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID")]
    try:
        # JAX reads the coordinator's address from the environment, but not these two.
        count, index = (None if number is None else int(number) for number in numbers)
        jax.distributed.initialize(num_processes=count, process_id=index)
    except (ValueError, RuntimeError) as error:
        raise RuntimeError(
            f"--distributed found no cluster ({error}). Start the job with Slurm, Open MPI or on a "
            f"TPU pod, or set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and "
            f"JAX_PROCESS_ID; on one machine leave the flag out"
        ) from error
