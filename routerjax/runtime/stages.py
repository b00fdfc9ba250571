"""Stages: what a pipeline of threads spends its seconds on, and what it waits for."""

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator


class Stages:
    """Seconds by stage, of all threads together, since it was made."""

    def __init__(self) -> None:
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
        self._lock = threading.Lock()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the seconds that the body takes to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - start
            with self._lock:
                self._seconds[stage] += took

    @property
    def wall(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._started

    @property
    def cores(self) -> float:
        """Cores of this machine that the process kept busy since it was made, on average."""
        return (time.process_time() - self._cpu_started) / self.wall

    def seconds(self) -> dict[str, float]:
        """Seconds by stage."""
        with self._lock:
            return dict(self._seconds)
