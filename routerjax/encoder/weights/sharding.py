"""Sharding: which axis of which parameter the devices of the `model` axis share.

Attention and DeltaNet are split by heads, a feed-forward layer by its inner columns, a mixture by
its experts, the embedding by its vocabulary: what a branch adds is then one sum over the axis.
What cannot be split evenly lies whole on every device.
"""

import math
from typing import Any

from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.models.partition import BY_INPUTS, BY_OUTPUTS
from routerjax.encoder.models.products import CODES, SCALES
from routerjax.runtime.devices import DATA, MODEL

Path = tuple[Any, ...]


def param_specs(
    shapes: dict[Path, tuple[int, ...]], config: EncoderConfig, n_model: int
) -> dict[Path, P]:
    """The PartitionSpec of every parameter.

    Args:
      shapes: {path in the state: shape}; parameters of blocks are stacked along axis 0.
      config: Of the encoder.
      n_model: Devices on the model axis.
    """
    return {path: _spec(path, shape, config, n_model) for path, shape in shapes.items()}


def bytes_per_device(
    shapes: dict[Path, tuple[int, ...]], specs: dict[Path, P], itemsize: int, n_model: int
) -> int:
    """Bytes of the parameters on each device.

    Args:
      shapes: {path: shape}.
      specs: {path: spec}, from `param_specs`.
      itemsize: Bytes of a number, but for float8's codes and scales.
      n_model: Devices on the model axis.
    """
    own = {CODES: 1, SCALES: 4}
    return sum(
        own.get(path[-1], itemsize) * math.prod(shape) // (n_model if MODEL in specs[path] else 1)
        for path, shape in shapes.items()
    )


def legal_splits(config: EncoderConfig, n_devices: int) -> list[str]:
    """What --mesh may be for a model on so many devices, all of them used.

    Only the query heads must divide the model axis; what else does not is kept whole.
    """
    return [
        f"{DATA}:{n_devices // m},{MODEL}:{m}"
        for m in range(1, n_devices + 1)
        if n_devices % m == 0 and config.n_heads % m == 0
    ]


def check_split(config: EncoderConfig, mesh: Mesh, n_devices: int) -> None:
    """Refuses a mesh whose model axis the query heads do not divide.

    Raises:
      ValueError: Lists the splits of n_devices that the model allows.
    """
    m = mesh.shape[MODEL]
    if config.n_heads % m:
        raise ValueError(
            f"--mesh: the {config.n_heads} query heads of this {config.family} model cannot be "
            f"shared by {m} devices on the axis {MODEL!r}; on {n_devices} device(s) it can be "
            f"split as {', '.join(legal_splits(config, n_devices))}"
        )


def _spec(path: Path, shape: tuple[int, ...], config: EncoderConfig, n_model: int) -> P:
    axis = _model_axis(path, shape, config, n_model)
    if n_model == 1 or axis is None or shape[axis] % n_model:
        return P()
    return P(*[MODEL if i == axis else None for i in range(len(shape))])


def _model_axis(
    path: Path, shape: tuple[int, ...], config: EncoderConfig, n_model: int
) -> int | None:
    """The axis that is split if it divides; None for a parameter that lies whole everywhere."""
    names, last = path[:-1], len(shape) - 1
    module = names[-1]
    if names[0] != "blocks":
        return 0 if module == "embed" else None
    if "mamba" in names:
        return None
    if "deltanet" in names:
        return _deltanet_axis(module, shape, config, n_model)
    if "conv" in names:  # By channels, each of which is convolved by itself.
        by_inputs = module == "out"
        return last - by_inputs if path[-1] == "kernel" or not by_inputs else None
    if "experts" in names:
        return 1  # After the stack's axis.
    if "global" in names:
        config = config.global_attention
    if module in ("k", "v", "k_norm") and config.n_kv_heads % n_model:
        return None
    if module in ("q_norm", "k_norm"):
        return last if config.qk_norm == "projection" else None
    of_codes = path[-1] == CODES  # [out, in], where a kernel is [in, out].
    if module in BY_OUTPUTS:
        return last - of_codes  # Outputs: columns of the kernel, entries of the bias.
    if module in BY_INPUTS and path[-1] in ("kernel", CODES):
        return last - (not of_codes)  # Inputs; the sum over the axis gets the bias once.
    return None


def _deltanet_axis(
    module: Any, shape: tuple[int, ...], config: EncoderConfig, n_model: int
) -> int | None:
    """As `_model_axis`; all of a head's parameters lie where its memory does, or nothing is split.

    A_log and dt_bias, one number a head, are parameters of the mixer itself.
    """
    assert config.delta is not None
    if config.delta.n_key_heads % n_model or config.delta.n_value_heads % n_model:
        return None
    if module == "norm":
        return None  # All heads share it.
    last = len(shape) - 1
    return last - 1 if module == "out" else last
