"""The pod suite: an extraction by hundreds of hosts on paper, with hosts that fail.

What a process does for each query is measured here; all else is the job's (pod_job).
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import tempfile
import time
import tracemalloc
import types
from typing import Any

import numpy as np

import routerjax as rj
from benchmarks.suites.pod_job import POOLINGS, Costs, Pod, simulate
from benchmarks.suites.session import Session
from routerjax.data.writers import write_dataset
from routerjax.encoder.extraction.plan import Measured, identity_of, planned
from routerjax.encoder.selection import Selection
from routerjax.store.rows import StoreRows

# Queries by which the host's seconds and bytes of a query are measured.
_MEASURED = 20_000
PODS = (
    Pod(),
    Pod(alone=True),
    Pod(alone=True, failures=0.04),
    Pod(alone=True, failures=0.4),
    # Of this one the chips take most of the time, and failures fall into their work.
    Pod(shape="qwen3-8b", alone=True, failures=0.4),
)


def pod(s: Session) -> dict[str, Any]:
    """A row a pod."""
    wanted = s.wanted_shapes([each.shape for each in PODS])
    costs = measure_costs(s.seed)
    rows = [simulate(each, costs, s.seed) for each in PODS if each.shape in wanted]
    return {
        "title": "On paper: hosts sleep as long as the cost model says, failures are drawn, a "
        "bucket answers late. No time passes, and nothing is run on a chip.",
        "rows": rows,
        "figures": {
            f"{name} of a million queries": 1e6 * value
            for name, value in dataclasses.asdict(costs).items()
        },
    }


def measure_costs(seed: int, n: int = _MEASURED) -> Costs:
    """Runs the host's part of a plan on simulated queries: CPU seconds and bytes of a query."""
    rng = np.random.default_rng(seed)
    lengths_N = rng.integers(16, 512, n)
    measured = Measured(lengths_N, lengths_N, lengths_N > 500, np.zeros(0, np.int32))
    # What `planned` asks of an encoder.
    encoder: Any = types.SimpleNamespace(
        identity={}, width=1024, n_devices=1, ring_rows=1, worth_tokens=1024,
        config=types.SimpleNamespace(bidirectional=True, follows_length=False),
    )  # fmt: skip
    took: dict[str, float] = {}

    def timed(name: str, run: Any) -> Any:
        before = time.process_time()
        result = run()
        took[name] = (time.process_time() - before) / n
        return result

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "data.jsonl"
        write_dataset(rj.simulate(min(n, 1000), seed), path)
        rows = itertools.islice(itertools.cycle(map(json.loads, path.read_text().splitlines())), n)
        ids = (f"query-{i:09d}" for i in rng.permutation(n))
        lines = (json.dumps(row | {"id": name}) for row, name in zip(rows, ids, strict=True))
        path.write_text("\n".join(lines))
        data = timed("read", lambda: rj.read_dataset(path))
        alone = pathlib.Path(folder) / "queries.jsonl"
        named = zip(data.ids, data.queries, strict=True)
        alone.write_text("\n".join(json.dumps({"id": name, "query": q}) for name, q in named))
        timed("read_alone", lambda: list(rj.read_queries(alone)))
        selection = Selection(tuple(range(29)), POOLINGS)
        identity = timed("digest", lambda: identity_of(encoder, data, selection, "float16"))
        plan = functools.partial(planned, encoder, data, identity, measured, None, 2048, "off")
        stored = timed("plan", plan).rows
        wanted = timed("rows_written", lambda: stored.save(rj.Folder(folder)))
        n_bytes = len(stored.to_bytes())
        timed("rows_read", lambda: StoreRows.load(rj.Folder(folder), wanted))
        tracemalloc.start()
        held = rj.read_dataset(path), plan(), StoreRows.load(rj.Folder(folder), wanted)
        memory = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        del held
    return Costs(**took, rows_bytes=n_bytes / n, memory=memory / n)
