"""The host suite: what the host of an accelerator does for each query.

A stand-in answers every batch at once with states of a larger model's shape. What remains is
`extract` itself: tokenising, packing, digesting, writing. Copies from a device are not in it.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
import time
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

import routerjax as rj
from benchmarks.suites import checkpoints, rounds, session
from benchmarks.suites.rounds import Contestant, Work
from routerjax.encoder.batches import BatchPlan, pack
from routerjax.encoder.extraction import extract as extract_module
from routerjax.runtime.files import digest
from routerjax.store.shards import Narrowed, checksums, open_array, rows_per_block

SHAPE = "qwen3-0.6b"
POOLINGS = ("last", "mean")
# Row blocks of a run, and writers beside the loop, as for an accelerator.
_BLOCKS, _WRITERS = 2, 4


def host(s: session.Session) -> dict[str, Any]:
    """`extract` on one core, two, four and so on, and each of its stages by CPU seconds."""
    like = checkpoints.SHAPES[SHAPE]
    encoder: Any = _AtOnce(s.encoder, like["num_hidden_layers"] + 1, like["hidden_size"])
    n_rows = rows_per_block(encoder.n_states, len(POOLINGS), encoder.width, "float16")
    data = s.some(s.asked_for(_BLOCKS * n_rows))
    data = data.select(np.arange(len(data) // n_rows * n_rows))
    rng = np.random.default_rng(s.seed)
    shape = (encoder.n_states, len(POOLINGS), n_rows, encoder.width)
    stored = rng.standard_normal(shape, np.float32).astype(np.float16)
    folder = s.folder.local_path() / "host-store"
    cpu_seconds: dict[int, list[float]] = {}

    def extract(n_cores: int, _: int) -> int:
        shutil.rmtree(folder, ignore_errors=True)
        with _on_cores(n_cores), _answered(stored):
            before = time.process_time()
            store = rj.extract(encoder, data, folder, poolings=POOLINGS)
            cpu_seconds.setdefault(n_cores, []).append(time.process_time() - before)
        return len(store.commits())

    cores = sorted({*(2**i for i in range(8) if 2**i <= _n_cores()), _n_cores()}, reverse=True)
    contestants = [
        Contestant(f"extract on {n} of {cores[0]} cores", functools.partial(extract, n))
        for n in cores
    ]
    n_bytes = stored.nbytes * len(data) // n_rows
    result = rounds.in_rounds(contestants, s.rounds, Work(bytes=n_bytes), _agree)
    figures: dict[str, float] = {}
    for row, n in zip(result["rows"], cores, strict=True):
        took = float(np.median(cpu_seconds[n][1:]))
        figures |= {
            f"queries/s on {n} cores": len(data) / row["seconds"],
            f"MB/s on {n} cores": n_bytes / row["seconds"] / 1e6,
            f"queries a core-second, on {n}": len(data) / took,
            f"MB a core-second, on {n}": n_bytes / took / 1e6,
        }
    shutil.rmtree(folder, ignore_errors=True)
    return result | {
        "title": f"The host alone, behind a device that answers at once: {len(data)} queries, "
        f"{shape[0]} states x {shape[1]} poolings, {shape[3]} wide, float16.",
        "figures": figures | _stages(s, encoder, data, stored, folder),
    }


class _AtOnce:
    """An encoder with the tokenizer of another, whose states are there when they are asked for."""

    def __init__(self, encoder: rj.Encoder, n_states: int, width: int):
        self._encoder, self.n_states, self.width = encoder, n_states, width
        self.tuning = dataclasses.replace(encoder.tuning, writers=_WRITERS)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def forward(self, *_: Any) -> Any:
        """Nothing that is waited for."""
        return types.SimpleNamespace(block_until_ready=lambda: None)


@contextlib.contextmanager
def _answered(stored: np.ndarray) -> Iterator[None]:
    """Within it a row block has these values, which need not be fetched."""
    exponents_LP = np.zeros(stored.shape[:2], np.int32)
    block = Narrowed(stored, stored, exponents_LP, np.bool_(False), np.bool_(True))
    stub = types.SimpleNamespace(
        empty=lambda *_: None, put=lambda *_: None, narrowed=lambda *_: block
    )
    with mock.patch.object(extract_module, "block_buffer", stub):
        yield


def _stages(
    s: session.Session, encoder: Any, data: rj.RoutingDataset, stored: np.ndarray,
    folder: pathlib.Path,
) -> dict[str, float]:  # fmt: skip
    """Each stage alone: queries, tokens or megabytes in a second of CPU time."""
    prompts = encoder.prompter(data.queries)
    lengths_N = prompts.lengths_N
    order = np.argsort(lengths_N, kind="stable")
    rows = prompts.take(order[: stored.shape[2]])
    longest = -(-int(lengths_N.max()) // 8) * 8
    plan = BatchPlan((longest,), 16 * longest, stored.shape[2])

    def packed() -> None:
        for at, bucket in plan.split(rows.lengths_N):
            pack(rows, np.arange(at.start, at.stop), plan.batch_rows(bucket), bucket)

    array = open_array(rj.Folder(folder), stored.shape, stored.shape[2], "float16", True)
    timed = {
        name: _core_seconds(run, s.rounds)
        for name, run in {
            "tokenise": lambda: encoder.prompter(data.queries),
            "pack": packed,
            "digest": lambda: digest(stored),
            "checksums": lambda: checksums(stored),
            "write": lambda: array[...].write(stored).result(),
        }.items()
    }
    shutil.rmtree(folder, ignore_errors=True)
    megabytes = stored.nbytes / 1e6
    return {
        "tokenise, queries a core-second": len(data) / timed["tokenise"],
        "tokenise, tokens a core-second": int(lengths_N.sum()) / timed["tokenise"],
        "pack, queries a core-second": len(rows.tokens) / timed["pack"],
        **{
            f"{name}, MB a core-second": megabytes / timed[name]
            for name in ("digest", "checksums", "write")
        },
    }


def _core_seconds(run: Callable[[], Any], times: int) -> float:
    """Median CPU seconds, of all threads."""
    run()
    took = []
    for _ in range(times):
        before = time.process_time()
        run()
        took.append(time.process_time() - before)
    return float(np.median(took))


def _n_cores() -> int:
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def _on_cores(n: int) -> Iterator[None]:
    """Within it the threads of this process, those of libraries too, share so many cores."""
    before = os.sched_getaffinity(0)
    _pin(set(sorted(before)[:n]))
    try:
        yield
    finally:
        _pin(before)


def _pin(cores: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # It has ended.
            os.sched_setaffinity(int(thread), cores)


def _agree(results: dict[str, int]) -> dict[str, float]:
    counts = list(results.values())
    return {"row blocks": rounds.require("row blocks", float(max(counts) - min(counts)), 0)}
