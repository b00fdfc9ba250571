"""The processes of a cluster job: joining it, and knowing which of them have ended.

The processes share no device work. What they know of each other goes through the coordination
service of `jax.distributed`, which also ends all of them when one dies without saying so.
"""

import atexit
from typing import Any

import jax

# An ending process waits this long for the others, which finish their current row block first.
_SHUTDOWN_SECONDS = 3600
_ENDED = "routerjax/ended/"
_MADE = "routerjax/made/"


def start_distributed(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a cluster job; call it before anything else uses a device.

    Where JAX recognises the cluster (Slurm, Open MPI, TPU pods, GKE) it finds what is not given.

    Args:
      coordinator: "host:port" of process 0.
      num_processes: Of the job.
      process_id: Of this process, from 0.

    Raises:
      RuntimeError: There is no cluster to be found, or it cannot be joined.
    """
    by_hand = None not in (coordinator, num_processes, process_id)
    # Its handler of SIGTERM would replace ours, which ends a job after the current row block.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # What is given by hand is all that counts, inside an allocation of Slurm too.
            cluster_detection_method="deactivate" if by_hand else None,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise RuntimeError(
            f"--distributed found no cluster ({error}). Start the job with Slurm, Open MPI, on GKE "
            f"or a TPU pod; or give --coordinator=HOST:PORT of process 0, --num_processes and "
            f"--process_id to each process; on one machine leave the flag out"
        ) from error
    # Before JAX's own, which waits for the others.
    atexit.register(_tell_ended)


def joined() -> bool:
    """Whether this is a process of a cluster job."""
    return _client() is not None


def ended_elsewhere() -> list[int]:
    """The processes of this job that have finished, stopped or failed before this one."""
    client = _client()
    told = client.key_value_dir_get(_ENDED) if client else []
    ended = {int(key.rpartition("/")[2]) for key, _ in told}
    return sorted(ended - {jax.process_index()})


def tell_made(path: str) -> None:
    """Tells the other processes of this job that something is there; for `made_elsewhere`."""
    client = _client()
    if client:
        client.key_value_set(f"{_MADE}{_key(path)}", "", allow_overwrite=True)


def made_elsewhere(*paths: str) -> bool:
    """Whether processes of this job have told that they made all of these."""
    client = _client()
    told = client.key_value_dir_get(_MADE) if client else []
    return {_key(path) for path in paths} <= {key.rpartition("/")[2] for key, _ in told}


def _key(path: str) -> str:
    """A path without its slashes, which mean folders to the coordination service too."""
    return path.encode().hex()


def _tell_ended() -> None:
    _client().key_value_set(f"{_ENDED}{jax.process_index()}", "", allow_overwrite=True)


def _client() -> Any:
    """The coordination service, None outside of a cluster job. It has no public name yet."""
    from jax._src import distributed

    return distributed.global_state.client
