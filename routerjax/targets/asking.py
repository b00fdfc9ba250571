"""Asking one target: within its limits, with retries and backoff, into the journal."""

import asyncio
import dataclasses
import json
import random
from collections.abc import Mapping
from typing import Any

import httpx
import numpy as np

from routerjax.runtime.files import digest
from routerjax.targets.endpoints import Target
from routerjax.targets.journal import Journal
from routerjax.targets.limits import Budget, Halt, Pace
from routerjax.targets.wire import Failure, Reply, request_of, send, worst_usd

# A target that asks to wait for longer is left alone until the next run.
_LONGEST_WAIT_S = 900.0
# Backoff doubles up to here.
_LONGEST_BACKOFF_S = 60.0
# Failed calls in a row after which a target is left alone until the next run.
_GIVES_UP_AFTER = 10


@dataclasses.dataclass
class Bill:
    """What answers took.

    Attributes:
      answers: Their number.
      usd: Cost of those whose cost is known.
      usd_unknown: The number of the others.
      input_tokens: Cached ones included; so far as targets tell, as the others.
      cached_input_tokens: Those that the provider had cached.
      output_tokens: Those of reasoning included.
      latencies_s: Seconds of each answer.
    """

    answers: int = 0
    usd: float = 0.0
    usd_unknown: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    latencies_s: list[float] = dataclasses.field(default_factory=list)

    def add(self, reply: Reply, target: Target) -> None:
        """Counts an answer of a target."""
        usd = reply.usd(target)
        self.answers += 1
        self.usd += usd or 0.0
        self.usd_unknown += usd is None
        self.input_tokens += reply.input_tokens or 0
        self.cached_input_tokens += reply.cached_input_tokens or 0
        self.output_tokens += reply.output_tokens or 0
        self.latencies_s.append(reply.latency_s)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, with the median and the 95th percentile of the latency."""
        value = dataclasses.asdict(self) | {"latency_s": None}
        if value.pop("latencies_s"):
            p50, p95 = np.quantile(self.latencies_s, (0.5, 0.95)).round(4).tolist()
            value["latency_s"] = {"p50": p50, "p95": p95}
        return value


class Asker:
    """Asks one target, within its limits; every answer and every failure goes into the journal.

    Args:
      target: Who is asked.
      client: Sends.
      journal: Keeps.
      budget: What may be spent.
      halt: Says when to end.
      concurrency: Most requests in hand.
      attempts: Of each call, the first one included.
      timeout_s: Seconds for an answer, where targets.json does not say.
      backoff_s: Seconds before the second attempt; twice as many before each further one.

    Attributes:
      gave_up: Why the target is asked no more in this run; None while it is.
      bill: Of all answers given out, each counted once.
    """

    def __init__(
        self,
        target: Target,
        client: httpx.AsyncClient,
        journal: Journal,
        budget: Budget,
        halt: Halt,
        *,
        concurrency: int,
        attempts: int,
        timeout_s: float,
        backoff_s: float,
    ):
        self.target = target
        self.gave_up: str | None = None
        self.bill = Bill()
        self._client, self._journal, self._budget, self._halt = client, journal, budget, halt
        self._attempts, self._backoff_s = attempts, backoff_s
        self._timeout_s = target.timeout_s or timeout_s
        self._in_hand = asyncio.Semaphore(concurrency)
        self._pace = Pace(target.requests_per_minute)
        self._asking: dict[str, asyncio.Lock] = {}
        self._billed: set[str] = set()
        self._answered = False
        self._failed_in_a_row = 0

    def key(self, query: str) -> str:
        """What a request is known by: the target's name and all that it is asked."""
        return _key(self.target, request_of(self.target, query))

    async def ask(self, query: str, **about: Any) -> Reply | None:
        """The answer to a query: that of the journal where it has one.

        Args:
          query: A text or a conversation.
          about: JSON values for the journal, beside the answer.

        Returns:
          None where there is none: the journal says why, or the job or the target has ended.
        """
        body = request_of(self.target, query)
        key = _key(self.target, body)
        # Of equal requests at the same time one is sent.
        async with self._asking.setdefault(key, asyncio.Lock()):
            if self._journal.has_answer(key):
                reply: Reply | None = Reply(**self._journal.answer(key)["reply"])
            else:
                reply = await self._ask(key, body, query, about)
        if reply is not None and key not in self._billed:
            self._billed.add(key)
            self.bill.add(reply, self.target)
        return reply

    async def _ask(
        self, key: str, body: Mapping[str, Any], query: str, about: dict[str, Any]
    ) -> Reply | None:
        worst = worst_usd(self.target, body, query)
        about = {"target": self.target.name} | about
        for attempt in range(self._attempts):
            try:
                return await self._attempt(key, body, worst, about)
            except _Ended:
                return None
            except Failure as failure:
                refused = failure.scope == "call"
                if failure.scope == "target":
                    self._give_up(str(failure))
                if failure.wait_s is not None:
                    if failure.wait_s > _LONGEST_WAIT_S:
                        self._give_up(f"{failure}; it asks to wait for {failure.wait_s:,.0f} s")
                    self._pace.hold(failure.wait_s)
                if refused or self.gave_up or attempt + 1 == self._attempts:
                    # Refused requests say little of others, once a target has answered any.
                    self._failed_in_a_row += not (refused and self._answered)
                    if self._failed_in_a_row >= _GIVES_UP_AFTER:
                        self._give_up(f"{self._failed_in_a_row} calls in a row failed: {failure}")
                    return None
            backoff_s = min(self._backoff_s * 2**attempt, _LONGEST_BACKOFF_S)
            await self._halt.sleep(backoff_s * random.uniform(0.5, 1.0))
        return None

    async def _attempt(
        self, key: str, body: Mapping[str, Any], worst: float | None, about: dict[str, Any]
    ) -> Reply:
        async with self._in_hand:
            await self._pace.wait(self._halt)
            if self.gave_up:
                raise _Ended
            call = await self._budget.take(worst, self._halt)
            if call is None:
                raise _Ended
            try:
                reply = await send(self._client, self.target, body, self._timeout_s)
            except Failure as failure:
                usd = None if failure.billed else 0.0
                self._journal.failed(call, key, usd, str(failure), **about)
                raise
            else:
                self._journal.answered(
                    call, key, reply.usd(self.target), reply=dataclasses.asdict(reply), **about
                )
            finally:
                self._budget.settle()
        self._answered, self._failed_in_a_row = True, 0
        return reply

    def _give_up(self, why: str) -> None:
        self.gave_up = self.gave_up or why
        self._pace.end()


class _Ended(Exception):
    """The job or the target is asked no more."""


def _key(target: Target, body: Mapping[str, Any]) -> str:
    return digest(json.dumps([target.name, body], sort_keys=True))
