"""The harness: contestants run in rounds, and no time is shown before their results agree."""

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.suites import machine


class Disagreement(RuntimeError):
    """Contestants came to different results: their times mean nothing."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What a contestant has to do, whoever does it how.

    Attributes:
      flops: Floating-point operations of the products it cannot do without, padding not counted.
      bytes: That have to be read and written at least once.
      tokens: Real tokens read by an encoder.
      padding: Share of the computed tokens that are padding.
    """

    flops: float = 0.0
    bytes: float = 0.0
    tokens: int = 0
    padding: float | None = None


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to do the work of a suite.

    Attributes:
      name: As shown.
      run: Takes the number of the round and returns the result, when it is there: nothing may
        still be running on a device. Round 0 warms up.
      share: Of the whole work that one round does; its seconds are divided by it.
      compiles: Whether the first run compiles, so that what it takes longer is shown apart.
      work: Of the whole; by default that of the suite.
      in_process: Whether this process does it, so that its memory is that of the contestant.
    """

    name: str
    run: Callable[[int], Any]
    share: float | Callable[[int], float] = 1.0
    compiles: bool = True
    work: Work | None = None
    in_process: bool = True


def in_rounds(
    contestants: Sequence[Contestant],
    rounds: int,
    work: Work | Callable[[], Work],
    agree: Callable[[dict[str, Any]], dict[str, float]],
    dtype: str = "float32",
) -> dict[str, Any]:
    """Runs contestants A B C, A B C ... after a warm-up of each; the first is "ours".

    The machine's matrix-product rate and bandwidth are measured in each round, in between.

    Args:
      contestants: The first one is what the others are compared with.
      rounds: Timed rounds.
      work: Of the suite; a function where it is known only when it has been done.
      agree: Given the results of the last round by name, returns how far they are apart; raises
        `Disagreement` where that is too far.
      dtype: Of the products, for the measured rate.

    Returns:
      JSON values: `rows` (one a contestant), `agreement`, `rates`.
    """
    probes = {"flops": machine.matrix_rate(dtype), "bytes": machine.bandwidth()}
    seconds: dict[str, list[float]] = {c.name: [] for c in contestants}
    first: dict[str, float] = {}
    memory: dict[str, dict[str, int | None]] = {c.name: {} for c in contestants}
    rates: dict[str, list[float]] = {name: [] for name in probes}
    results: dict[str, Any] = {}
    for number in range(rounds + 1):
        for c in contestants:
            results.pop(c.name, None)
            gc.collect()
            before = machine.reset_host_peak()
            device_before = machine.device_peak()
            start = time.perf_counter()
            results[c.name] = c.run(number)
            took = (time.perf_counter() - start) / _share(c, number)
            if number == 0:
                first[c.name] = took * _share(c, number)
            else:
                seconds[c.name].append(took)
            if c.in_process:
                # What compiling takes of the host is not its; the device's peak stays from then on.
                _note_memory(memory[c.name], before if number else None, device_before)
        if number:
            for name, probe in probes.items():
                rates[name].append(probe())
    result = agree(results)
    work = work() if callable(work) else work
    ours = seconds[contestants[0].name]
    rows = [
        {"contestant": c.name, **_times(c, seconds[c.name], first[c.name]),
         "ratio": spread([b / a for a, b in zip(ours, seconds[c.name], strict=True)]),
         **_limits(c.work or work, seconds[c.name], rates), **memory[c.name]}
        for c in contestants
    ]  # fmt: skip
    return {
        "rows": rows,
        "agreement": result,
        "rates": {f"{dtype}_flops_per_second": statistics.median(rates["flops"]),
                  "bytes_per_second": statistics.median(rates["bytes"])},
    }  # fmt: skip


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and range of the ratios of pairs, and the ratios."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "rounds": list(values),
    }


def scaling(
    what: str,
    against: str,
    values: Sequence[float],
    run: Callable[[Any], Callable[[], Any]],
    rounds: int,
) -> dict[str, Any]:
    """How the time of one contestant grows with one size: points in rounds, and their exponent.

    Args:
      what: Is run.
      against: The size that varies.
      values: It takes.
      run: Given a value, returns a function that does the work and waits for it.
      rounds: Timed rounds.

    Returns:
      JSON values; `exponent` is the slope of log seconds over log size.
    """
    jobs = [run(value) for value in values]
    seconds: list[list[float]] = [[] for _ in values]
    for number in range(rounds + 1):
        for job, taken in zip(jobs, seconds, strict=True):
            start = time.perf_counter()
            job()
            if number:
                taken.append(time.perf_counter() - start)
    medians = [statistics.median(taken) for taken in seconds]
    return {
        "what": what,
        "against": against,
        "values": list(values),
        "seconds": medians,
        "exponent": exponent(values, medians),
    }


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float | None:
    """The least-squares slope of log seconds over log size; None of fewer than two sizes."""
    if len(set(sizes)) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def largest(ours: np.ndarray, theirs: np.ndarray, over: np.ndarray | float = 1.0) -> float:
    """The largest difference, over `over`; NaN where only one of the two has a number."""
    neither = np.isnan(ours) & np.isnan(theirs)
    return float(np.where(neither, 0.0, np.abs(ours - theirs) / over).max())


def largest_relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference over the largest value."""
    return largest(ours, theirs, np.nanmax(np.abs(theirs)))


def worst_state(ours: np.ndarray, theirs: np.ndarray, of_each_row: bool = False) -> float:
    """Of h_NLPD: the difference's norm over the values', of the layer and pooling worst off.

    Args:
      of_each_row: Norms of one query's state, not of all queries': the worst of these.
    """
    axes = 3 if of_each_row else (0, 3)
    norms, differences = (np.linalg.norm(h, axis=axes) for h in (theirs, ours - theirs))
    return float((differences / norms).max())


def require(name: str, value: float, most: float) -> float:
    """The value, where it is small enough.

    Raises:
      Disagreement: It is not, or it is not finite.
    """
    if not value <= most:
        raise Disagreement(
            f"{name}: the contestants are {value:.2e} apart, at most {most:.0e} was expected; no "
            f"time of this suite is shown"
        )
    return value


def _share(c: Contestant, number: int) -> float:
    return c.share(number) if callable(c.share) else c.share


def _times(c: Contestant, seconds: list[float], first: float) -> dict[str, Any]:
    share = _share(c, 1)
    median = statistics.median(seconds)
    compiling = max(0.0, first - median * _share(c, 0)) if c.compiles else None
    return {
        "seconds": median,
        "seconds_of_rounds": seconds,
        "seconds_compiling": compiling,
        "share_run": share,
    }


def _limits(work: Work, seconds: list[float], rates: dict[str, list[float]]) -> dict[str, Any]:
    """The work over the measured rates, round by round: which of them binds, and how closely."""
    needs = {"compute": (work.flops, rates["flops"]), "memory": (work.bytes, rates["bytes"])}
    shares = {
        name: statistics.median(
            [amount / rate / taken for rate, taken in zip(rate_of, seconds, strict=True)]
        )
        for name, (amount, rate_of) in needs.items()
        if amount
    }
    result: dict[str, Any] = {"flops": work.flops or None, "bytes": work.bytes or None}
    result["mfu"] = shares.get("compute")
    if shares:
        result["limit"] = max(shares, key=lambda name: shares[name])
        result["share_of_limit"] = shares[result["limit"]]
    if work.tokens:
        result |= {"tokens": work.tokens, "padding": work.padding}
        result["tokens_per_second"] = work.tokens / statistics.median(seconds)
    return result


def _note_memory(
    memory: dict[str, int | None], before: int | None, device_before: int | None
) -> None:
    peak = machine.host_peak() if before is not None else None
    growth = peak - before if peak is not None and before is not None else None
    # The device's peak cannot be reset: one that was there before may be another contestant's, and
    # torch's memory is none of JAX's.
    device_peak = machine.device_peak()
    if device_peak == device_before:
        device_peak = None
    for name, value in (
        ("peak_host_bytes", peak),
        ("peak_host_growth_bytes", growth),
        ("peak_device_bytes", device_peak),
    ):
        earlier = memory.get(name)
        memory[name] = value if earlier is None else max(earlier, value or 0)
