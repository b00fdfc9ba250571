"""The journal of collecting: one JSON line for each thing that happened, only ever appended to.

    {"event": "asked", "call": 7, "usd": 0.02}    a request goes out that costs so much at most
    {"event": "answered", "call": 7, "key": ..., "usd": 0.003, "reply": {...}, ...}
    {"event": "failed", "call": 8, "key": ..., "usd": 0.0, "error": ..., ...}
    {"event": "graded", "key": ..., "score": 1.0}

An answer is on the disk (fsync) before anything else is done with it. A process that is killed at
any moment loses the requests in hand and nothing more: half a line at the end is cut off by who
opens the journal next, and what the requests may have cost is known from their "asked" lines.
"""

import collections
import fcntl
import json
import logging
import math
import os
import pathlib
from typing import Any

from routerjax.runtime.resume import append

logger = logging.getLogger(__name__)


class Journal:
    """What has been asked, answered and graded so far. One process at a time holds it.

    Args:
      path: The file; made where it is not there.

    Attributes:
      failures: Failed calls by key.
      known_usd: Cost of all calls whose cost is known.
      worst_usd: What the others may have cost at most: calls whose answer never came whole.

    Raises:
      ValueError: Another process holds it, or a line in it is damaged.
      OSError: It cannot be written.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.failures: collections.Counter[str] = collections.Counter()
        self.known_usd = 0.0
        self._worst: dict[int, float] = {}  # By call.
        self._answers: dict[str, tuple[int, int]] = {}  # By key, where its line begins and ends.
        self._errors: dict[str, str] = {}
        self._scores: dict[str, float | None] = {}
        self._calls = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise ValueError(
                f"{path}: another process is collecting into it: wait for it, or use another "
                f"--workdir"
            ) from error
        try:
            self._read()
        except ValueError:
            self.close()
            raise

    @property
    def worst_usd(self) -> float:
        """What calls of unknown cost may have cost at most."""
        return sum(self._worst.values())

    def close(self) -> None:
        """Lets another process have it."""
        os.close(self._file)

    def asked(self, usd: float | None) -> int:
        """Notes that a request goes out now.

        Args:
          usd: What it costs at most; None where that is unknown.

        Returns:
          The number of the call, by which its end is told.
        """
        self._calls += 1
        if usd:
            # Needs no fsync: what is written outlives the process, if not the machine.
            self._append({"event": "asked", "call": self._calls, "usd": usd})
        return self._calls

    def answered(self, call: int, key: str, usd: float | None, **more: Any) -> None:
        """Keeps an answer; it is on the disk when this returns.

        Args:
          call: As `asked` numbered it.
          key: Which request was answered.
          usd: The cost; None where it is unknown.
          more: JSON values to keep.
        """
        value = {"event": "answered", "call": call, "key": key, "usd": usd} | more
        self._append(value, sync=True)

    def failed(self, call: int, key: str, usd: float | None, error: str, **more: Any) -> None:
        """Keeps that an attempt failed, with the reason in `error`."""
        value = {"event": "failed", "call": call, "key": key, "usd": usd, "error": error} | more
        self._append(value)

    def graded(self, key: str, score: float | None) -> None:
        """Keeps a score that is costly to find again; None where the grader came to none."""
        self._append({"event": "graded", "key": key, "score": score}, sync=True)

    def has_answer(self, key: str) -> bool:
        """Whether this request was answered."""
        return key in self._answers

    def answer(self, key: str) -> dict[str, Any]:
        """What `answered` kept of a request."""
        start, end = self._answers[key]
        return json.loads(os.pread(self._file, end - start, start))

    def error(self, key: str) -> str | None:
        """Why a request that was not answered failed last; None where it was not asked."""
        return self._errors.get(key)

    def has_score(self, key: str) -> bool:
        """Whether `graded` was called."""
        return key in self._scores

    def score(self, key: str) -> float | None:
        """The score that `graded` kept."""
        return self._scores[key]

    def _append(self, value: dict[str, Any], sync: bool = False) -> None:
        # A text may hold half a surrogate pair, which ASCII escapes can write and UTF-8 cannot.
        line = (json.dumps(value) + "\n").encode()
        start = os.lseek(self._file, 0, os.SEEK_END)
        append(self._file, line, self.path)
        if sync:
            os.fsync(self._file)
        self._take(value, start, start + len(line))

    def _read(self) -> None:
        start, line = 0, b"\n"
        ended: set[int] = set()
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                end = start + len(line)
                try:
                    value = json.loads(line)
                    _check(value, ended)
                    self._take(value, start, end)
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    if end == os.fstat(self._file).st_size:
                        logger.warning(
                            "%s:%d: cut off while it was written: it is left out", self.path, number
                        )
                        os.ftruncate(self._file, start)
                        return
                    raise ValueError(
                        f"{self.path}:{number}: not a line that collecting wrote ({error}): take "
                        f"the line out, and what it held is asked again"
                    ) from error
                start = end
        if not line.endswith(b"\n"):
            append(self._file, b"\n", self.path)

    def _take(self, value: dict[str, Any], start: int, end: int) -> None:
        event = value["event"]
        if event == "graded":
            self._scores[value["key"]] = value["score"]
            return
        call, usd = int(value["call"]), value["usd"]
        if event == "asked":
            self._worst[call] = float(usd)
        else:
            if usd is not None:
                self._worst.pop(call, None)
                self.known_usd += float(usd)
            key = value["key"]
            if event == "answered":
                self._answers[key] = start, end
                self._errors.pop(key, None)
            else:
                self.failures[key] += 1
                self._errors[key] = str(value["error"])
        self._calls = max(self._calls, call)


def _check(value: dict[str, Any], ended: set[int]) -> None:
    """Refuses costs that are none, and a second end of a call, which would be paid for twice.

    Args:
      value: A line.
      ended: Calls that have ended in the lines before; gets that of this one.
    """
    usd = value.get("usd")
    if usd is not None and not 0 <= usd < math.inf:
        raise ValueError(f"usd: expected a number >= 0, got {usd!r}")
    if value["event"] in ("answered", "failed"):
        if value["call"] in ended:
            raise ValueError(f"call {value['call']!r} has ended in a line before")
        ended.add(value["call"])
