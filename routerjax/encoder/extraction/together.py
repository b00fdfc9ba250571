"""What the processes of an extraction do for each other: measure prompts in parts, and wait.

Each process tokenises a range of the queries and writes their lengths into `lengths/` of the store,
a file a process; process 0 reads these, orders the rows and makes the store. Tokens are not passed
on: a process tokenises the row blocks that it captures beside its devices.
"""

import concurrent.futures
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import jax

from routerjax.data.dataset import RoutingDataset
from routerjax.encoder.extraction.plan import Measured, measure
from routerjax.encoder.prompts import Prompter
from routerjax.runtime import processes, resume
from routerjax.runtime.files import Folder, digest

# Seconds between looks at what other processes have made.
_WAIT_SECONDS = 0.5
# Seconds that a process waits to see what another one has made, before it raises.
_UNSEEN_SECONDS = 60.0
_LENGTHS = "lengths/"
_AT_ONCE = 32  # Files that are read or removed at once.


def measure_together(
    prompter: Prompter, data: RoutingDataset, store: Folder, identity: dict[str, Any]
) -> Measured | None:
    """Measures this process's range of the queries.

    A range that an earlier run of the same job has measured is not measured again.

    Args:
      prompter: Of the encoder.
      data: The queries of the job, the same in all processes.
      store: The folder of the store, which is not there yet.
      identity: Of the store.

    Returns:
      In process 0, once all have done their part, what is known of all queries; None in others.

    Raises:
      ValueError: A query cannot be read, or process 0 does not see what another one has written.
      resume.Stopped: SIGTERM came, or another process has ended.
    """
    n_queries, n = len(data.ids), jax.process_count()
    edges = [n_queries * i // n for i in range(n + 1)]
    ranges = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
    # The identity knows the queries, but not their order in the file.
    job = identity | {"order": digest("\0".join(data.ids))}
    folder = store / f"{_LENGTHS}{resume.owner_of(job)[:16]}"
    parts = resume.Parts(folder, "extraction", job)
    mine = ranges[jax.process_index()]
    if mine.start < mine.stop:
        if not parts.exists(_name(mine)):
            parts.write(_name(mine), measure(prompter, data, mine)[0]._asdict())
        processes.tell_made(f"{folder.path}{_name(mine)}")
    if jax.process_index():
        return None
    names = [_name(rows) for rows in ranges if rows.start < rows.stop]

    def missing() -> str | None:
        there = set(parts.list(""))
        return next((f"{folder.path}{name}" for name in names if name not in there), None)

    wait_for(missing, "the lengths", "Stopped before all prompts were measured")

    def read(name: str) -> Measured:
        arrays = parts.read(name)
        assert arrays is not None  # It was there.
        return Measured(**arrays)

    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as readers:
        return Measured.joined(list(readers.map(read, names)))


def forget_lengths(store: Folder) -> None:
    """Removes what `measure_together` wrote: rows.json holds it now."""
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as deleters:
        list(deleters.map(store.delete, store.list(_LENGTHS)))


def wait_for(missing: Callable[[], str | None], what: str, stopped: str) -> None:
    """Waits for what other processes make.

    A shared file system may show it a little later than the coordination service tells of it.

    Args:
      missing: The path of the first thing that is not seen yet, None where all is.
      what: What it is, for errors.
      stopped: The text of `Stopped`.

    Raises:
      ValueError: Another process has made it, and this one does not see it.
      resume.Stopped: SIGTERM came, or another process has ended.
    """
    waited, last = None, math.inf

    def seen() -> bool:
        nonlocal waited, last
        path = missing()
        if path is None:
            return True
        if path != waited:
            waited, last = path, math.inf
        if last == math.inf and processes.made_elsewhere(path):
            last = time.monotonic() + _UNSEEN_SECONDS
        if time.monotonic() > last:
            raise ValueError(
                f"process {jax.process_index()} does not see {what} {path} that another process "
                f"has made: --store must be a folder that all processes see, or a bucket"
            )
        return False

    wait_until(seen, lambda: resume.Stopped(f"{stopped}{because()}."))


def wait_until(done: Callable[[], bool], stopped: Callable[[], resume.Stopped]) -> None:
    """Waits for what another process is to do; not for one that has ended early."""
    while not done():
        if must_stop():
            # Who has ended may have finished since the look above.
            if done():
                return
            raise stopped()
        time.sleep(_WAIT_SECONDS)


def must_stop() -> bool:
    """Whether SIGTERM has come, or another process has ended: then none goes on alone."""
    return resume.stop_requested() or bool(processes.ended_elsewhere())


def because() -> str:
    """Why this process stops, where it was not asked to itself."""
    ended = processes.ended_elsewhere()
    if not ended or resume.stop_requested():
        return ""
    return f", because process {ended[0]} has ended"


def _name(rows: slice) -> str:
    return f"{rows.start}-{rows.stop}.safetensors"
