"""Time that does not pass: tasks of a simulated cluster, and a bucket that answers late.

A task is a generator that yields seconds to sleep, or a `Signal` to wait for. Nothing sleeps: the
clock jumps from one event to the next.
"""

import dataclasses
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import numpy as np

from routerjax.runtime.files import Folder


class Signal:
    """What tasks wait for; `Clock.fire` lets all of them go on."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Task, Callable[[], bool]]] = []


Task = Generator[float | Signal, None, None]


class Clock:
    """Runs tasks in the order of their events; `now` is in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Task, Callable[[], bool]]] = []
        self._numbers = itertools.count()

    def start(self, task: Task, alive: Callable[[], bool] = lambda: True, after: float = 0) -> None:
        """Lets a task begin; it ends for good at its first event at which it is not alive."""
        heapq.heappush(self._queue, (self.now + after, next(self._numbers), task, alive))

    def fire(self, signal: Signal) -> None:
        """Lets all that wait for a signal go on."""
        waiting, signal.waiting = signal.waiting, []
        for task, alive in waiting:
            self.start(task, alive)

    def run(self) -> None:
        """Until no task is left that sleeps."""
        while self._queue:
            self.now, _, task, alive = heapq.heappop(self._queue)
            waits = next(task, None) if alive() else None
            if isinstance(waits, Signal):
                waits.waiting.append((task, alive))
            elif waits is not None:
                self.start(task, alive, after=waits)


class Request(NamedTuple):
    """What was asked of a bucket: "read", "write" or "list" of a name, and its bytes."""

    kind: str
    name: str
    n_bytes: int


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of an object store, as the larger ones document them or as they are usually seen.

    Attributes:
      latency: Median seconds to the first byte; drawn from a lognormal distribution.
      spread: Standard deviation of the logarithm of a latency.
      stream: Bytes a second of one connection.
      reads: Reads and lists a second of a prefix; more wait for the next second.
      writes: Writes and deletions a second of a prefix.
      page: Names in an answer to a list.
    """

    latency: float = 0.03
    spread: float = 0.5
    stream: float = 1e8
    reads: int = 5500
    writes: int = 3500
    page: int = 1000


class Bucket(Folder):
    """A folder in memory that notes what is asked of it, and says how long that would take."""

    def __init__(self, path: str, limits: Limits, clock: Clock, rng: np.random.Generator):
        super().__init__(path)
        self._limits, self._clock, self._rng = limits, clock, rng
        self._noted: list[Request] = []
        self._in_second: Counter[tuple[str, bool, int]] = Counter()
        self.asked: Counter[str] = Counter()
        self.waited = 0.0

    def read_stamped(self, name: str) -> tuple[bytes | None, bytes]:
        """As `Folder.read_stamped`."""
        result = super().read_stamped(name)
        self._noted.append(Request("read", name, len(result[0] or b"")))
        return result

    def write_bytes(self, name: str, data: bytes) -> None:
        """As `Folder.write_bytes`."""
        super().write_bytes(name, data)
        self._noted.append(Request("write", name, len(data)))

    def list(self, prefix: str = "") -> list[str]:
        """As `Folder.list`."""
        names = super().list(prefix)
        pages = max(1, -(-len(names) // self._limits.page))
        self._noted += [Request("list", prefix, 0)] * pages
        return names

    def noted(self) -> Sequence[Request]:
        """What was asked since the last call, sorted: threads ask in any order."""
        result, self._noted = sorted(self._noted), []
        return result

    def seconds(self, requests: Sequence[Request], at_once: int = 1) -> float:
        """How long requests take that begin now, so many of them at a time.

        Pages of a list come one after the other.
        """
        lanes = [self._clock.now] * max(1, min(at_once, len(requests)))
        for request in requests:
            start = lanes[0]
            end = start + self._one(request, start)
            if request.kind == "list":
                heapq.heapreplace(lanes, end)
                lanes = [max(lane, end) for lane in lanes]
            else:
                heapq.heapreplace(lanes, end)
        return max(lanes) - self._clock.now

    def _one(self, request: Request, start: float) -> float:
        prefix, writes = request.name.split("/")[0], request.kind == "write"
        most = self._limits.writes if writes else self._limits.reads
        second = int(start)
        while self._in_second[prefix, writes, second] >= most:
            second += 1
        self._in_second[prefix, writes, second] += 1
        self.asked[f"{request.kind} {prefix}/"] += 1
        waits = max(0.0, second - start)
        self.waited += waits
        latency = self._limits.latency * np.exp(self._limits.spread * self._rng.standard_normal())
        return waits + float(latency) + request.n_bytes / self._limits.stream
