"""Jobs that are stopped and resumed: SIGTERM, what a folder holds, progress."""

import contextlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from tqdm import tqdm

from routerjax.runtime.files import Folder


class Stopped(Exception):
    """The job was asked to end (SIGTERM) and has: what it made so far is whole and on disk.

    Attributes:
      goes_on: Whether the next run goes on from there; False where nothing of the work in hand is
        kept on the way.
    """

    def __init__(self, text: str, *, goes_on: bool = True):
        super().__init__(text)
        self.goes_on = goes_on


logger = logging.getLogger(__name__)


# Set by the signal handler, read between blocks and epochs.
_stop = threading.Event()


def stop_requested() -> bool:
    """Whether SIGTERM has come; a long loop asks after each unit it has put on disk."""
    return _stop.is_set()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGTERM asks to stop instead of killing; afterwards all is as before."""
    _stop.clear()
    before = signal.signal(signal.SIGTERM, lambda *_: _stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _stop.clear()


def log(text: str) -> None:
    """Tells the user; on process 0 only."""
    if jax.process_index() == 0:
        logger.info("%s", text)


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
    found = folder.read_json("job.json")
    if found is None:
        folder.write_json("job.json", job)
    elif found != job:
        differing = [k for k in sorted(set(found) | set(job)) if found.get(k) != job.get(k)]
        raise ValueError(
            f"{folder.path} holds the work of another {what}; different are: "
            + "; ".join(f"{k}: there {found.get(k)!r}, here {job.get(k)!r}" for k in differing)
            + ". Use another --workdir, or delete that folder"
        )


def read_part(folder: Folder, name: str) -> dict[str, np.ndarray] | None:
    """The arrays of a part that a job has finished, or None where there is no such file.

    Args:
      folder: As of `claim`.
      name: A safetensors file in it.

    Raises:
      ValueError: The file is damaged.
    """
    data = folder.read_bytes(name)
    if data is None:
        return None
    try:
        return safetensors.numpy.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{folder.path}{name} is damaged ({len(data)} bytes: {error}): delete it and run the "
            f"same command again, which makes only this part anew"
        ) from error


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
