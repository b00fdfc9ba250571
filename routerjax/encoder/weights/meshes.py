"""choose_mesh: the mesh that an encoder's parameters fit on."""

import math
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.weights.sharding import Path, bytes_per_device, check_split, param_specs
from routerjax.runtime.devices import DATA, MODEL, make_mesh

# Of a device's memory; the rest is for activations and compiled programs.
PARAMETERS_SHARE = 0.8


def choose_mesh(
    spec: str,
    config: EncoderConfig,
    shapes_of: Callable[[], dict[Path, tuple[int, ...]]],
    itemsize: int,
    described: tuple[Sequence[jax.Device], int] | None = None,
) -> Mesh:
    """The mesh of a --mesh flag for one model; "auto" splits the model where it must.

    "auto" puts all devices of this process on `data` if each can hold the parameters, else as few
    on `model` as can hold them together. Devices that do not tell their memory (CPUs) can hold
    anything.

    Args:
      spec: As in `make_mesh`.
      config: Of the encoder.
      shapes_of: Gives {path: shape} of its parameters; asked where devices tell their memory.
      itemsize: As in `bytes_per_device`.
      described: Devices that are not here, and the memory of each; None for those of this process.

    Raises:
      ValueError: The text is no mesh, the model cannot be split so, or its parameters do not fit;
        with the arithmetic.
    """
    devices, memory = described or (jax.local_devices(), _memory(jax.local_devices()))
    mesh = make_mesh(spec, devices)
    check_split(config, mesh, len(devices))
    if memory is None:
        return mesh
    shapes = shapes_of()

    def held(n_model: int) -> int:
        specs = param_specs(shapes, config, n_model)
        return bytes_per_device(shapes, specs, itemsize, n_model)

    if spec == "auto":
        able = [m for m in range(1, len(devices) + 1)
                if len(devices) % m == 0 and config.n_heads % m == 0]  # fmt: skip
        for m in able:
            if held(m) <= PARAMETERS_SHARE * memory:
                return make_mesh(f"{DATA}:{len(devices) // m},{MODEL}:{m}", devices)
        n_model, share = able[-1], PARAMETERS_SHARE
    else:
        n_model, share = mesh.shape[MODEL], 1.0
        if held(n_model) <= memory:
            return mesh
    each = held(1) / sum(map(math.prod, shapes.values()))
    raise ValueError(
        f"--mesh={spec}: the parameters of this {config.family} model take {_gb(held(1))} "
        f"({each:.2g} bytes each); with {MODEL}:{n_model} each device would hold "
        f"{_gb(held(n_model))}, and of its {_gb(memory)} of memory {share:.0%} may be parameters. "
        f"A model has to fit the {len(devices)} device(s) of one process, because --distributed "
        f"deals out queries and not the model: take larger or more devices a process, a smaller "
        f"encoder or, from float32, --compute_dtype=bfloat16"
    )


def _memory(devices: list[jax.Device]) -> int | None:
    """Bytes of the smallest device, or None where one does not tell."""
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in devices]
    return min(limits) or None


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f} GB"
