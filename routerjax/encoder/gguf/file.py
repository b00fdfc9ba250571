"""GgufFile: the metadata of a GGUF file and numbers of its tensors, read a few blocks at a time.

The header is parsed here: the package's own reader makes an array of every token and takes minutes
where this takes seconds. What a type of tensor means is left to the package (`gguf.dequantize`).
"""

import itertools
import math
import pathlib
import re
import struct
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# Numbers of the format: the type of a value to what it is in the file.
_STRING, _ARRAY = 8, 9
_SCALARS = dict(
    zip(
        (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12),
        ("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", "<u8", "<i8", "<f8"),
        strict=True,
    )
)
# Tensors whose numbers NumPy knows; the others are blocks that `gguf.dequantize` takes apart.
_PLAIN = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
}
_BLOCKS = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4"),
)
# Beyond these a header is none of a model: known ones have 30 MiB, 1,500 tensors, 100 keys, a
# million values in arrays (tokens, their kinds, scores and merges) and 4 axes.
_MOST_BYTES, _MOST_ENTRIES, _MOST_VALUES, _MOST_AXES = 2**27, 2**16, 2**22, 8
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
# Numbers that are taken apart at a time: fewer take longer, more need larger arrays in between.
_BLOCK_NUMBERS = 2**18


class Held(NamedTuple):
    """Where a tensor lies: its file, first byte there, the name of its type, its shape.

    The shape is NumPy's: the last axis is the one whose numbers lie side by side.
    """

    path: pathlib.Path
    offset: int
    type: str
    shape: tuple[int, ...]


class GgufFile:
    """A GGUF file, or all parts of a split one.

    Args:
      path: The file; of a split one any part, whose name ends in -00001-of-00003.gguf.

    Attributes:
      path: The file, or the first part.
      metadata: Values by key, arrays as lists.
      tensors: Where every tensor lies, by name.

    Raises:
      ValueError: No GGUF file, a damaged one, or parts that are missing.
      ImportError: The gguf package is not installed.
    """

    def __init__(self, path: pathlib.Path):
        try:
            from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
        except ImportError as error:
            raise ImportError(
                f"{path}: a GGUF file takes the gguf package: pip install 'routerjax[gguf]'"
            ) from error
        self._types, self._sizes, self._dequantize = (
            GGMLQuantizationType, GGML_QUANT_SIZES, dequantize,
        )  # fmt: skip
        paths = parts_of(path)
        self.path = paths[0]
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, Held] = {}
        for number, part in enumerate(paths):
            metadata, tensors = self._open(part)
            count, place = metadata.get("split.count", 1), metadata.get("split.no", 0)
            if (count, place) != (len(paths), number):
                at = place + 1 if isinstance(place, int) else repr(place)
                raise ValueError(
                    f"{part} says that it is part {at!s:.80} of {count!r:.80}, expected part "
                    f"{number + 1} of {len(paths)}: parts keep the names that they were written by"
                )
            if twice := self.tensors.keys() & tensors.keys():
                raise ValueError(f"{part} has {min(twice)!r}, which an earlier part has too")
            self.metadata = metadata | self.metadata
            self.tensors |= tensors
        expected = self.metadata.get("split.tensors.count", len(self.tensors))
        if len(self.tensors) != expected:
            raise ValueError(
                f"{self.path}: its parts hold {len(self.tensors)} tensors, expected {expected}: "
                f"they are not of one model"
            )

    def dtype(self, name: str) -> np.dtype:
        """The dtype of the numbers that `numbers` returns of a tensor.

        Raises:
          ValueError: Its type is not supported.
        """
        held = self.tensors[name]
        if held.type not in _PLAIN and held.type not in _BLOCKS:
            raise ValueError(
                f"{held.path}: the tensor {name!r} is {held.type}, of which routerjax reads only "
                f"{', '.join((*_PLAIN, *_BLOCKS))}: take another quantisation of the model"
            )
        return _PLAIN.get(held.type, np.dtype(np.float32))

    def numbers(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """[stop - start] a tensor's numbers one after the other; memory of their own.

        Args:
          name: The tensor.
          start: First number.
          stop: The number after the last; None for all.

        Raises:
          ValueError: The type is not supported, or the file has changed or cannot be read.
        """
        held, dtype = self.tensors[name], self.dtype(name)
        stop = math.prod(held.shape) if stop is None else stop
        block, size = self._block(held.type)
        first = start // block
        raw = self._read(name, first * size, -(-stop // block) * size)
        if held.type in _PLAIN:
            return raw.view(dtype)
        # One row at a time: of many rows the package takes few at once, which costs three times as
        # much.
        step = max(1, _BLOCK_NUMBERS // block) * size
        pieces = [
            self._dequantize(raw[at : at + step].reshape(1, -1), self._types[held.type])[0]
            for at in range(0, len(raw), step)
        ]
        return np.concatenate(pieces or [np.empty(0, dtype)])[start - first * block :][
            : stop - start
        ]

    def blocks(self, name: str, start: int, stop: int) -> np.ndarray:
        """[blocks, bytes of a block] uint8: whole blocks of numbers as they are in the file.

        Args:
          name: The tensor.
          start: First block.
          stop: The block after the last.

        Raises:
          ValueError: The file has changed or cannot be read.
        """
        _, size = self._block(self.tensors[name].type)
        return self._read(name, start * size, stop * size).reshape(-1, size)

    def _block(self, type_name: str) -> tuple[int, int]:
        """Numbers and bytes of a block."""
        block, size = self._sizes[self._types[type_name]]
        return block, size

    def _read(self, name: str, first: int, last: int) -> np.ndarray:
        held = self.tensors[name]
        try:
            raw = np.fromfile(held.path, np.uint8, last - first, offset=held.offset + first)
        except OSError as error:
            raise ValueError(f"{held.path}: cannot read the tensor {name!r}: {error}") from error
        if len(raw) < last - first:
            raise ValueError(
                f"{held.path}: cannot read the tensor {name!r}: the file ends within it"
            )
        return raw

    def _open(self, path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Held]]:
        """The metadata and the tensors of one file."""
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                metadata, about, end = _header(file, size)
            alignment = _alignment(metadata)
        except (OSError, ValueError, struct.error) as error:
            raise ValueError(f"{path} is not a whole GGUF file ({error}): copy it again") from error
        start = -(-end // alignment) * alignment
        types = {int(each): each.name for each in self._types}
        tensors, spans = {}, []
        for name, shape, number, offset in about:
            held = Held(path, start + offset, types.get(number, f"type {number}"), shape)
            tensors[name] = held
            if number in types:
                block, n_bytes = self._block(held.type)
                if shape and shape[-1] % block:
                    raise ValueError(
                        f"{path}: the tensor {name!r:.80} has rows of {shape[-1]} numbers, "
                        f"expected a multiple of {block} ({held.type}): take another copy of it"
                    )
                last = held.offset + math.prod(shape) // block * n_bytes
                if last > size:
                    raise ValueError(
                        f"{path} is not a whole GGUF file ({size} bytes, its tensor {name!r:.80} "
                        f"goes to {last}): copy it again"
                    )
                spans.append((held.offset, last, name))
        spans.sort()
        for (_, last, before), (first, _, name) in itertools.pairwise(spans):
            if first < last:
                raise ValueError(
                    f"{path}: the tensors {before!r:.80} and {name!r:.80} lie in the same bytes: "
                    f"take another copy of it"
                )
        return metadata, tensors


def parts_of(path: pathlib.Path) -> list[pathlib.Path]:
    """All parts of the GGUF that a file belongs to, in order; itself where it is not split.

    Raises:
      ValueError: Parts are missing.
    """
    match = _PART.search(path.name)
    if not match:
        return [path]
    count, stem = int(match[2]), path.name[: match.start()]
    parts = [
        path.with_name(f"{stem}-{number + 1:05d}-of-{count:05d}.gguf") for number in range(count)
    ]
    if absent := [part.name for part in parts if not part.is_file()]:
        raise ValueError(
            f"{path} is one of {count} parts, of which {', '.join(absent)} is missing: parts lie "
            f"in one folder"
        )
    return parts


def _header(
    file: BinaryIO, size: int
) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], int, int]], int]:
    """Metadata; (name, shape, number of the type, offset) of the tensors; where the header ends."""
    at = n_values = 0

    def take(n_bytes: int) -> bytes:
        nonlocal at
        at += n_bytes
        if at > size:
            raise ValueError("it ends within its header")
        if at > _MOST_BYTES:
            raise ValueError(f"its header has more than {_MOST_BYTES >> 20} MiB")
        return file.read(n_bytes)

    def count(what: str, most: int) -> int:
        value = _U64.unpack(take(8))[0]
        if value > most:
            raise ValueError(f"it says that it has {value} {what}, expected at most {most:,}")
        return value

    def number(form: struct.Struct) -> int:
        return form.unpack(take(form.size))[0]

    def text() -> str:
        return take(number(_U64)).decode()

    def value(kind: int) -> Any:
        nonlocal n_values
        if kind == _STRING:
            return text()
        if kind == _ARRAY:
            kind, length = number(_U32), count("values in an array", _MOST_VALUES - n_values)
            n_values += length
            if kind in _SCALARS:
                dtype = np.dtype(_SCALARS[kind])
                return np.frombuffer(take(length * dtype.itemsize), dtype).tolist()
            if kind == _ARRAY:
                raise ValueError("an array of arrays, which llama.cpp does not read either")
            if kind == _STRING:
                return [text() for _ in range(length)]
        if kind not in _SCALARS:
            raise ValueError(f"a value of the unknown type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        scalar = np.frombuffer(take(dtype.itemsize), dtype)[0]
        # 1e-6 and not 9.999999974752427e-07: what the config.json said that it was written from.
        return float(str(scalar)) if dtype == np.float32 else scalar.item()

    if (magic := take(4)) != _MAGIC:
        raise ValueError(f"it begins with {magic!r}, expected {_MAGIC!r}")
    version = number(_U32)
    if version not in _VERSIONS:
        what = "it is big-endian" if version & 0xFFFF == 0 else f"it is of version {version}"
        raise ValueError(f"{what}, expected little-endian of version {_VERSIONS}")
    n_tensors, n_keys = count("tensors", _MOST_ENTRIES), count("metadata", _MOST_ENTRIES)
    metadata: dict[str, Any] = {}
    for _ in range(n_keys):
        key = text()
        if key in metadata:
            raise ValueError(f"the key {key!r:.80} is there twice")
        metadata[key] = value(number(_U32))
    tensors: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for _ in range(n_tensors):
        name, n_axes = text(), number(_U32)
        if name in tensors or n_axes > _MOST_AXES:
            what = "is there twice" if name in tensors else f"has {n_axes} axes"
            raise ValueError(f"the tensor {name!r:.80} {what}")
        shape = tuple(number(_U64) for _ in range(n_axes))[::-1]
        tensors[name] = (name, shape, number(_U32), number(_U64))
    return metadata, list(tensors.values()), at


def _alignment(metadata: dict[str, Any]) -> int:
    """What the offsets of tensors are multiples of."""
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or not 0 < value <= 2**20 or value & (value - 1):
        raise ValueError(f"general.alignment is {value!r:.80}, expected a power of two")
    return value
