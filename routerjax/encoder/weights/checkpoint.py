"""Checkpoint: the tensors of a folder of safetensors, read a few rows at a time.

Read, not mapped: a mapped page counts as resident until the system wants it back, so that a mapped
checkpoint ends up in memory as a second copy of the model.
"""

import functools
import json
import logging
import math
import pathlib
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from routerjax.encoder.families.key_tables import Table
from routerjax.encoder.families.registry import FAMILIES

logger = logging.getLogger(__name__)

_DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}


class Tensors(Protocol):
    """What the loader reads: the tensors of a checkpoint of any format.

    Attributes:
      folder: Where the checkpoint lies; errors name it.
    """

    folder: pathlib.Path

    def tables(self, family: str) -> tuple[Table, ...]:
        """The key tables of a family in this format, one a layout."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{key: shape} of all tensors."""

    def dtype(self, key: str) -> np.dtype:
        """The dtype of what `rows` returns of a tensor.

        Raises:
          ValueError: The tensor is of a type that is not supported.
        """

    def rows(self, key: str, start: int, stop: int, n_axes: int = 1) -> np.ndarray:
        """[stop - start, ...] some of a tensor's rows; memory of their own.

        Args:
          key: The tensor; it has at least one axis.
          start: First row.
          stop: The row after the last.
          n_axes: How many first axes count as one, that of the rows.

        Raises:
          ValueError: The file has changed or cannot be read.
        """


class _Held(NamedTuple):
    """Where a tensor lies: its file, first byte there, safetensors' name of its dtype, shape."""

    path: pathlib.Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


class Checkpoint(Tensors):
    """Every tensor of `model.safetensors`, or of the shards that an index names.

    Args:
      folder: Holds them.

    Raises:
      ValueError: No safetensors, or a damaged file.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._held: dict[str, _Held] = {}
        for path in _files(folder):
            self._held |= _header(path)

    def tables(self, family: str) -> tuple[Table, ...]:
        return FAMILIES[family].tables

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: held.shape for key, held in self._held.items()}

    def dtype(self, key: str) -> np.dtype:
        name = self._held[key].dtype
        if name not in _DTYPES:
            raise ValueError(
                f"{self.folder}: the tensor {key!r} is {name}, of which routerjax reads only "
                f"{', '.join(_DTYPES)}"
            )
        return np.dtype(_DTYPES[name])

    def rows(self, key: str, start: int, stop: int, n_axes: int = 1) -> np.ndarray:
        held, dtype = self._held[key], self.dtype(key)
        row = held.shape[n_axes:]
        row_bytes = math.prod(row) * dtype.itemsize
        n_bytes = (stop - start) * row_bytes
        try:
            result = np.fromfile(
                held.path, np.uint8, n_bytes, offset=held.offset + start * row_bytes
            )
        except OSError as error:
            raise ValueError(f"{held.path}: cannot read the tensor {key!r}: {error}") from error
        if len(result) < n_bytes:
            raise ValueError(
                f"{held.path}: cannot read the tensor {key!r}: the file ends within it"
            )
        return result.view(dtype).reshape(stop - start, *row)

    def columns(self, key: str, start: int, stop: int) -> np.ndarray:
        """[rows, stop - start] some columns of a tensor of two axes.

        Raises:
          ValueError: As of `rows`.
        """
        held, dtype = self._held[key], self.dtype(key)
        n_rows, n_columns = held.shape
        result = np.empty((n_rows, (stop - start) * dtype.itemsize), np.uint8)
        try:
            with held.path.open("rb", buffering=0) as file:
                for i, row in enumerate(result):
                    file.seek(held.offset + (i * n_columns + start) * dtype.itemsize)
                    if file.readinto(row.data) < len(row):
                        raise OSError("the file ends within it")
        except OSError as error:
            raise ValueError(f"{held.path}: cannot read the tensor {key!r}: {error}") from error
        return result.view(dtype)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    index = folder / "model.safetensors.index.json"
    # Where a folder has both, Hugging Face takes the single file.
    if index.is_file() and not (folder / "model.safetensors").is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            if not all(isinstance(name, str) for name in names):
                raise TypeError("weight_map: expected names of files")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{index} is not a safetensors index: {error!r}") from error
        outside = [n for n in names if {"", "..", "/"} & {*pathlib.PurePath(n).parts} or "\0" in n]
        if outside or not names:
            raise ValueError(
                f"{index}: weight_map: expected names of files in this folder, got "
                f"{outside[0] if outside else 'none'!r}"
            )
    else:
        names = ["model.safetensors"]
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"{folder}: {', '.join(absent)} is missing{_hint(folder)}")
    if (folder / "adapter_config.json").is_file():
        logger.warning("%s: the adapter beside the weights is not applied to them", folder)
    return [folder / name for name in names]


def _hint(folder: pathlib.Path) -> str:
    """What would do, by what a folder has in place of weights."""
    if (folder / "adapter_config.json").is_file():
        return ": this is an adapter: merge it into its base model and save that"
    again = "save the model again as safetensors"
    ways = {
        "consolidated*": "its maker's own format; take the copy with model.safetensors",
        "*-of-*.safetensors": "copy its model.safetensors.index.json and all parts too",
        "*.safetensors": "give it the name model.safetensors, if it is the whole model",
        **dict.fromkeys(("*.bin", "*.pt", "*.h5", "*.msgpack"), again),
    }
    for end, way in ways.items():
        if there := sorted(folder.glob(end)):
            return f" (it has {there[0].name}: {way})"
    return ""


def _header(path: pathlib.Path) -> dict[str, _Held]:
    """Where a file's tensors lie: 8 bytes of the header's length, the header, the tensors."""
    try:
        # Opening checks the header against the file's length: a torn download is refused here.
        with safe_open(path, framework="np"), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}): copy it again"
        ) from error
    return {
        key: _Held(path, 8 + length + about["data_offsets"][0], about["dtype"],
                   tuple(about["shape"]))
        for key, about in header.items()
        if key != "__metadata__"
    }  # fmt: skip
