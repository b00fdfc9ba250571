"""Jobs that are stopped and resumed: SIGTERM, what a folder holds, progress."""

import contextlib
import errno
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from routerjax.runtime import lock
from routerjax.runtime.files import Folder, digest, unsealed

logger = logging.getLogger(__name__)

# Set by the signal handler, read between row blocks and epochs.
_stop = threading.Event()
# Set before a ^C that is not the user's.
_again = threading.Event()

JOB = "job.json"  # In a folder of unfinished work: whose it is.
_OTHER_FOLDER = "Use another --workdir, or delete that folder"
_RELEASE_SECONDS = 1.0  # At most, for the locks of a process that is given up.
_CUT_SHORT = (
    b"\nStopped: what was finished is kept, what was in hand took too long and is not. Run the "
    b"same command again.\n"
)


class Stopped(Exception):
    """The job was asked to end (SIGTERM) and has: what it made so far is whole and on disk.

    Attributes:
      goes_on: Whether the next run goes on from there; False where unfinished work is not kept.
    """

    def __init__(self, text: str, *, goes_on: bool = True):
        super().__init__(text)
        self.goes_on = goes_on


def stop_requested() -> bool:
    """Whether SIGTERM has come, or another job has taken over a lock of this one.

    A long loop asks after each unit it has put on disk.
    """
    return _stop.is_set() or lock.lost()


@contextlib.contextmanager
def stoppable(at_most: float | None = None, exit_code: int = 0) -> Iterator[None]:
    """Within it SIGTERM asks to stop instead of killing; afterwards all is as before.

    Args:
      at_most: Seconds after which the process ends, wherever it is: in a row block that takes
        longer, or in compiled code, in which Python runs no signal handler. All that jobs keep is
        written whole or not at all. So it ends after ^C where that raises KeyboardInterrupt, and
        at once after a second one. None to wait as long as it takes.
      exit_code: What it then ends with, after ^C with the shell's.
    """
    _stop.clear()
    before = signal.signal(signal.SIGTERM, lambda *_: _stop.set())
    with contextlib.ExitStack() as stack:
        if at_most is not None:
            stack.enter_context(_deadline(at_most, exit_code))
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
            _stop.clear()


@contextlib.contextmanager
def _deadline(seconds: float, exit_code: int) -> Iterator[None]:
    """Ends the process so long after SIGTERM or ^C, which a thread is told of as they come."""
    watched, told = socket.socketpair()
    told.setblocking(False)
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        deadline, interrupted = math.inf, False
        while (left := deadline - time.monotonic()) > 0:
            watched.settimeout(None if left == math.inf else left)
            with contextlib.suppress(TimeoutError):
                number = watched.recv(1)
                if not number:
                    return
                if number[0] == signal.SIGTERM:
                    _stop.set()
                elif signal.getsignal(number[0]) is not signal.default_int_handler:
                    continue
                elif _again.is_set():
                    _again.clear()
                elif interrupted:
                    break
                else:
                    interrupted = True
                deadline = min(deadline, time.monotonic() + seconds)
        lock.release_all(_RELEASE_SECONDS)
        os.write(2, _CUT_SHORT)
        os._exit(128 + signal.SIGINT if interrupted else exit_code)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        told.close()
        watcher.join()
        watched.close()


def interrupt_again() -> None:
    """Sends this process a ^C that was dropped; it counts as the first one still."""
    _again.set()
    os.kill(os.getpid(), signal.SIGINT)


def log(text: str) -> None:
    """Tells the user; on process 0 only."""
    if jax.process_index() == 0:
        logger.info("%s", text)


def append(file: int, data: bytes, path: Any) -> None:
    """Writes at the end of an open file, whole or not at all; an OSError names its path."""
    start = os.lseek(file, 0, os.SEEK_END)
    try:
        if os.write(file, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        os.ftruncate(file, start)
        raise OSError(f"cannot write {path}: {error}") from error


def what_differs(
    made: dict[str, Any], now: dict[str, Any], there: str = "there", here: str = "here"
) -> list[str]:
    """A text for each field in which a kept record and today's differ, with both values.

    `there` and `here` are what the text calls their owners.
    """
    return [
        f"{key}: {there} {made.get(key)!r}, {here} {now.get(key)!r}"
        for key in sorted(set(made) | set(now))
        if made.get(key) != now.get(key)
    ]


def owner_of(job: dict[str, Any]) -> str:
    """What the seals of a job's files say they belong to."""
    return digest(json.dumps(json.loads(json.dumps(job)), sort_keys=True))


def claim(folder: Folder, what: str, job: dict[str, Any]) -> None:
    """Marks a folder of unfinished work as that of one job, or finds it so marked.

    Args:
      folder: Where the job keeps what it has finished.
      what: The kind of work, for the error.
      job: JSON values that decide what the job computes.

    Raises:
      ValueError: The folder is that of another job; names what differs.
      OSError: The folder cannot be written.
    """
    job = json.loads(json.dumps(job))
    try:
        made = folder.read_json(JOB)
    except ValueError as error:
        raise ValueError(f"{error}: {_OTHER_FOLDER}") from error
    if made is None:
        folder.write_json(JOB, job)
    elif made != job:
        differs = what_differs(made, job) if isinstance(made, dict) else [f"{JOB}: {made!r}"]
        raise ValueError(
            f"{folder.path} holds the work of another {what}; different are: "
            + "; ".join(differs)
            + f". {_OTHER_FOLDER}"
        )


class Parts:
    """The finished parts of a job, in a folder that is the job's own, or else in memory.

    A job that can be stopped and resumed is this loop:

        parts = Parts(folder, "sweep", job)
        with progress_bar(len(names), 0, "layers", "sweep") as bar:
            for name in names:
                if not parts.exists(name):
                    parts.stop_if_asked(bar)
                    parts.write(name, compute(name))
                bar.update()

    Args:
      folder: Where they lie; None to keep them for this call only.
      what: The kind of work, for errors.
      job: JSON values that decide what the job computes.

    Raises:
      ValueError: The folder holds the work of another job; names what differs.
      OSError: The folder cannot be written.
    """

    def __init__(self, folder: Folder | None, what: str, job: dict[str, Any]):
        self.folder = folder
        self._kept: dict[str, Any] = {}
        self._of = owner_of(job)
        if folder is not None:
            claim(folder, what, job)

    def exists(self, name: str) -> bool:
        """Whether the part of this name is finished."""
        return name in self._kept if self.folder is None else self.folder.exists(name)

    @contextlib.contextmanager
    def taken(self, names: Sequence[str], most: int) -> Iterator[list[str]]:
        """Takes parts that are not finished, which other processes leave alone meanwhile.

        Where others have all of them in hand, the first is waited for until it is seen whether its
        process still runs.

        Args:
          names: To choose from.
          most: How many at most.

        Yields:
          The names taken; none where others have all of them in hand or have finished them.
        """
        with contextlib.ExitStack() as stack:
            mine: list[str] = []
            for name in names:
                if len(mine) < most and self._take(stack, name, wait=False):
                    mine.append(name)
            if not mine:
                mine = [name for name in names[:1] if self._take(stack, name, wait=None)]
            yield mine

    def _take(self, stack: contextlib.ExitStack, name: str, wait: bool | None) -> bool:
        """Whether a part is not finished and nobody else's; then it is this process's."""
        if not self.exists(name):
            with contextlib.suppress(lock.Locked):
                stack.enter_context(lock.held(self.folder, f"{name}.lock", wait))
                # Who held it may have finished it before.
                return not self.exists(name)
        return False

    def list(self, prefix: str) -> list[str]:
        """The names of finished parts that start with `prefix`, sorted."""
        if self.folder is None:
            return sorted(name for name in self._kept if name.startswith(prefix))
        return self.folder.list(prefix)

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of a part, or None where it is not finished.

        Raises:
          ValueError: The file is damaged.
        """
        if self.folder is None:
            return self._kept.get(name)
        with self._only_this():
            return self.folder.read_arrays(name, self._of)

    def write(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Keeps the arrays of a part, whole or not at all, as a safetensors file."""
        if self.folder is None:
            self._kept[name] = arrays
        else:
            self.folder.write_arrays(name, arrays, self._of)

    def read_json(self, name: str) -> Any:
        """The JSON value of a part, or None where it is not finished.

        Raises:
          ValueError: The file is damaged.
        """
        if self.folder is None:
            return self._kept.get(name)
        with self._only_this():
            made = self.folder.read_json(name)
            if not isinstance(made, dict) or "seal" not in made:
                return made  # Written before parts were sealed.
            made = unsealed(made, self.folder.path, name, self._of)
            return made["value"] if made.keys() == {"value"} else made

    def write_json(self, name: str, value: Any) -> None:
        """Keeps the JSON value of a part, whole or not at all."""
        if self.folder is None:
            self._kept[name] = value
        else:
            # Only an object has room for a seal.
            flat = isinstance(value, dict) and value.keys() != {"value"}
            self.folder.write_sealed(name, value if flat else {"value": value}, of=self._of)

    @contextlib.contextmanager
    def _only_this(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise ValueError(
                f"{error}: delete it and run the same command again, which makes only this part "
                f"anew"
            ) from error

    def stop_if_asked(self, bar: tqdm) -> None:
        """Ends the job where SIGTERM has come; `bar` counts the parts that are done.

        Raises:
          Stopped: SIGTERM came.
        """
        if stop_requested():
            unit = bar.unit.strip()
            raise Stopped(
                f"Stopped with {bar.total - bar.n} of {bar.total} {unit} to go.",
                goes_on=self.folder is not None,
            )


def progress_bar(total: int, done: int, unit: str, what: str) -> tqdm:
    """A bar on process 0's standard error; a line every ten seconds where that is a file.

    Args:
      total: Units of the whole job.
      done: Units that an earlier run did.
      unit: Their name, in the plural.
      what: What the job is doing.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        unit=f" {unit}",
        desc=what,
        disable=jax.process_index() != 0,
        mininterval=0.5 if terminal else 10.0,
        dynamic_ncols=terminal,
        # In a file each state of the bar is a line of its own.
        bar_format=None if terminal else "{l_bar}{bar:10}{r_bar}\n",
        ascii=not terminal,
    )
