"""Locks: a folder, local or in a bucket, is one job's at a time, across processes and machines.

A lock is a small JSON file that says whose it is and that its holder renews while it runs. Every
change of it is a conditional write of TensorStore's key-value stores, done only where the file is
still as it was last seen: of two jobs that want a lock at once one gets it.
"""

import atexit
import contextlib
import dataclasses
import datetime
import json
import logging
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator

from routerjax.runtime.files import Folder

logger = logging.getLogger(__name__)

NAME = "lock.json"
# Seconds between renewals, and without one after which a lock is taken over from another machine.
RENEWED_EVERY = 10.0
STALE_AFTER = 60.0
# A time written so many seconds ago is believed without watching: no two clocks differ as much.
_LONG_AGO = 3600.0
_POLL_SECONDS = 0.5

# The locks that this process holds, and those among them that it keeps until the script ends.
_held: set["_Lock"] = set()
_kept: dict[str, "_Lock"] = {}


class Locked(RuntimeError):
    """Another job holds the lock; the text says whose it is and what to do."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """What a lock says of its holder.

    Attributes:
      program: The script or program that runs.
      host: Name of its machine.
      machine: Where the process number has a meaning: the boot and the namespace of processes.
      process: Its number.
      begun: When the process began, in the ticks of its machine, so that another one of the same
        number is told from it; None where that is not known.
      since: When it took the lock, ISO 8601.
      renewed: When it last wrote this, seconds since 1970 by its clock.
      token: Random, of this lock alone.
    """

    program: str
    host: str
    machine: str
    process: int
    begun: int | None
    since: str
    renewed: float
    token: str

    @classmethod
    def here(cls) -> "Holder":
        """This process, from now on."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        program = pathlib.Path(sys.argv[0] or "python").stem
        token = secrets.token_hex(8)
        return cls(program, socket.gethostname(), _machine(), os.getpid(), _begun(os.getpid()), now,
                   time.time(), token)  # fmt: skip

    @classmethod
    def parse(cls, data: bytes) -> "Holder | None":
        """The holder that a file names; None where it is damaged."""
        try:
            value = json.loads(data)
            holder = cls(**value)
        except (ValueError, TypeError, RecursionError):
            return None
        # Other numbers are of no process: os.kill takes them for groups, or not at all.
        known = type(holder.process) is int and 0 < holder.process < 2**31
        whole = known and isinstance(holder.renewed, float)
        return holder if whole else None

    def has_ended(self) -> bool | None:
        """Whether the process is gone; None where this machine cannot say."""
        if self.machine != _machine():
            return None
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # It is another user's.
        begun = _begun(self.process)
        return None not in (self.begun, begun) and self.begun != begun

    def to_bytes(self) -> bytes:
        """The file, renewed now."""
        value = dataclasses.asdict(self) | {"renewed": time.time()}
        return (json.dumps(value, indent=2) + "\n").encode()


@contextlib.contextmanager
def held(folder: Folder | None, name: str = NAME, wait: bool | None = None) -> Iterator[None]:
    """Within it a lock is this call's; no other job, of this process either, gets it.

    A lock whose process is gone from this machine is taken over at once, and one of another machine
    after STALE_AFTER seconds without a renewal. A process that was halted for so long finds its
    lock taken over: from then on `lost` is True.

    Args:
      folder: Where the lock lies; None for no lock.
      name: Of its file.
      wait: True to wait until it is free, False for not at all; None for only as long as it takes
        to see whether a holder on another machine still runs.

    Raises:
      Locked: Another job holds it.
      OSError: The folder cannot be written.
    """
    if folder is None:
        yield
        return
    lock = _Lock(folder, name, wait)
    try:
        yield
    finally:
        lock.release()


def keep(folder: Folder) -> None:
    """Takes the lock of a folder until `release_kept` or the end of the process.

    Nothing happens where this process keeps it already.

    Raises:
      Locked, OSError: As `held`.
    """
    if folder.path not in _kept:
        _kept[folder.path] = _Lock(folder, NAME)


@atexit.register
def release_kept() -> None:
    """Gives back all that `keep` took."""
    while _kept:
        _kept.popitem()[1].release()


def release_all(seconds: float) -> None:
    """Gives back all locks of this process, which is about to end; waits for so long at most."""
    threads = [threading.Thread(target=held.release, daemon=True) for held in list(_held)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0))


def lost() -> bool:
    """Whether another job has taken over a lock that this process thinks it holds."""
    return any(lock.lost for lock in _held)


class _Lock:
    """A lock that is held, and the thread that renews it."""

    def __init__(self, folder: Folder, name: str, wait: bool | None = None):
        self._folder, self._name, self._holder = folder, name, Holder.here()
        self._generation = self._take(wait)
        self.lost = False
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()
        _held.add(self)

    def release(self) -> None:
        """Gives the lock back."""
        _held.discard(self)
        self._released.set()
        # A write may hang on a lost connection: then the lock is left to become stale.
        self._thread.join(RENEWED_EVERY)
        ours = self._holder.process == os.getpid() and not self.lost  # Not in a forked process.
        if ours and not self._thread.is_alive():
            with contextlib.suppress(OSError):
                self._folder.write_if(self._generation, self._name, None)

    def _take(self, wait: bool | None) -> bytes:
        """Writes the lock where it is free or stale; returns the file's generation."""
        seen, seen_at, told = None, 0.0, False
        while True:
            data, generation = self._folder.read_stamped(self._name)
            holder = None if data is None else Holder.parse(data)
            if holder is not None and holder.token == self._holder.token:
                return generation  # By a write whose answer was lost.
            gone = None if holder is None else holder.has_ended()
            renewed = seen not in (None, generation)
            if generation != seen:
                seen, seen_at = generation, time.monotonic()
            stale = time.monotonic() - seen_at > STALE_AFTER
            if holder is not None and time.time() - holder.renewed > _LONG_AGO:
                stale = True
            if data is None or gone or (stale and gone is None):
                ours = self._folder.write_if(generation, self._name, self._holder.to_bytes())
                if ours is None:
                    continue  # Another job was quicker.
                if data is not None:
                    logger.warning("%s", self._text(holder, "was left by a job that has ended"))
                return ours
            if wait is False or (wait is None and (renewed or gone is False)):
                raise Locked(
                    self._text(holder, "is in use")
                    + ": wait until that has ended, or end it, or use another folder"
                )
            if not told:
                then = "" if wait else f" for at most {STALE_AFTER:.0f} s, to see whether it runs"
                logger.info("%s: waiting%s", self._text(holder, "is in use"), then)
                told = True
            time.sleep(_POLL_SECONDS)

    def _text(self, holder: Holder | None, state: str) -> str:
        where = f"{self._folder.path} {state} ({self._name}"
        if holder is None:
            return f"{where} is damaged)"
        return (
            f"{where}: {holder.program}, process {holder.process} on {holder.host}, since "
            f"{holder.since})"
        )

    def _renew(self) -> None:
        while not self._released.wait(RENEWED_EVERY):
            with contextlib.suppress(OSError):  # The store may be back at the next renewal.
                ours = self._folder.write_if(self._generation, self._name, self._holder.to_bytes())
                self.lost = ours is None and not self._is_ours()
                if self.lost:
                    logger.warning(
                        "%s%s is no longer this job's, because it was halted for long or the file "
                        "was changed: it stops",
                        self._folder.path, self._name,
                    )  # fmt: skip
                    return
                self._generation = ours or self._generation

    def _is_ours(self) -> bool:
        """Whether the file is as this lock wrote it, by a write whose answer was lost."""
        data, generation = self._folder.read_stamped(self._name)
        holder = None if data is None else Holder.parse(data)
        if holder is None or holder.token != self._holder.token:
            return False
        self._generation = generation
        return True


def _machine() -> str:
    """What tells machines, and containers that number processes on their own, from each other."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _begun(process: int) -> int | None:
    """When a process of this machine began, in ticks since its boot; -1 where it has ended."""
    try:
        # The name, in parentheses, may hold blanks and parentheses itself.
        stat = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return -1 if stat[0] in "ZX" else int(stat[19])
    except (OSError, ValueError, IndexError):
        return None
