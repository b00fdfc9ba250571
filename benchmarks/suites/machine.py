"""What this machine can do and what a process has used: measured rates, peaks of memory, names."""

import os
import pathlib
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.encoder.models import products
from routerjax.runtime.tuning import Tuning

_STATUS = pathlib.Path("/proc/self/status")
# On an accelerator one product takes a millisecond: as many keep its clocks as work does.
_TIMES = 50
_RESET_PEAK = pathlib.Path("/proc/self/clear_refs")


def on_cpu() -> bool:
    """Whether JAX's default device is the host itself."""
    return jax.default_backend() == "cpu"


def matrix_rate(dtype: str) -> Callable[[], float]:
    """A probe of the matrix-product rate, of products as the encoder's linear layers.

    Args:
      dtype: "float32", "bfloat16", "float16" or "float8".

    Returns:
      A function that runs large products on the first device and returns FLOP/s.
    """
    n, times = (2048, 1) if on_cpu() else (8192, _TIMES)
    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else jax.lax.Precision.DEFAULT
    a = jnp.asarray(np.random.default_rng(0).normal(size=(n, n)), jnp.float32)
    if dtype == "float8":
        tuning = Tuning.of(jax.devices())
        a = products.quantised(a)[0]
        square = jax.jit(lambda a: products.float8_product(a, a, tuning))
    else:
        a = a.astype(dtype)
        square = jax.jit(lambda a: products.matmul(a, a, precision))
    square(a).block_until_ready()

    def probe() -> float:
        return 2 * n**3 / _seconds_each(square, a, times)

    return probe


def bandwidth() -> Callable[[], float]:
    """A probe of the memory's bandwidth: reads and writes one array far larger than any cache.

    Returns:
      A function that returns bytes/s, both directions counted.
    """
    n, times = (2**25, 1) if on_cpu() else (2**28, _TIMES)
    a = jnp.ones(n, jnp.float32)
    increment = jax.jit(lambda a: a + 1)
    increment(a).block_until_ready()

    def probe() -> float:
        return 2 * a.nbytes / _seconds_each(increment, a, times)

    return probe


def _seconds_each(function: Callable[[jax.Array], jax.Array], a: jax.Array, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        last = function(a)  # One stream: when it is there, all are; the others' memory is free.
    last.block_until_ready()
    return (time.perf_counter() - start) / times


def reset_host_peak() -> int | None:
    """Forgets the peak of this process's resident memory.

    Returns:
      Bytes resident now; None where the system does not tell (no Linux).
    """
    try:
        _RESET_PEAK.write_text("5")
    except OSError:
        return None
    return _status_bytes("VmRSS")


def host_peak() -> int | None:
    """Peak bytes resident since `reset_host_peak`, or since the start; None without Linux."""
    return _status_bytes("VmHWM")


def device_peak() -> int | None:
    """Peak bytes of JAX on the first device since the start; None where it is the host."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")


def describe() -> dict[str, Any]:
    """The hardware, as far as the system names it."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "devices": [f"{len(jax.devices())} x {jax.devices()[0].device_kind}"],
        "system": f"{platform.system()} {platform.machine()}",
    }


def _status_bytes(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    result = [line for line in lines if line.startswith(f"{field}:")]
    return int(result[0].split()[1]) * 1024 if result else None


def _cpu_name() -> str:
    path = pathlib.Path("/proc/cpuinfo")  # Only Linux has one, and not on every processor a name.
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
