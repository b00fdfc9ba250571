"""job_cost: hours, bytes and dollars of an extraction on machines that are not at hand."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.encoder.hub import read_config
from routerjax.encoder.selection import ALL, Selection
from routerjax.store.shards import row_bytes, rows_per_block


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a kind of chip and its host were measured to do.

    Attributes:
      flops_per_second: Of large matrix products on one chip; 0 where it differs from machine to
        machine.
      share: Of it that a prefill reaches, padding counted as work.
      bytes_per_second: Of states that the host of a chip fetches, digests and writes; infinite
        where that was not measured, or where the host itself computes.
      queries_per_second: That one process tokenises before the first batch.
      known_from: Where these numbers come from.
    """

    flops_per_second: float
    share: float
    bytes_per_second: float
    queries_per_second: float
    known_from: str


# docs/performance.md says how they were measured. A TPU's flops are those that its compiler
# schedules for a product of 8192 x 8192 x 8192, its share that of Qwen3-0.6B at 128 tokens.
RATES = {
    "cpu": Rates(0.0, 0.84, np.inf, 7.3e3, "measured on two cores"),
    "h200": Rates(7.78e14, 0.58, 6.06e8, 2e4, "measured on one H200 and 16 cores"),
    "v5e": Rates(1.726e14, 0.77, np.inf, 2e4, "the TPU compiler's estimate, not a run"),
    "v6e": Rates(6.46e14, 0.55, np.inf, 2e4, "the TPU compiler's estimate, not a run"),
}


def job_cost(
    encoder: Any,
    chip: str,
    n_queries: int,
    tokens: float,
    *,
    chips: int = 1,
    processes: int = 1,
    layers: str | Sequence[int] = ALL,
    poolings: Sequence[str] = ("last", "mean"),
    store_dtype: str = "float16",
    padding: float = 0.08,
    flops_per_second: float | None = None,
    price: float | None = None,
) -> dict[str, Any]:
    """Estimates an extraction from measured rates alone; reads no weights and no queries.

    Seconds are those before the first batch, in which the processes tokenise all queries, plus the
    longer of two times that overlap: computing, and writing the states. Loading weights and
    compiling (up to 18 s on an H200) are not in it.

    Args:
      encoder: A folder with config.json.
      chip: Out of RATES.
      n_queries: Queries of the job.
      tokens: Mean tokens of a prompt.
      chips: Chips of the job, each with a host's share of its own.
      processes: Of the job, each of which tokenises its part of the queries on a host of its own.
      layers: As in `extract`.
      poolings: As in `extract`.
      store_dtype: As in `extract`.
      padding: Share of the computed tokens that are padding. Jobs of thousands of queries have 0.07
        to 0.12, a few dozen 0.2 to 0.5.
      flops_per_second: Of matrix products on one chip as measured (`experiments.benchmark`), in
        place of the table's.
      price: USD an hour of one chip.

    Returns:
      JSON values: `flops` (padding not counted), `bytes`, `plan_seconds`, `device_seconds`,
      `host_seconds`, `binds` ("plan", "device" or "host", the longest), `hours`, `chip_hours`,
      `dollars` (None without a price) and `known_from`.

    Raises:
      ValueError: An argument out of its range, an unknown chip, or one whose rate has to be given.
    """
    if chip not in RATES:
        raise ValueError(f"chip: expected one of {', '.join(RATES)}, got {chip!r}")
    rates = RATES[chip]
    rate = rates.flops_per_second if flops_per_second is None else flops_per_second
    if not rate > 0:
        raise ValueError(
            f"flops_per_second: give what matrix products reach on this {chip} "
            f"(experiments.benchmark measures it: 2e11 on two cores), got {flops_per_second!r}"
        )
    at_least_one = {
        "n_queries": n_queries,
        "tokens": tokens,
        "chips": chips,
        "processes": processes,
    }
    for name, value in at_least_one.items():
        if not value >= 1:
            raise ValueError(f"{name}: expected at least 1, got {value!r}")
    if not 0 <= padding < 1:
        raise ValueError(f"padding: expected a share below 1, got {padding!r}")
    config = read_config(pathlib.Path(encoder))
    selection = Selection.of(layers, poolings, config.n_states)
    whole = max(1, round(tokens))
    flops = n_queries * tokens / whole * config.flops(whole, selection.layers[-1])
    shape = (*selection.shape, config.width)
    block_rows = rows_per_block(*shape, store_dtype)
    n_blocks = -(-n_queries // block_rows)
    n_bytes = n_blocks * block_rows * row_bytes(*shape, store_dtype)
    seconds = {
        "plan": n_queries / (processes * rates.queries_per_second),
        "device": flops / (1 - padding) / (chips * rate * rates.share),
        "host": n_bytes / (chips * rates.bytes_per_second),
    }
    total = seconds["plan"] + max(seconds["device"], seconds["host"])
    hours = total / 3600
    return {
        "flops": flops,
        "bytes": n_bytes,
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "binds": max(seconds, key=seconds.__getitem__),
        "hours": hours,
        "chip_hours": hours * chips,
        "dollars": None if price is None else hours * chips * price,
        "known_from": rates.known_from,
    }
