"""A job of an extraction on paper: processes that sleep, fail and start again in simulated time.

Hosts are stand-ins that sleep for as long as the cost model says (`rj.job_cost`); no time passes.
What they write is the store's: the real commits, in their real number, read and listed by the code
that `extract` runs, in a bucket in memory whose answers take as long as an object store's. Shards
are empty there and take the time of their bytes. A row of the simulated store stands for a whole
row block of the job's.
"""

import dataclasses
import functools
import json
import pathlib
import tempfile
from collections import Counter, defaultdict
from typing import Any
from unittest import mock

import numpy as np

import routerjax as rj
from benchmarks.suites import checkpoints
from benchmarks.suites.events import Bucket, Clock, Limits, Request, Signal, Task
from routerjax.runtime.tuning import Tuning
from routerjax.store import layout
from routerjax.store.rows import StoreRows
from routerjax.store.shards import row_bytes, rows_per_block

POOLINGS = ("last", "mean")
_AT_ONCE = 32  # Files that a process reads at a time.


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a process spends on each query of the job before its first row block, on one core.

    Attributes:
      read: Seconds to read a file of outcomes of the simulated pool's targets, of which every
        process reads all.
      read_alone: Seconds to read a file of queries alone.
      digest: Seconds for the identity, also of all queries in every process.
      plan: Seconds of process 0 for the order of the rows.
      rows_written: Seconds of process 0 for rows.json.
      rows_read: Seconds of every process for rows.json.
      rows_bytes: Of rows.json.
      memory: Bytes that every process holds.
    """

    read: float
    read_alone: float
    digest: float
    plan: float
    rows_written: float
    rows_read: float
    rows_bytes: float
    memory: float


@dataclasses.dataclass(frozen=True)
class Pod:
    """A job and the hosts that do it.

    Attributes:
      shape: Of the encoder, out of `checkpoints.SHAPES`.
      n_queries: Of the job.
      failures: Of a host in a day; each ends the job, which is started again.
      alone: Whether the data are queries alone, without outcomes.
      tokens: Of a query.
      hosts: Processes, one a host.
      chip: Out of `rj.RATES`.
      chips: Of a host.
      announced: Share of failures that are announced by SIGTERM, 8 s before the end.
      noticed: Seconds after which the others are ended where a host dies without a word.
      restart: Seconds from the end of a job to its next start.
      load: Seconds to load weights and compile.
      host_bytes: A second, that a host fetches, digests and writes; measured with 16 cores.
      limits: Of the object store.
    """

    shape: str = "qwen3-0.6b"
    n_queries: int = 10**8
    failures: float = 0.0
    alone: bool = False
    tokens: float = 128.0
    hosts: int = 256
    chip: str = "v5e"
    chips: int = 4
    announced: float = 0.5
    noticed: float = 100.0
    restart: float = 120.0
    load: float = 60.0
    host_bytes: float = 6.06e8
    limits: Limits = Limits()


def simulate(each: Pod, costs: Costs, seed: int) -> dict[str, Any]:
    """What becomes of a job, as JSON values.

    Returns:
      The fields of the pod; `wall_seconds`, and of them `stages` (of process 0) and
      `device_share` (in which the chips work on what is kept); `starts`; `blocks`;
      `blocks_twice` and `ranges_twice`, row blocks committed and ranges tokenised again;
      `lost_share` of all device seconds, on row blocks that were not committed; `requests` of the
      bucket by kind and prefix, seconds that these `waited` for its limits; `memory_bytes` of a
      process.
    """
    with mock.patch.object(layout, "rows_per_block", lambda *_: 1):
        job = _Job(each, costs, seed)
        job.clock.start(job.begin())
        job.clock.start(job.fails(), alive=lambda: not job.done)
        job.clock.run()
        result = job.to_json()
    for name in job.bucket.list():
        job.bucket.delete(name)
    return result


class _Writers:
    """Of a process: how many write, and until when their host's cores have work."""

    def __init__(self) -> None:
        self.busy, self.until = 0, 0.0
        self.freed = Signal()


class _Run:
    """A start of the job's processes, until all have ended."""

    def __init__(self) -> None:
        self.alive, self.stopping, self.failing = True, False, False
        self.dead: set[int] = set()
        self.measured: set[int] = set()
        self.filled: set[int] = set()
        self.made = False
        self.told = Signal()
        # By row block: when its computation began.
        self.in_hand: dict[int, float] = {}


class _Job:
    """The simulated job; `done` once all of its row blocks are committed and it has ended."""

    def __init__(self, each: Pod, costs: Costs, seed: int):
        self.pod, self.costs, self.clock = each, costs, Clock()
        self.rng = np.random.default_rng(seed)
        config = checkpoints.SHAPES[each.shape]
        layers = list(range(config["num_hidden_layers"] + 1))
        shape = (len(layers), len(POOLINGS), config["hidden_size"])
        self.block_rows = rows_per_block(*shape, "float16")
        self.n_blocks = -(-each.n_queries // self.block_rows)
        self.shard_bytes = self.block_rows * row_bytes(*shape, "float16")
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))
            cost = rj.job_cost(
                folder, each.chip, each.n_queries, each.tokens, chips=each.chips,
                processes=each.hosts,
            )  # fmt: skip
        self.block_seconds = cost["device_seconds"] / self.n_blocks
        self.measure_seconds = cost["plan_seconds"]
        self.identity = {"layers": layers, "poolings": list(POOLINGS), "store_dtype": "float16"}
        self.width, self.n_sites = config["hidden_size"], len(layers) * len(POOLINGS)
        self.n_writers = Tuning.tpu().writers
        path = f"memory://pod-{id(self)}"
        self.bucket = Bucket(path, each.limits, self.clock, self.rng)
        self.files: layout.Files | None = None
        self.done, self.starts, self.lost = False, 0, 0.0
        self.commits: Counter[int] = Counter()
        self.ranges: Counter[int] = Counter()
        self.stages: defaultdict[str, float] = defaultdict(float)
        self.stage, self.since = "load, read and digest", 0.0
        self.listed_at, self.listing = -1, ([0], {""})
        self.finished = 0.0

    # ---- starts and failures

    def begin(self) -> Task:
        """Starts all processes."""
        self.starts += 1
        self.run = _Run()
        for i in range(self.pod.hosts):
            self.clock.start(self.host(i, self.run), functools.partial(_lives, self.run, i))
        yield 0.0

    def fails(self) -> Task:
        """Draws failures until the job is done."""
        if not self.pod.failures:
            return
        every = 86400 / (self.pod.failures * self.pod.hosts)
        while True:
            yield float(self.rng.exponential(every))
            run = self.run
            if not run.alive or run.failing:
                continue
            run.failing = True
            if self.rng.random() < self.pod.announced:
                run.stopping = True
                self.clock.start(self.ends(run, 8.0))
            else:
                run.dead.add(int(self.rng.integers(self.pod.hosts)))
                self.clock.start(self.ends(run, self.pod.noticed))

    def ends(self, run: _Run, after: float) -> Task:
        """Ends all processes of a run, and starts the job again."""
        yield after
        if self.done:
            return
        run.alive = False
        for began in run.in_hand.values():
            self.lost += min(self.clock.now - began, self.block_seconds)
        self.enters("wait for a start")
        yield self.pod.restart
        self.enters("load, read and digest")
        self.clock.start(self.begin())

    def enters(self, stage: str) -> None:
        """Begins a stage of process 0, which ends the one before."""
        self.stages[self.stage] += self.clock.now - self.since
        self.stage, self.since = stage, self.clock.now

    # ---- a process

    def host(self, i: int, run: _Run) -> Task:
        """Process i, as `extract` goes."""
        first = i == 0
        yield self.pod.load
        read = self.costs.read_alone if self.pod.alone else self.costs.read
        yield self.pod.n_queries * (read + self.costs.digest)
        if self.files is None:
            yield from self.plans(i, run)
        if first:
            self.enters("open the store")
        rows = self.pod.n_queries * self.costs.rows_bytes
        yield self.bucket.seconds([Request("read", "rows.json", int(rows))])
        yield self.pod.n_queries * self.costs.rows_read
        missing, requests = self.missing(i)
        yield self.bucket.seconds(requests, _AT_ONCE)
        if first:
            self.enters("fill")
        yield from self.fills(i, run, missing)
        if run.stopping:
            return
        yield self.bucket.seconds([Request("list", "h/c/", 0)] * self.pages(self.n_blocks))
        run.filled.add(i)
        self.clock.fire(run.told)
        while len(run.filled) < self.pod.hosts:
            yield run.told
        if first:
            self.enters("read all commits")
        assert self.files is not None
        committed = self.files.committed()
        yield self.bucket.seconds(self.bucket.noted())
        assert len(committed) == self.n_blocks
        if first:
            # For the counts of tokens in the log.
            self.files.read_commits(b for b in committed if b % self.pod.hosts)
            yield self.bucket.seconds(self.bucket.noted(), _AT_ONCE)
            self.enters("done")
            self.done, run.alive, self.finished = True, False, self.clock.now

    def plans(self, i: int, run: _Run) -> Task:
        """Measures a range of the queries; process 0 makes the store of all ranges."""
        part = Request("write", "lengths/", 17 * self.pod.n_queries // self.pod.hosts)
        if i == 0:
            self.enters("tokenise for the plan")
        if not self.ranges[i]:
            yield self.measure_seconds
            yield self.bucket.seconds([part])
            self.ranges[i] += 1
        run.measured.add(i)
        self.clock.fire(run.told)
        if i:
            while not run.made:
                yield run.told
            return
        while len(run.measured) < self.pod.hosts:
            yield run.told
        self.enters("plan and rows.json")
        reads = [part._replace(kind="read")] * self.pod.hosts
        yield self.bucket.seconds(reads, _AT_ONCE)
        yield self.pod.n_queries * (self.costs.plan + self.costs.rows_written)
        n_bytes = int(self.pod.n_queries * self.costs.rows_bytes)
        yield self.bucket.seconds([Request("write", "rows.json", n_bytes)])
        ids, zeros_N = tuple(map(str, range(self.n_blocks))), np.zeros(self.n_blocks, np.int64)
        rows = StoreRows(ids, zeros_N, zeros_N, zeros_N > 0)
        files = layout.create(self.bucket.path, self.identity, rows, self.width, {})
        self.files = files._replace(folder=self.bucket)
        run.made = True
        self.clock.fire(run.told)

    def missing(self, i: int) -> tuple[list[int], list[Request]]:
        """The row blocks that process i has to make, and what it asks to know them."""
        committed, there = self.listed()
        assert self.files is not None
        own = [block for block in committed if block % self.pod.hosts == i]
        commits = self.files.read_commits(own)
        pages = self.pages(len(committed)) + self.pages(len(there))
        requests = [Request("list", "blocks/", 0)] * pages + list(self.bucket.noted())
        mine = range(i, self.n_blocks, self.pod.hosts)
        return [b for b in mine if b not in commits or str(b) not in there], requests

    def listed(self) -> tuple[list[int], set[str]]:
        """Row blocks with a commit, and those with a shard: listed once for each state of both."""
        assert self.files is not None
        if self.listed_at != len(self.commits):
            self.listing = self.files.committed(), layout.shards(self.bucket)
            self.listed_at = len(self.commits)
            self.bucket.noted()
        return self.listing

    def pages(self, n: int) -> int:
        """Answers to a list of so many names."""
        return max(1, -(-n // self.pod.limits.page))

    def fills(self, i: int, run: _Run, missing: list[int]) -> Task:
        """Computes row blocks; writers write the last ones meanwhile."""
        writers = _Writers()
        for block in missing:
            if run.stopping:
                break
            run.in_hand[block] = self.clock.now
            yield self.block_seconds
            while writers.busy == self.n_writers:
                yield writers.freed
            writers.busy += 1
            writes = self.writes(block, run, writers)
            self.clock.start(writes, functools.partial(_lives, run, i))
        while writers.busy:
            yield writers.freed

    def writes(self, block: int, run: _Run, writers: "_Writers") -> Task:
        """Writes a row block and commits it."""
        begins = max(writers.until, self.clock.now)
        writers.until = begins + self.shard_bytes / self.pod.host_bytes
        yield writers.until - self.clock.now
        shard = f"h/c/0/0/{block}/0"
        yield self.bucket.seconds([Request("write", shard, self.shard_bytes)])
        self.bucket.write_bytes(shard, b"")
        start = block * self.block_rows
        sites = self.rng.integers(0, 2**32, self.n_sites).tolist()
        commit = {"block": block, "rows": [start, start + self.block_rows], "digest": "0" * 32,
                  "checksums": sites, "exponents": [0] * self.n_sites, "tokens": 0,
                  "computed_tokens": 0, "padded_tokens": 0}  # fmt: skip
        yield self.bucket.seconds([Request("write", "blocks/", 2000)])
        assert self.files is not None
        self.files.write_commit(block, commit)
        self.bucket.noted()
        self.commits[block] += 1
        del run.in_hand[block]
        writers.busy -= 1
        self.clock.fire(writers.freed)

    def to_json(self) -> dict[str, Any]:
        """As `simulate` returns it."""
        useful = self.block_seconds * self.n_blocks / self.pod.hosts
        return dataclasses.asdict(self.pod) | {
            "wall_seconds": self.finished,
            "stages": dict(self.stages),
            "device_share": useful / self.finished,
            "starts": self.starts,
            "blocks": len(self.commits),
            "blocks_twice": sum(self.commits.values()) - self.n_blocks,
            "ranges_twice": sum(self.ranges.values()) - self.pod.hosts,
            "lost_share": self.lost / (self.block_seconds * self.n_blocks),
            "bytes": self.n_blocks * self.shard_bytes,
            "requests": dict(sorted(self.bucket.asked.items())),
            "waited": self.bucket.waited,
            "memory_bytes": self.pod.n_queries * self.costs.memory,
        }


def _lives(run: _Run, i: int) -> bool:
    return run.alive and i not in run.dead
