"""Limits of asking: when it ends, how fast a target is asked, and how much may be spent."""

import asyncio
import time

from routerjax.targets.journal import Journal

# Why a job ends early.
BUDGET, ASKED = "budget", "asked to stop"


class Halt:
    """Whether the job is to end, and the word for why."""

    def __init__(self) -> None:
        self.why: str | None = None
        self._event = asyncio.Event()

    def now(self, why: str) -> None:
        """Ends the job; the first reason counts."""
        self.why = self.why or why
        self._event.set()

    async def sleep(self, seconds: float) -> None:
        """Sleeps so long, or until the job is to end."""
        if seconds > 0 and self.why is None:
            try:
                await asyncio.wait_for(self._event.wait(), seconds)
            except TimeoutError:
                pass


class Pace:
    """When the next request may go out to one target.

    Args:
      per_minute: Most requests begun in a minute, evenly spread; None for no limit.
    """

    def __init__(self, per_minute: float | None):
        self._apart = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._held_until = 0.0
        self._open = True

    def hold(self, seconds: float) -> None:
        """Lets nothing out for so long, as the target asked (Retry-After)."""
        self._held_until = max(self._held_until, time.monotonic() + seconds)

    def end(self) -> None:
        """Lets nobody wait any longer."""
        self._open = False

    async def wait(self, halt: Halt) -> None:
        """Until the next request may go out, or the job is to end, or `end` was called."""
        while halt.why is None and self._open:
            now = time.monotonic()
            at = max(self._next, self._held_until)
            if at <= now:
                self._next = now + self._apart
                return
            await halt.sleep(min(at - now, 0.5))


class Budget:
    """What may be spent: nothing goes out that could pass it, whatever is in hand costs at most.

    Args:
      limit_usd: The most, what the journal holds already included; None for no limit.
      journal: Knows what was spent, and what those in hand cost at most.
    """

    def __init__(self, limit_usd: float | None, journal: Journal):
        self._limit_usd = limit_usd
        self._journal = journal
        self._in_hand = 0
        self._settled = asyncio.Event()

    async def take(self, usd: float | None, halt: Halt) -> int | None:
        """Notes that a request goes out; waits for those in hand where that may make it fit.

        Args:
          usd: What it costs at most; None where that is unknown, which needs no limit.
          halt: Is told where the request does not fit and nothing else is in hand.

        Returns:
          The number of the call; None where the job is to end.
        """
        while halt.why is None:
            spent = self._journal.known_usd + self._journal.worst_usd
            if self._limit_usd is None or spent + (usd or 0.0) <= self._limit_usd:
                self._in_hand += 1
                return self._journal.asked(usd)
            if not self._in_hand:
                halt.now(BUDGET)
                break
            self._settled.clear()
            await self._settled.wait()
        return None

    def settle(self) -> None:
        """Tells that the journal knows how a call ended."""
        self._in_hand -= 1
        self._settled.set()
