"""Quantisation schemes: of which tensors of a checkpoint each scheme makes a weight.

How these become numbers, and the axes: dequantise.py.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from routerjax.encoder.weights.checkpoint import Checkpoint
from routerjax.encoder.weights.dequantise import (
    Grid,
    Grouped,
    Scaled,
    Weight,
    ceil_div,
    unpack,
    unpack_rows,
    words_of,
)

# Codes of a byte each; of uint8 a byte is two codes of FP4 (E2M1).
_BYTES = ("float8_e4m3fn", "float8_e5m2", "int8", "uint8")
# Bits of a code in a word of 32.
BITS = (2, 4, 8)
# AWQ: where in a word the codes of rows 0 to 7 lie.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


class Fault(Exception):
    """What is wrong with a tensor of a weight, in one line."""


@dataclasses.dataclass
class Parts:
    """The tensors that one weight is made of.

    Attributes:
      checkpoint: Holds them.
      held: {key: shape} of its tensors.
      settings: Of the quantisation.
      name: What their keys begin with.
      used: Keys that were asked for.
    """

    checkpoint: Checkpoint
    held: dict[str, tuple[int, ...]]
    settings: dict[str, Any]
    name: str
    used: set[str] = dataclasses.field(default_factory=set)

    def find(self, *ends: str) -> str:
        """The key that ends in one of these."""
        key = next((self.name + end for end in ends if self.name + end in self.held), None)
        if key is None:
            raise Fault(f"missing: {' or '.join(self.name + end for end in ends)}")
        self.used.add(key)
        return key

    def find_any(self, end: str) -> str:
        """The same, or "" where there is none."""
        return self.find(end) if self.name + end in self.held else ""

    def misfit(self, key: str, expected: Any) -> Fault:
        return Fault(f"misshapen: {key} is {self.held[key]}, expected {expected}")

    def expect(self, key: str, shape: tuple[int, ...]) -> None:
        """Raises unless a tensor is of this shape."""
        if self.held[key] != shape:
            raise self.misfit(key, shape)

    def two_axes(self, key: str) -> tuple[int, int]:
        """The shape of a tensor of two axes."""
        if len(self.held[key]) != 2:
            raise self.misfit(key, "two axes")
        return self.held[key][0], self.held[key][1]

    def values(self, key: str) -> np.ndarray:
        """All numbers of a tensor, flat."""
        shape = self.held[key]
        return self.checkpoint.rows(key, 0, math.prod(shape), len(shape))

    def blocks(self) -> Iterator[tuple[int, int]]:
        """(rows, columns) of each size of block that the config names, and the usual one."""
        groups = (self.settings.get("config_groups") or {}).values()
        weights = [g.get("weights") or {} for g in groups if isinstance(g, dict)]
        for each in (self.settings, *weights):
            block = each.get("weight_block_size") or each.get("block_structure")
            if isinstance(block, str):
                block = block.split("x")
            if block:
                yield int(block[0]), int(block[1])
            if (each.get("group_size") or 0) > 0:
                yield 1, int(each["group_size"])
        yield 128, 128

    def grid(self, key: str, shape: tuple[int, ...], counts: tuple[int, ...] | None = None) -> Grid:
        """The blocks that share the numbers of a tensor.

        Args:
          key: The tensor.
          shape: Of the weight.
          counts: How many blocks there are along its axes; by default the tensor's shape. Later
            axes left out are of one block.
        """
        counts = counts or self.held[key]
        counts += (1,) * (len(shape) - len(counts))
        if len(shape) < 2 or len(counts) > len(shape) or 0 in counts:
            raise self.misfit(key, f"a number for each block of {shape}")
        # Blocks that the config does not name are even.
        even = (shape[-2] // counts[-2], shape[-1] // counts[-1])
        for sizes in (*self.blocks(), even):
            block = tuple(
                n if count == 1 else 1 if count == n else size
                for n, count, size in zip(shape, counts, (*shape[:-2], *sizes), strict=True)
            )
            if counts == tuple(ceil_div(n, size) for n, size in zip(shape, block, strict=True)):
                return Grid(key, counts, block)
        raise self.misfit(key, f"a number for each block of {shape}")


def scaled(parts: Parts, codes: tuple[str, ...]) -> Weight | None:
    """Codes of these dtypes under the weight's own key; None of a tensor that holds no codes."""
    key = parts.name
    try:
        dtype = parts.checkpoint.dtype(key)
    except ValueError:
        return None  # It is refused when it is read.
    if dtype.name in _BYTES and dtype.name not in codes:
        raise Fault(f"unsupported: {key} is {dtype}, expected {' or '.join(codes)}")
    return _blockwise(parts, key, dtype) if dtype.name in codes else None


def packed(parts: Parts) -> Weight:
    """compressed-tensors' `weight_packed`: codes packed along in, of integers or of FP4."""
    key = parts.find("_packed")
    if parts.checkpoint.dtype(key) == np.uint8:
        parts.find_any("_shape")
        return _blockwise(parts, key, np.dtype(np.uint8))
    parts.expect(shape := parts.find("_shape"), (2,))
    n_out, n_in = (int(n) for n in parts.values(shape))
    bits = _bits(parts, key, n_out, n_in)
    scale = parts.find("_scale")
    grid = parts.grid(scale, (n_out, n_in))
    n_scales, n_groups = grid.shape
    if n_scales not in (1, n_out):
        raise parts.misfit(scale, f"({n_out}, groups)")
    zero, order = parts.find_any("_zero_point"), parts.find_any("_g_idx")
    if zero:
        parts.expect(zero, (ceil_div(n_out * bits, 32), n_groups))
    checkpoint, n_axes = parts.checkpoint, len(parts.held[scale])

    def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray | int, np.ndarray]:
        codes = unpack(checkpoint.rows(key, start, stop), bits)
        zeros: np.ndarray | int = 2 ** (bits - 1)  # Codes are stored with this much added.
        if zero:
            words = checkpoint.rows(zero, *words_of(start, stop, bits))
            zeros = unpack_rows(words, start, stop, bits)
        first, last = (0, 1) if n_scales == 1 else (start, stop)
        scales = checkpoint.rows(scale, first * n_groups, last * n_groups, n_axes)
        return codes, zeros, scales.reshape(-1, n_groups)

    return Grouped(checkpoint, (n_out, n_in), order or grid.block[1], read)


def awq(parts: Parts) -> Weight:
    """AWQ's `qweight`, [in, out / 8]: eight codes of out to a word, in an order of AWQ's own."""
    key, scale = parts.find(".qweight"), parts.find(".scales")
    has_zeros = parts.settings.get("zero_point", True)
    zero = parts.find(".qzeros") if has_zeros else parts.find_any(".qzeros")
    (n_in, n_words), (n_groups, n_out) = parts.two_axes(key), parts.two_axes(scale)
    parts.expect(key, (n_in, ceil_div(n_out, 8)))
    if zero:
        parts.expect(zero, (n_groups, n_words))
    size = parts.grid(scale, (n_out, n_in), (n_out, n_groups)).block[1]
    checkpoint = parts.checkpoint

    def codes_of(key: str, start: int, stop: int) -> np.ndarray:
        words = checkpoint.columns(key, *words_of(start, stop, 4)).T
        return unpack_rows(words, start, stop, 4, _AWQ_PLACES)

    def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray | int, np.ndarray]:
        zeros = codes_of(zero, start, stop) if zero else 8
        return codes_of(key, start, stop), zeros, checkpoint.columns(scale, start, stop).T

    return Grouped(checkpoint, (n_out, n_in), size, read)


def gptq(parts: Parts) -> Weight:
    """GPTQ's `qweight`, [in x bits / 32, out]: codes packed along in, zero points along out."""
    key, zero, scale = parts.find(".qweight"), parts.find(".qzeros"), parts.find(".scales")
    order = parts.find_any(".g_idx")
    n_groups, n_out = parts.two_axes(scale)
    bits = _bits(parts, zero, n_groups, n_out)
    n_in = parts.held[order][0] if order else parts.two_axes(key)[0] * 32 // bits
    parts.expect(key, (ceil_div(n_in * bits, 32), n_out))
    size = 0 if order else parts.grid(scale, (n_out, n_in), (n_out, n_groups)).block[1]
    # The first version stores zero points less one, modulo the codes.
    second = "gptq_v2" in (parts.settings.get(f) for f in ("checkpoint_format", "format"))
    less = np.uint8(not second)
    checkpoint = parts.checkpoint

    def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        codes = unpack(checkpoint.columns(key, start, stop).T, bits)
        words = checkpoint.columns(zero, *words_of(start, stop, bits)).T
        zeros = (unpack_rows(words, start, stop, bits) + less) & np.uint8(2**bits - 1)
        return codes, zeros, checkpoint.columns(scale, start, stop).T

    return Grouped(checkpoint, (n_out, n_in), order or size, read)


def _blockwise(parts: Parts, key: str, dtype: np.dtype) -> Scaled:
    """A weight of codes that lie in its own order."""
    shape = parts.held[key]
    if dtype == np.uint8:
        shape = (*shape[:-1], 2 * shape[-1])
    scale = parts.find("_scale", "_scale_inv")
    zero, factor = parts.find_any("_zero_point"), 1.0
    if zero and parts.checkpoint.dtype(zero) == np.uint8:
        raise Fault(f"unsupported: {zero} is uint8, expected int8")
    if dtype == np.uint8 and parts.checkpoint.dtype(scale) != np.uint8:
        # NVFP4: its scales, in FP8, share one more.
        second = parts.find("_scale_2", "_global_scale")
        parts.expect(second, (1,) if parts.held[second] else ())
        factor = float(parts.values(second)[0])
        if not factor:
            raise Fault(f"of no use: {second} is 0")
        factor = factor if second.endswith("_scale_2") else 1 / factor
    zeros = parts.grid(zero, shape) if zero else None
    return Scaled(parts.checkpoint, key, shape, parts.grid(scale, shape), zeros, factor)


def _bits(parts: Parts, key: str, n_rows: int, n_codes: int) -> int:
    """How many bits a code has, by the shape of the packed tensor."""
    for bits in BITS:
        if parts.held[key] == (n_rows, ceil_div(n_codes * bits, 32)):
            return bits
    raise parts.misfit(key, f"{n_rows} rows of {n_codes} codes of 2, 4 or 8 bits in words of 32")
