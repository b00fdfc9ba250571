"""Turns: runs that share a device prepare side by side and measure one after the other."""

import fcntl
import os
import pathlib
from typing import IO


def take(path: pathlib.Path) -> IO[str]:
    """Waits until no other run has the lock of a file, and takes it.

    Args:
      path: The file, the same for all runs; it says whose turn it is.

    Returns:
      The open file. The turn lasts until it is closed here and in every child that it was passed
      to, or until these processes end.
    """
    file = path.open("a+")
    fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def holder(path: pathlib.Path) -> int | None:
    """The process that took the last turn; None before the first."""
    text = path.read_text() if path.exists() else ""
    return int(text) if text else None
