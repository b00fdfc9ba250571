"""Checkpoints and arrays: Orbax behind one small file.

Orbax reaches buckets by packages of its own. Here they are reached through `Folder`, as all else
is: arrays are copies of what Orbax writes on this machine, checkpoints a file each.
"""

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from routerjax.runtime import lock, resume
from routerjax.runtime.files import CONTEXT, Folder, digest

_ANEW = "delete its folder, and the training begins anew"
_ARRAY = "/.zarray"  # What the description of an array is called.
_ITEM = "default"  # Where Orbax puts a checkpoint's arrays.
_DIGEST = "digest"  # Beside a checkpoint's arrays: OCDBT has no checksum of what it stores.


class Checkpoints:
    """The newest state of a training job, written in the background.

    Args:
      folder: Where they lie; local or a URL.
      job: JSON values that decide what the job computes. A folder of another job is refused.

    Raises:
      ValueError: The folder holds checkpoints of another job.
      lock.Locked: Another process trains there.
      OSError: The folder cannot be written.
    """

    def __init__(self, folder: Any, job: dict[str, Any]):
        self.folder = Folder(folder)
        self._closing = contextlib.ExitStack()
        self._closing.enter_context(lock.held(self.folder))
        try:
            self._open(job)
        except BaseException:
            self._closing.close()
            raise

    def _open(self, job: dict[str, Any]) -> None:
        resume.claim(self.folder, "training job", job)
        self._of = resume.owner_of(job)
        with _writing(self.folder):
            self._steps = (
                _LocalSteps(self.folder)
                if self.folder.is_local
                else _BucketSteps(self.folder, self._of)
            )

    def restore(self, like: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        """The newest checkpoint, of the names, shapes and dtypes of `like`; None without one.

        Raises:
          ValueError: It cannot be read, or is damaged.
        """
        step = self._steps.latest()
        if step is None:
            return None
        held = like | {_DIGEST: np.zeros(16, np.uint8)}
        try:
            read = self._steps.read(step)
            if read is None or _shapes(read) != _shapes(held):
                raise ValueError(f"expected {_shapes(held)}, got {read and _shapes(read)}")
        except Exception as error:  # Of any kind, by which of the files is damaged.
            raise ValueError(
                f"{self.folder.path}: checkpoint {step} cannot be read; if it is damaged, delete "
                f"the folder, and this training begins anew: {error}"
            ) from error
        if not _pop_digest(read, self._of):
            raise ValueError(
                f"{self.folder.path}: checkpoint {step} is damaged, its numbers are not those that "
                f"were written; delete the folder, and this training begins anew"
            )
        return read

    def save(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        """Writes a checkpoint; returns when the arrays are copied, not when they are on disk.

        Raises:
          OSError: This checkpoint or the one before could not be written.
        """
        held = arrays | {_DIGEST: np.frombuffer(bytes.fromhex(_digest(arrays, self._of)), np.uint8)}
        with _writing(self.folder):
            self._steps.write(step, held)

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
          OSError: A checkpoint could not be written.
        """
        with self._closing:
            with _writing(self.folder):
                self._steps.close()


class _LocalSteps:
    """Checkpoints on this machine, written in the background by Orbax."""

    def __init__(self, folder: Folder):
        self._folder = folder
        path = folder.local_path()
        # A process that was killed may have left a part of one that it wrote. Orbax's own option
        # deletes it in a thread that only the next save waits for.
        for left in path.glob(f"*{_orbax().utils.TMP_DIR_SUFFIX}*"):
            shutil.rmtree(left)
        options = _orbax().CheckpointManagerOptions(max_to_keep=1, create=True)
        self._manager = _orbax().CheckpointManager(path, options=options)
        # Or of an older one that it deleted.
        for step in self._manager.all_steps():
            if step != self._manager.latest_step():
                self._manager.delete(step)

    def latest(self) -> int | None:
        """The newest step; None without one."""
        return self._manager.latest_step()

    def read(self, step: int) -> dict[str, np.ndarray] | None:
        """The arrays of a step.

        Not by Orbax, which closes its event loop over reads that go on where another one fails:
        each of these then prints an error of its own.
        """
        return load_arrays(self._folder / str(step) / _ITEM)

    def write(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        """Keeps a step in place of the one before, once it is whole."""
        self._manager.save(step, args=_orbax().args.StandardSave(arrays))

    def close(self) -> None:
        """Waits until all is on disk."""
        try:
            self._manager.wait_until_finished()
        finally:
            # Its threads would keep a process from ending.
            self._manager.close()


class _BucketSteps:
    """As `_LocalSteps`, of files in a bucket; each is there when `write` returns."""

    def __init__(self, folder: Folder, of: str):
        self._folder, self._of = folder, of

    def latest(self) -> int | None:
        # A listing may tell of what is deleted already.
        steps = [step for step in self._steps() if self._folder.exists(_step_file(step))]
        return max(steps, default=None)

    def read(self, step: int) -> dict[str, np.ndarray] | None:
        return self._folder.read_arrays(_step_file(step), self._of)

    def write(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        before = self._steps()
        self._folder.write_arrays(_step_file(step), arrays, self._of)
        for other in set(before) - {step}:
            self._folder.delete(_step_file(other))

    def close(self) -> None:
        pass

    def _steps(self) -> list[int]:
        names = [name.removesuffix(".safetensors") for name in self._folder.list()]
        return [int(name) for name in names if name.isdecimal()]


def check_checkpoint(folder: Folder, of: str) -> None:
    """Reads a checkpoint.

    Args:
      folder: Of the step.
      of: Its job, as `resume.owner_of` says.

    Raises:
      ValueError: It is not what was written for this job.
    """
    try:
        arrays = load_arrays(folder / _ITEM)
    except ValueError as error:
        raise ValueError(f"{error}: {_ANEW}") from error
    if not _pop_digest(arrays, of):
        raise ValueError(f"{folder.path} is damaged, or the checkpoint of another job: {_ANEW}")


def _pop_digest(arrays: dict[str, np.ndarray], of: str) -> bool:
    """Takes the digest out, and says whether it is that of the others."""
    held = arrays.pop(_DIGEST, np.zeros(0)).tobytes().hex()
    # The second was written before a checkpoint's digest was of its job too.
    return held in (_digest(arrays, of), digest_of(arrays))


def _digest(arrays: dict[str, np.ndarray], of: str) -> str:
    return digest(of, digest_of(arrays))


def save_arrays(folder: Folder, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays by name, once and for all, waiting for the disk.

    Raises:
      OSError: They could not be written.
    """
    with _writing(folder), _on_disk(folder) as path:
        with _orbax().StandardCheckpointer() as checkpointer:
            checkpointer.save(path, arrays, force=True)
        if not folder.is_local:
            for name in folder.list():
                folder.delete(name)
            _copy(Folder(path), folder)


def load_arrays(folder: Folder) -> dict[str, np.ndarray]:
    """Reads what `save_arrays` wrote.

    Raises:
      ValueError: There is nothing whole in the folder.
    """
    # As Orbax writes them: zarr arrays in an OCDBT store. Its import alone takes 0.6 s.
    store = {"driver": "ocdbt", "base": folder.kvstore_spec}
    try:
        keys = ts.KvStore.open(store, context=CONTEXT).result().list().result()
        names = [key.decode().removesuffix(_ARRAY) for key in keys if key.endswith(_ARRAY.encode())]
        if not names:
            raise ValueError("there are none")
        opened = {
            name: ts.open({"driver": "zarr", "kvstore": {**store, "path": f"{name}/"}}, open=True,
                          context=CONTEXT)
            for name in names
        }  # fmt: skip
        reads = {name: array.result().read(order="C") for name, array in opened.items()}
        return {name: np.asarray(read.result()) for name, read in reads.items()}
    except Exception as error:  # Of any kind, by which of the files is damaged.
        raise ValueError(f"{folder.path} holds no whole arrays: {error}") from error


def digest_of(arrays: Mapping[str, np.ndarray]) -> str:
    """BLAKE2b (128 bits, in hexadecimal) of names, shapes and values."""
    return digest(*(
        piece for name in sorted(arrays)
        for piece in (f"{name} {np.ascontiguousarray(arrays[name]).shape}", arrays[name])
    ))  # fmt: skip


@contextlib.contextmanager
def _writing(folder: Folder) -> Iterator[None]:
    """Within it, whatever Orbax raises, by what fails and in which thread, is an OSError."""
    try:
        yield
    except Exception as error:
        raise OSError(f"cannot write the arrays in {folder.path}: {error}") from error


def _orbax() -> Any:
    """Orbax, whose import takes long, only where something is kept or read."""
    import orbax.checkpoint

    return orbax.checkpoint


@contextlib.contextmanager
def _on_disk(folder: Folder) -> Iterator[pathlib.Path]:
    """A local folder's path; for one in a bucket that of one which is deleted afterwards."""
    if folder.is_local:
        yield folder.local_path()
        return
    with tempfile.TemporaryDirectory() as here:
        yield pathlib.Path(here, "arrays")


def _copy(source: Folder, target: Folder) -> None:
    for name in source.list():
        data = source.read_bytes(name)
        if data is not None:  # A listing may tell of what is deleted already.
            target.write_bytes(name, data)


def _step_file(step: int) -> str:
    return f"{step}.safetensors"


def _shapes(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: (array.shape, str(array.dtype)) for name, array in sorted(arrays.items())}
