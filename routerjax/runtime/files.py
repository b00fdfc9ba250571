"""Folders, local or in a bucket: small files written whole or not at all.

Everything routerjax writes goes through a `Folder`, which is a thin layer over TensorStore's
key-value store. A write is atomic there (local files: a temporary file, fsync, rename), so a reader
never sees half a file, and the same code serves a local disk, `gs://`, `s3://` and `memory://`.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors.numpy
import tensorstore as ts

# One context for the process: `memory://` folders (tests) see each other only inside one, and the
# file pool is shared. No cache: stores are streamed, and nothing is read twice soon.
CONTEXT = ts.Context({"cache_pool": {"total_bytes_limit": 0}})


class Folder:
    """A folder of files, addressed by relative names with `/` between the parts.

    Args:
      path: A local path, or a URL that TensorStore's key-value stores open (`gs://bucket/path`,
        `s3://bucket/path`, `file:///path`, `memory://name`). It need not exist yet. `s3://` is
        where AWS_ENDPOINT_URL says, if it does.

    Raises:
      ValueError: The path is empty, or no TensorStore driver opens it.
    """

    def __init__(self, path: "str | os.PathLike[str] | Folder"):
        text: str = path.path if isinstance(path, Folder) else os.fspath(path)
        if not text.strip():
            raise ValueError(f"expected the path of a folder, got {text!r}: for this one write .")
        self.path: str
        if "://" in text:
            self.path = text.rstrip("/") + "/"
            spec: Any = _store_of(self.path)
        else:
            # The file driver refuses `..`, which goes by the names here: links stay as they are.
            self.path = os.path.abspath(pathlib.Path(text).expanduser()) + "/"
            spec = {"driver": "file", "path": self.path}
        try:
            self._kv = ts.KvStore.open(spec, context=CONTEXT).result()
        except Exception as error:
            raise ValueError(
                f"cannot open the folder {text!r}: expected a local path or a URL with a driver of "
                f"TensorStore (gs://, s3://, file://, memory://): {error}"
            ) from error

    def __repr__(self) -> str:
        return f"Folder({self.path!r})"

    def __truediv__(self, name: str) -> "Folder":
        return Folder(self.path + name)

    @property
    def kvstore_spec(self) -> dict[str, Any]:
        """The key-value store as JSON, for opening a TensorStore array in this folder."""
        return self._kv.spec().to_json()

    @property
    def is_local(self) -> bool:
        """Whether the files lie on a file system of this machine."""
        return self.kvstore_spec.get("driver") == "file"

    def local_path(self) -> pathlib.Path:
        """The folder as a path of this machine's file system.

        Raises:
          ValueError: The folder is remote.
        """
        if not self.is_local:
            raise ValueError(f"{self.path} is not a folder of this machine")
        return pathlib.Path(self.kvstore_spec["path"])

    def read_bytes(self, name: str) -> bytes | None:
        """The content of `name`, or None where there is no such file."""
        return self.read_stamped(name)[0]

    def digest(self, name: str) -> str | None:
        """A digest of the content of `name`, or None where there is no such file."""
        data = self.read_bytes(name)
        return None if data is None else digest(data)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes `data` to `name`, whole or not at all.

        Raises:
          OSError: The folder cannot be written (permissions, a full disk, a lost connection).
        """
        try:
            self._kv.write(name, data).result()
        except Exception as error:
            raise OSError(f"cannot write {self.path}{name}: {error}") from error

    def read_stamped(self, name: str) -> tuple[bytes | None, bytes]:
        """As `read_bytes`, and the file's generation, which each write of it changes."""
        try:
            result = self._kv.read(name).result()
        except Exception as error:
            raise OSError(f"cannot read {self.path}{name}: {error}") from error
        return bytes(result.value) if result.state == "value" else None, result.stamp.generation

    def write_if(self, generation: bytes, name: str, data: bytes | None) -> bytes | None:
        """As `write_bytes`, or `delete` for None, where the file is still of this generation.

        Returns:
          The new generation; None where the file was of another one and stays as it is.
        """
        try:
            stamp = self._kv.write(name, data, if_equal=generation).result()
        except Exception as error:
            raise OSError(f"cannot write {self.path}{name}: {error}") from error
        return stamp.generation or None

    def read_json(self, name: str) -> Any:
        """The JSON value in `name`, or None where there is no such file.

        Raises:
          ValueError: The file is there but is not JSON.
        """
        data = self.read_bytes(name)
        if data is None:
            return None
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path}{name} is not valid JSON: {error}") from error

    def write_json(self, name: str, value: Any, indent: int | None = 2) -> None:
        """Writes `value` as strict JSON: a NaN or an infinity becomes null."""
        self.write_bytes(name, json_bytes(value, indent))

    def read_versioned(
        self, name: str, version: int, what: str, make: str, of: str = ""
    ) -> dict[str, Any]:
        """The JSON object in `name`, whose field `schema_version` is checked and left out.

        Args:
          name: Of the file.
          version: The schema version that is read.
          what: What the file is, for errors.
          make: The command that makes one, for errors, such as "run probe".
          of: As it was written.

        Raises:
          ValueError: There is no such file, or it is not JSON, of another version, or not as
            `write_sealed` wrote it; one without a seal was written before there were seals.
        """
        try:
            value = self.read_json(name)
            if value is not None:
                made_by = value.get("schema_version") if isinstance(value, dict) else None
                if made_by != version:
                    raise ValueError(
                        f"{self.path}{name}: this routerjax reads schema version {version}, got "
                        f"{made_by!r}"
                    )
                value = unsealed(value, self.path, name, of, always=False)
        except ValueError as error:
            raise ValueError(f"{error}: {make} again with it, or copy the file anew") from error
        if value is None:
            raise ValueError(f"{self.path} holds no {what} ({name}): {make} first")
        del value["schema_version"]
        return value

    def read_sealed(self, name: str, of: str = "", always: bool = True) -> dict[str, Any] | None:
        """The JSON object that `write_sealed` put into `name`, or None where there is no such file.

        Args:
          name: Of the file.
          of: As it was written.
          always: Whether a file without a seal is refused.

        Raises:
          ValueError: The file is there but is not JSON, or not what was written.
        """
        value = self.read_json(name)
        return None if value is None else unsealed(value, self.path, name, of, always)

    def write_sealed(
        self, name: str, value: dict[str, Any], indent: int | None = 2, of: str = ""
    ) -> None:
        """As `write_json`, with a digest of the value and its name as a field `seal` of it.

        Args:
          name: Of the file.
          value: JSON values.
          indent: Of the text.
          of: What the file belongs to, as text; the seal is of this too.
        """
        value = _finite(value)
        self.write_json(name, value | {"seal": _seal(name, value, of)}, indent)

    def read_arrays(self, name: str, of: str = "") -> dict[str, np.ndarray] | None:
        """The arrays that `write_arrays` put into `name`, or None where there is no such file.

        Arrays of a file without a seal, as all were once, are what they are.

        Raises:
          ValueError: The file is not what was written.
        """
        data = self.read_bytes(name)
        if data is None:
            return None
        try:
            arrays = safetensors.numpy.load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            seal = header.get("__metadata__", {}).get("seal")
        except Exception as error:  # Also KeyError and others, by what is damaged.
            raise ValueError(
                f"{self.path}{name} is damaged ({len(data)} bytes: {error})"
            ) from error
        if seal not in (None, _seal(name, _array_digests(arrays), of)):
            raise _changed(self.path, name)
        return arrays

    def write_arrays(self, name: str, arrays: dict[str, np.ndarray], of: str = "") -> None:
        """Writes arrays as a safetensors file, with a seal among its metadata.

        Args:
          name: Of the file.
          arrays: By name.
          of: As in `write_sealed`.
        """
        seal = _seal(name, _array_digests(arrays), of)
        self.write_bytes(name, safetensors.numpy.save(arrays, {"seal": seal}))

    def exists(self, name: str) -> bool:
        """Whether the file `name` is there."""
        return self.read_bytes(name) is not None

    def list(self, prefix: str = "") -> list[str]:
        """The names of all files that start with `prefix`, sorted."""
        try:
            return sorted(name.decode() for name in self._kv.list(_starting_with(prefix)).result())
        except Exception as error:
            raise OSError(f"cannot list {self.path}{prefix}: {error}") from error

    def delete(self, name: str) -> None:
        """Removes `name`; nothing happens where there is no such file."""
        try:
            self._kv.write(name, None).result()
        except Exception as error:
            raise OSError(f"cannot delete {self.path}{name}: {error}") from error

    def delete_all(self, prefix: str) -> None:
        """Removes all files whose names start with `prefix`, and what killed writes left there."""
        try:
            self._kv.delete_range(_starting_with(prefix)).result()
        except Exception as error:
            raise OSError(f"cannot delete {self.path}{prefix}: {error}") from error


def _store_of(url: str) -> Any:
    """What TensorStore opens for a URL: it does not look at AWS's variable of the endpoint."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not (endpoint and url.startswith("s3://")):
        return url
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return ts.KvStore.Spec(url).to_json() | {"endpoint": endpoint, "aws_region": region}


def json_bytes(value: Any, indent: int | None = 2) -> bytes:
    """What `Folder.write_json` writes."""
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def is_json(text: bytes) -> bool:
    """Whether a text is a JSON value."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def unsealed(value: Any, path: str, name: str, of: str = "", always: bool = True) -> dict[str, Any]:
    """What `Folder.write_sealed` was given, of the JSON value that it wrote.

    Args:
      value: As `Folder.read_json` returns it.
      path: Of the folder, for the error.
      name, of, always: As `Folder.read_sealed` takes them.

    Raises:
      ValueError: It is not what was written.
    """
    content = dict(value) if isinstance(value, dict) else {}
    seal = content.pop("seal", None)
    if always or seal is not None or not isinstance(value, dict):
        # The second was written before names were sealed too.
        if seal not in (_seal(name, content, of), digest(json.dumps(content, sort_keys=True))):
            raise _changed(path, name)
    return content


@contextlib.contextmanager
def fields_of(path: str, remedy: str) -> Iterator[None]:
    """Within it, a field that is missing or of another kind than expected is told of in a line.

    Args:
      path: Of the file whose fields are read.
      remedy: What to do.

    Raises:
      ValueError: One is.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(
            f"{path} is not as it was written, a field is missing or of another kind ({kind}"
            f"{error}): {remedy}"
        ) from error


def stand_in(path: pathlib.Path) -> str:
    """What lies at a path in place of the file that is meant, in words; "" where nothing is known.

    Raises:
      OSError: It cannot be read.
    """
    if path.is_fifo() or path.is_char_device():
        return "a pipe or a device, and files are read more than once: write it into a file first"
    with path.open("rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file: fetch it with `git lfs pull`"
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not the file: download it again"
    if start.startswith(b"<?xml"):
        return "an XML page, such as servers answer errors with, not the file: download it again"
    return ""


def digest(*pieces: Any, size: int = 16) -> str:
    """BLAKE2b of pieces one after the other, in hexadecimal.

    Args:
      pieces: Text (UTF-8), bytes, or arrays (their values in C order).
      size: Bytes of the digest.

    Raises:
      UnicodeEncodeError: A text holds half a surrogate pair.
    """
    state = hashlib.blake2b(digest_size=size)
    for piece in pieces:
        if isinstance(piece, str):
            piece = piece.encode()
        state.update(piece if isinstance(piece, bytes) else np.ascontiguousarray(piece).data)
    return state.hexdigest()


def _starting_with(prefix: str) -> ts.KvStore.KeyRange:
    past = prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else ""  # the first name after them
    return ts.KvStore.KeyRange(prefix, past)


def _seal(name: str, value: Any, of: str) -> str:
    """A digest of a JSON value, however it is laid out, its file's name and its owner."""
    return digest(json.dumps([name, of, value], sort_keys=True))


def _array_digests(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    return {key: digest(f"{a.dtype} {a.shape} ", a) for key, a in arrays.items()}


def _changed(path: str, name: str) -> ValueError:
    return ValueError(
        f"{path}{name} is not as it was written: its content and its seal differ, so that the file "
        f"was changed or damaged, or is another file"
    )


def _finite(value: Any) -> Any:
    """`value` with NumPy scalars and arrays as plain ones and non-finite floats as None."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist") and not isinstance(value, str | bytes):
        return _finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
