"""What jobs measure as they go, for whoever watches: TensorBoard, W&B, MLflow, a program's own."""

import contextlib
import importlib.util
import logging
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from routerjax.runtime.files import Folder
from routerjax.runtime.resume import append

logger = logging.getLogger(__name__)

# Takes the name of a run ("train"), the step and the numbers by name.
Callback = Callable[[str, int, Mapping[str, float]], None]

_callbacks: list[Callback] = []

_PREFIX = "events.out.tfevents."


def on_metrics(callback: Callback) -> None:
    """Has a function called with what training, sweeps of trunks and extraction measure.

    It is called until this script, or this process, ends.

        rj.on_metrics(lambda run, step, values: wandb.log({run: values}))

    Args:
      callback: Takes the run's name ("train", "extract", "trunks/..."), the step (epochs or queries
        done, also before this process) and numbers by name. Called between two steps, in the thread
        of the job. A job that was killed comes again to the steps after its last checkpoint.
    """
    _callbacks.append(callback)


@contextlib.contextmanager
def until_end() -> Iterator[None]:
    """Callbacks that are added within it are called within it only."""
    before = list(_callbacks)
    try:
        yield
    finally:
        _callbacks[:] = before


def report(run: str, step: int, values: Mapping[str, float]) -> None:
    """Calls every callback of `on_metrics`.

    Args:
      run: A name, with `/` between its parts.
      step: Steps done.
      values: Numbers by name.
    """
    for callback in _callbacks:
        callback(run, step, values)


def track(path: Any) -> None:
    """Has TensorBoard's event files written, those of a run in the folder of its name.

    Where a job comes again to a step that an earlier process has written, that step and what comes
    after it are taken out of the older files: each step is there once.

    Args:
      path: A folder of this machine.

    Raises:
      ValueError: tensorboardX is not installed, or the folder is in a bucket.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError(
            "event files for TensorBoard need tensorboardX: pip install 'routerjax[track]'"
        )
    folder = Folder(path)
    where = folder.local_path()
    files: dict[str, BinaryIO] = {}

    def write(run: str, step: int, values: Mapping[str, float]) -> None:
        if run not in files:
            _forget_from(folder / run, step)
            (where / run).mkdir(parents=True, exist_ok=True)
            name = f"{_PREFIX}{time.time():.6f}.{socket.gethostname()}"
            # Without a buffer: what a process that is killed has told is there.
            files[run] = open(where / run / name, "wb", buffering=0)
            append(files[run].fileno(), _record(file_version="brain.Event:2"), files[run].name)
        scalars = [{"tag": tag, "simple_value": value} for tag, value in values.items()]
        record = _record(step=step, summary={"value": scalars})
        append(files[run].fileno(), record, files[run].name)

    on_metrics(write)
    logger.info("for TensorBoard: tensorboard --logdir=%s", where)


def _forget_from(folder: Folder, step: int) -> None:
    """Takes what is of `step` or later out of a folder's event files."""
    for name in folder.list(_PREFIX):
        data = folder.read_bytes(name) or b""
        kept = b"".join(record for record, at in _records(data) if at < step)
        if len(kept) < len(data):
            folder.write_bytes(name, kept)


def _record(**fields: Any) -> bytes:
    """An event as a file has it: its length, a checksum of that, the event, and a checksum."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    event = Event(wall_time=time.time(), **fields).SerializeToString()
    length = struct.pack("<Q", len(event))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, event)]
    return length + sums[0] + event + sums[1]


def _records(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The records of an event file and their steps; the last one may be cut short: left out."""
    from tensorboardX.proto.event_pb2 import Event

    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        record = data[at : at + length + 16]
        if len(record) < length + 16:
            return
        yield record, Event.FromString(record[12:-4]).step
        at += len(record)
