"""Checkpoints: Orbax behind one small file."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from routerjax.runtime import lock, resume
from routerjax.runtime.files import Folder, digest

_ANEW = "delete its folder, and the training begins anew"
_DIGEST = "digest"  # Beside a checkpoint's arrays: OCDBT has no checksum of what it stores.


class Checkpoints:
    """The newest state of a training job, written in the background.

    Args:
      folder: Where they lie; local or a URL that Orbax opens.
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
        path = self.folder.local_path() if self.folder.is_local else self.folder.path
        self._orbax = _orbax()
        # A process that was killed may have left a part of one that it wrote.
        options = self._orbax.CheckpointManagerOptions(
            max_to_keep=1, create=True, cleanup_tmp_directories=True
        )
        with _writing(self.folder):
            self._manager = self._orbax.CheckpointManager(path, options=options)
            # Or of an older one that it deleted.
            for step in self._manager.all_steps():
                if step != self._manager.latest_step():
                    self._manager.delete(step)

    def restore(self, like: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        """The newest checkpoint, of the names, shapes and dtypes of `like`; None without one.

        Raises:
          ValueError: It cannot be read, or is damaged.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        held = like | {_DIGEST: np.zeros(16, np.uint8)}
        try:
            read = self._manager.restore(step, args=self._orbax.args.StandardRestore(held))
        except Exception as error:  # Of any kind, by which of the files is damaged.
            raise ValueError(
                f"{self.folder.path}: checkpoint {step} cannot be read; if it is damaged, delete "
                f"the folder, and this training begins anew: {error}"
            ) from error
        result = {name: np.asarray(value) for name, value in read.items()}
        if not _pop_digest(result, self._of):
            raise ValueError(
                f"{self.folder.path}: checkpoint {step} is damaged, its numbers are not those that "
                f"were written; delete the folder, and this training begins anew"
            )
        return result

    def save(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        """Writes a checkpoint; returns when the arrays are copied, not when they are on disk.

        Raises:
          OSError: This checkpoint or the one before could not be written.
        """
        held = arrays | {_DIGEST: np.frombuffer(bytes.fromhex(_digest(arrays, self._of)), np.uint8)}
        with _writing(self.folder):
            self._manager.save(step, args=self._orbax.args.StandardSave(held))

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
          OSError: A checkpoint could not be written.
        """
        with self._closing:
            try:
                with _writing(self.folder):
                    self._manager.wait_until_finished()
            finally:
                # Its threads would keep a process from ending.
                self._manager.close()


def check_checkpoint(folder: Folder, of: str) -> None:
    """Reads a checkpoint.

    Args:
      folder: Of the step.
      of: Its job, as `resume.owner_of` says.

    Raises:
      ValueError: It is not what was written for this job.
    """
    try:
        whole = _pop_digest(load_arrays(folder / "default"), of)
    except ValueError as error:
        raise ValueError(f"{error}: {_ANEW}") from error
    if not whole:
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
    with _writing(folder), _orbax().StandardCheckpointer() as checkpointer:
        checkpointer.save(_path(folder), arrays, force=True)


def load_arrays(folder: Folder) -> dict[str, np.ndarray]:
    """Reads what `save_arrays` wrote.

    Raises:
      ValueError: There is nothing whole in the folder.
    """
    try:
        with _orbax().StandardCheckpointer() as checkpointer:
            result = checkpointer.restore(_path(folder))
    except Exception as error:  # Of any kind, by which of the files is damaged.
        raise ValueError(f"{folder.path} holds no whole arrays: {error}") from error
    return {name: np.asarray(value) for name, value in result.items()}


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


def _path(folder: Folder) -> Any:
    return folder.local_path() if folder.is_local else folder.path
