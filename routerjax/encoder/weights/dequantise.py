"""Dequantised weights: how codes, scales and zero points become float32 numbers.

weight = (code - zero point) x scale; the numbers of a block share a scale and a zero point. Only
the rows asked for are read and computed, in memory for a few times their float32 numbers. Where
each scheme's tensors lie: schemes.py.

Axes: out, the weight's rows; in, its columns; a group is a block of one row.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import ml_dtypes
import numpy as np

from routerjax.encoder.weights.checkpoint import Checkpoint
from routerjax.encoder.weights.mxfp4 import ELEMENTS


class Weight(Protocol):
    """A quantised weight.

    Attributes:
      shape: The weight's.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def rows(self, start: int, stop: int, n_axes: int) -> np.ndarray:
        """[stop - start, ...] float32 some rows, as of `Tensors.rows`."""


class Grid(NamedTuple):
    """Numbers that blocks of a weight share.

    Attributes:
      key: Their tensor.
      shape: How many blocks there are along each axis of the weight.
      block: Extents of a block.
    """

    key: str
    shape: tuple[int, ...]
    block: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A weight with a byte, or half a byte, for each number, and scales of any blocks.

    Attributes:
      checkpoint: Holds the tensors.
      key: The codes.
      shape: Of the weight.
      scales: Of its blocks.
      zeros: None, or their zero points.
      factor: Multiplies all scales.
    """

    checkpoint: Checkpoint
    key: str
    shape: tuple[int, ...]
    scales: Grid
    zeros: Grid | None = None
    factor: float = 1.0

    def rows(self, start: int, stop: int, n_axes: int) -> np.ndarray:
        codes = self.checkpoint.rows(self.key, start, stop, n_axes)
        if codes.dtype == np.uint8:
            numbers = ELEMENTS[unpack(codes.reshape(-1, codes.shape[-1]), 4)]
            numbers = numbers.reshape(*codes.shape[:-1], -1)
        else:
            # By a table: a cast of these dtypes takes three times as long.
            every = np.arange(256, dtype=np.uint8).view(codes.dtype).astype(np.float32)
            numbers = every[codes.view(np.uint8)]
        if self.zeros:
            numbers -= self._spread(self.zeros, start, stop, n_axes)
        numbers *= self._spread(self.scales, start, stop, n_axes, self.factor)
        return numbers

    def _spread(
        self, grid: Grid, start: int, stop: int, n_axes: int, factor: float = 1.0
    ) -> np.ndarray:
        """For each number in these rows that of its block; of an axis without blocks one."""
        first = np.unravel_index(np.arange(start, stop), self.shape[:n_axes])
        blocks = tuple(i // size for i, size in zip(first, grid.block, strict=False))
        at = np.ravel_multi_index(blocks, grid.shape[:n_axes])
        row = grid.shape[n_axes:]
        n = math.prod(row)
        n_all = len(self.checkpoint.shapes[grid.key])
        flat = self.checkpoint.rows(grid.key, at[0] * n, (at[-1] + 1) * n, n_all)
        # The product of two scales is rounded once.
        numbers = (_floats(flat) * np.float64(factor)).astype(np.float32).reshape(-1, *row)
        for axis, size in enumerate(grid.block[n_axes:], start=1):
            if numbers.shape[axis] > 1:
                extent = self.shape[n_axes + axis - 1]
                numbers = numbers.take(np.arange(extent) // size, axis)
        return numbers[at - at[0]]


@dataclasses.dataclass(frozen=True)
class Grouped:
    """A weight whose codes lie packed in words of 32 bits, with scales of groups.

    Attributes:
      checkpoint: Holds the tensors.
      shape: Of the weight, [out, in].
      group: How many columns a group has, or the tensor with the group of each column.
      read: (start, stop) to some rows of codes [rows, in] or longer, of zero points [rows, groups]
        (or one for all) and of scales [rows, groups] or [1, groups].
    """

    checkpoint: Checkpoint
    shape: tuple[int, int]
    group: int | str
    read: Callable[[int, int], tuple[np.ndarray, np.ndarray | int, np.ndarray]]

    def rows(self, start: int, stop: int, n_axes: int) -> np.ndarray:
        assert n_axes == 1
        n = self.shape[1]
        codes, zeros, scales = self.read(start, stop)
        if isinstance(self.group, str):
            group_of = self.checkpoint.rows(self.group, 0, n)
        else:
            group_of = np.arange(n) // self.group
        n_groups = scales.shape[1]
        if group_of.min() < 0 or group_of.max() >= n_groups:
            raise ValueError(
                f"{self.checkpoint.folder}: {self.group} has groups {group_of.min()} to "
                f"{group_of.max()}, but there are {n_groups}: copy the file again"
            )
        numbers = codes[:, :n].astype(np.float32)
        # take: indexing by an array would be eight times as slow.
        numbers -= zeros if isinstance(zeros, int) else zeros.take(group_of, 1).astype(np.float32)
        numbers *= _floats(scales).take(group_of, 1)
        return numbers


def ceil_div(n: int, size: int) -> int:
    """n / size, rounded up."""
    return -(-n // size)


def words_of(start: int, stop: int, bits: int) -> tuple[int, int]:
    """The words that hold codes `start` up to `stop`."""
    return start * bits // 32, ceil_div(stop * bits, 32)


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """[rows, codes] uint8 of [rows, words] or [rows, bytes], the lowest bits first."""
    held = np.ascontiguousarray(packed).view(np.uint8)
    codes = np.empty((*held.shape, 8 // bits), np.uint8)
    for i in range(8 // bits):
        codes[..., i] = held >> (bits * i) & (2**bits - 1)
    return codes.reshape(len(held), -1)


def unpack_rows(
    packed: np.ndarray, start: int, stop: int, bits: int, places: Sequence[int] = ()
) -> np.ndarray:
    """[stop - start, columns] uint8 some rows of codes packed along the rows.

    Args:
      packed: [words, columns], those of `words_of`.
      start: First row.
      stop: The row after the last.
      bits: Of a code.
      places: Where in a word the codes lie; in order by default.
    """
    words = np.ascontiguousarray(packed).view(np.uint32)
    places = places or range(32 // bits)
    codes = [(words >> bits * i & (2**bits - 1)).astype(np.uint8) for i in places]
    at = start % len(places)
    return np.stack(codes, 1).reshape(-1, words.shape[1])[at : at + stop - start]


def _floats(x: np.ndarray) -> np.ndarray:
    """Scales or zero points as float32; bytes are powers of two (E8M0)."""
    return (x.view(ml_dtypes.float8_e8m0fnu) if x.dtype == np.uint8 else x).astype(np.float32)
