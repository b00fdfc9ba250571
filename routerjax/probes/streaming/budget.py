"""Whether the totals of a probe without a store fit on the devices, and what would where not."""

import logging
from collections.abc import Callable

from routerjax.encoder.encoder import Encoder
from routerjax.probes.streaming.captured import Captured
from routerjax.probes.streaming.sketched import standard_error

logger = logging.getLogger(__name__)

# For the totals on each device that does not tell its memory, as CPUs do not.
DEFAULT_BUDGET_BYTES = 4 * 2**30
# Of the memory free once the weights are loaded; the rest is the prefill's.
_SHARE_OF_FREE = 0.5
# Sketches to offer, the most exact first.
_SKETCHES = (1024, 512, 256, 128, 64, 32)


def check_budget(
    captured: Captured,
    bytes_of: Callable[[int | None, int], tuple[int, int]],
    sketch: int | None,
    width: int,
    budget_bytes: int | None,
) -> None:
    """Refuses totals that do not fit on each device.

    Args:
      captured: What is to be probed.
      bytes_of: (sketch, width) to the bytes of one site's totals, and of what one site at a time
        takes beside all of them.
      sketch: K, or None for exact totals.
      width: C, components of the PCA, or 0.
      budget_bytes: What they may take on each device; None for what suits the device.

    Raises:
      ValueError: They take more; says how much, and how many hidden states, how many devices or
        which sketch would fit.
    """
    told = "as given"
    if budget_bytes is None:
        budget_bytes, told = _suitable(captured.encoder)
    site, beside = bytes_of(sketch, width)
    n_devices = captured.encoder.mesh.devices.size
    needed = captured.sites_per_device * site + beside
    logger.info(
        "probe: totals of %s on each of %d device(s); the budget is %s (%s)",
        _readable(needed), n_devices, _readable(budget_bytes), told,
    )  # fmt: skip
    if needed <= budget_bytes:
        return

    n_layers, n_poolings = captured.selection.shape
    fitting_sites = max(0, budget_bytes - beside) // site
    ways = []
    if fitting := min(n_layers - 1, fitting_sites * n_devices // n_poolings):
        ways.append(f"{fitting} hidden states instead of {n_layers} (layers, --layers)")
    if fitting_sites:
        ways.append(f"{-(-captured.selection.n_sites // fitting_sites)} devices (mesh, --mesh)")
    for k in _SKETCHES:
        smaller, beside_it = bytes_of(k, 0)
        total = captured.sites_per_device * smaller + beside_it
        if k < (sketch or captured.encoder.width / 2) and total <= budget_bytes:
            ways.append(
                f"a sketch of {k} projections, {_readable(total)} (sketch, --sketch={k}), which "
                f"leaves J exact and knows d_eff to a relative standard error of about "
                f"{standard_error(k):.0%}"
            )
            break
    raise ValueError(
        f"the totals of {n_layers} hidden states x {n_poolings} poolings, "
        f"{captured.encoder.width} wide, take {needed:,} bytes ({_readable(needed)}) on each of "
        f"{n_devices} device(s), and the budget (budget_bytes, --budget_gib) is "
        f"{_readable(budget_bytes)}, {told}. What fits: "
        f"{'; '.join(ways) or 'nothing; raise the budget'}"
    )


def _suitable(encoder: Encoder) -> tuple[int, str]:
    """A budget for each device, and where it is from."""
    free = []
    for device in encoder.mesh.devices.flat:
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            free.append(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    if free:
        return int(_SHARE_OF_FREE * min(free)), "half of what is free there"
    return DEFAULT_BUDGET_BYTES, "the default where a device does not tell its memory"


def _readable(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"
