"""Engine: queries of many requests, read together by one thread beside the event loop."""

import asyncio
import collections
import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Sequence

from routerjax.serving.config import ServingConfig
from routerjax.serving.errors import Problem
from routerjax.serving.metrics import Metrics
from routerjax.serving.reader import Estimate, Explanation, Reader

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class _Waiting:
    query: str
    result: asyncio.Future[Estimate]
    since: float


class Engine:
    """Reads queries as they come.

    A batch is what waits when the thread is free, once its first query has waited `max_wait_ms` or
    `max_batch` of them are there. A query whose request was cancelled is not read.

    Args:
      reader: Called by this engine's thread alone.
      config: Its `max_wait_ms`, `max_batch` and `max_queue` are read.
      metrics: Where batches and waiting queries are counted.

    Attributes:
      ready: Whether all programs are compiled.
      failed: Whether they never will be.
    """

    def __init__(self, reader: Reader, config: ServingConfig, metrics: Metrics):
        self._reader, self._config, self._metrics = reader, config, metrics
        self.ready = self.failed = False
        self._queue: collections.deque[_Waiting] = collections.deque()
        self._arrived = asyncio.Event()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "routerjax-reader")
        self._seconds_a_query = 0.01  # Moving mean; for Retry-After.
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Compiles, then reads, until `stop`."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Waits for the batch in hand; queries that still wait are refused.

        A compilation in hand is not waited for: nothing depends on it, and it may take minutes.
        """
        self._stopping = True
        self._arrived.set()
        if self._task is not None:
            if not self.ready:
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for waiting in self._queue:
            if not waiting.result.done():
                waiting.result.set_exception(Problem(503, "the server is stopping", "stopping"))
        self._thread.shutdown(wait=self.ready)

    async def estimate(self, queries: Sequence[str]) -> list[Estimate]:
        """What the router expects of queries.

        Raises:
          Problem: The server is not ready, or too many queries wait already.
          ValueError: A query is empty or has no tokens.
        """
        self._check_ready()
        room = self._config.max_queue - len(self._queue)
        if len(queries) > self._config.max_queue:
            raise ValueError(
                f"query: expected at most {self._config.max_queue} queries, got {len(queries)}"
            )
        if len(queries) > room:
            seconds = len(self._queue) * self._seconds_a_query
            raise Problem.overloaded(f"{len(self._queue)} queries wait already", seconds)
        loop, now = asyncio.get_running_loop(), time.perf_counter()
        waiting = [_Waiting(query, loop.create_future(), now) for query in queries]
        self._queue.extend(waiting)
        self._metrics.waiting.set(len(self._queue))
        self._arrived.set()
        return list(await asyncio.gather(*(each.result for each in waiting)))

    async def explain(self, query: str) -> Explanation:
        """What the router expects of a query, and why; between two batches.

        Raises:
          Problem: The server is not ready.
          ValueError: As `estimate`.
        """
        self._check_ready()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._reader.explain, query)

    def _check_ready(self) -> None:
        if not self.ready:
            raise Problem(503, "the programs are being compiled: see /readyz", "not_ready", None,
                          {"Retry-After": "5"})  # fmt: skip

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        start = time.perf_counter()
        try:
            whole = await loop.run_in_executor(
                self._thread, self._reader.compile, lambda: self._stopping
            )
        except Exception:
            logger.exception("compiling failed: the server will never be ready")
            self.failed = True
            return
        if not whole:
            return
        self._metrics.is_ready()
        self.ready = True
        logger.info("ready after %.1f s", time.perf_counter() - start)
        while True:
            while not self._queue and not self._stopping:
                self._arrived.clear()
                await self._arrived.wait()
            if not self._queue:
                return
            left = self._queue[0].since + self._config.max_wait_ms / 1e3 - time.perf_counter()
            if left > 0 and len(self._queue) < self._config.max_batch and not self._stopping:
                await asyncio.sleep(left)
            batch = self._take()
            if batch:
                await self._read(batch)

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        while self._queue and len(batch) < self._config.max_batch:
            waiting = self._queue.popleft()
            if not waiting.result.cancelled():
                batch.append(waiting)
        self._metrics.waiting.set(len(self._queue))
        return batch

    async def _read(self, batch: list[_Waiting]) -> None:
        loop, start = asyncio.get_running_loop(), time.perf_counter()
        queries = [waiting.query for waiting in batch]
        results: Sequence[Estimate | Exception] = await loop.run_in_executor(
            self._thread, self._each, queries
        )
        seconds = time.perf_counter() - start
        self._seconds_a_query += 0.1 * (seconds / len(batch) - self._seconds_a_query)
        self._metrics.batch.observe(len(batch))
        self._metrics.seconds.labels("read").observe(seconds)
        for waiting, result in zip(batch, results, strict=True):
            self._metrics.seconds.labels("queue").observe(start - waiting.since)
            if waiting.result.done():
                continue
            if isinstance(result, Exception):
                waiting.result.set_exception(result)
            else:
                waiting.result.set_result(result)

    def _each(self, queries: list[str]) -> Sequence[Estimate | Exception]:
        """The estimates; where one query cannot be read, the others' all the same."""
        try:
            return self._reader.estimate(queries)
        except Exception as error:
            if len(queries) == 1:
                if not isinstance(error, ValueError):
                    logger.exception("a query could not be read")
                return [error]
        return [result for query in queries for result in self._each([query])]
