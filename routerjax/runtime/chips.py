"""Chips: the TPUs whose programs can be compiled here, without one at hand."""

import dataclasses
import fnmatch
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Sequence

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of TPU.

    Attributes:
      name: As its maker calls it.
      hbm_bytes: Memory of one chip.
      hertz: Of its clock.
      ring_bytes_per_second: What it sends and receives together along one axis of the interconnect.
    """

    name: str
    hbm_bytes: int
    hertz: float
    ring_bytes_per_second: float


# By the part of a topology's name before the colon. The clock is the published peak over the
# operations of a cycle: 197e12 / 2^17, 459e12 / 2^18, 918e12 / 2^19.
CHIPS = {
    "v5e": Chip("TPU v5e", 16 * 2**30, 1.5e9, 9e10),
    "v5p": Chip("TPU v5p", 95 * 2**30, 1.75e9, 1.8e11),
    "v6e": Chip("TPU v6e", 32 * 2**30, 1.75e9, 1.8e11),
}


def chip_of(topology: str) -> Chip:
    """The kind of the chips of a topology.

    Args:
      topology: Kind and extent, such as "v5e:2x4" or "v5p:2x2x1".

    Raises:
      ValueError: No such kind, or no extent.
    """
    kind, _, extent = topology.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+)+", extent):
        raise ValueError(
            f"--topology: expected a kind of chip ({', '.join(CHIPS)}) and how many in each "
            f"direction, such as v5e:2x2 or v5p:2x2x1, got {topology!r}"
        )
    return CHIPS[kind]


def topology_devices(topology: str) -> Sequence[jax.Device]:
    """The devices of a topology, for which programs compile and on which none can run.

    Args:
      topology: As in `chip_of`.

    Raises:
      ValueError: As `chip_of`, or libtpu knows no such topology.
      ModuleNotFoundError: libtpu, which is the compiler, is not importable, or its version is not
        the one that the installed jax asks for.
    """
    chip_of(topology)
    _require_libtpu()
    # libtpu would ask a server that only a TPU's host has, and let no second process load it.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        raise ValueError(f"--topology={topology}: libtpu has no such topology: {error}") from error
    return described.devices


def _require_libtpu() -> None:
    wanted = [
        requirement.partition(";")[0].strip()
        for requirement in importlib.metadata.requires("jax") or []
        if re.match(r"libtpu\b", requirement)
    ]
    requirement = wanted[0] if wanted else "libtpu"
    if importlib.util.find_spec("libtpu") is None:
        state = "is not installed"
    else:
        version = importlib.metadata.version("libtpu")
        if fnmatch.fnmatch(version, requirement.partition("==")[2] or "*"):
            return
        state = f"has version {version}"
    raise ModuleNotFoundError(
        f"libtpu, the TPU's compiler, {state}; jax {jax.__version__} asks for {requirement}: make "
        f"bench-tpu installs it into a folder of its own, or pip install --no-deps --target=FOLDER "
        f"'{requirement}' and put FOLDER on PYTHONPATH"
    )
