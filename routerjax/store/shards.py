"""The bytes of an ActivationStore: the zarr3 array, and float16 or int8 with their scales."""

import functools
import zlib
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from routerjax.runtime.files import CONTEXT, Folder

BLOCK_ROWS = 1024
BLOCK_BYTES = 128 * 2**20
STORE_DTYPES = ("float16", "float32", "int8")
# Behind the int8 values of a state lie the bytes of its scale, a float32.
_SCALE_BYTES = 4
_STEPS = 127  # Of int8, up to the largest magnitude of a state.

# Below this exponent a product could be subnormal, which XLA's CPU code flushes to zero.
_LOWEST_EXPONENT = -100
SMALLEST = 2.0 ** (_LOWEST_EXPONENT + 14)  # The least magnitude with that exponent.
_WORTH_COMPILING = 2**16
INFINITY_BITS = 0xF800  # The bits of float16's infinity, shifted left to drop the sign.


def rows_per_block(n_layers: int, n_poolings: int, width: int, store_dtype: str) -> int:
    """Rows of a row block: 1024, or as many as fit in 128 MiB, at least one."""
    return max(
        1, min(BLOCK_ROWS, BLOCK_BYTES // row_bytes(n_layers, n_poolings, width, store_dtype))
    )


def row_bytes(n_layers: int, n_poolings: int, width: int, store_dtype: str) -> int:
    """Bytes of a row."""
    itemsize = np.dtype(store_dtype).itemsize
    return n_layers * n_poolings * stored_width(width, store_dtype) * itemsize


def stored_width(width: int, store_dtype: str) -> int:
    """Numbers that the array holds for a state of D values."""
    return width + _SCALE_BYTES if store_dtype == "int8" else width


def open_array(
    folder: Folder,
    shape: tuple[int, ...],
    block_rows: int,
    dtype: str,
    create: bool,
    anew: bool = True,
) -> ts.TensorStore:
    """Opens, or makes, the array h_LPND in `h/` of the folder; a shard is a row block.

    Args:
      folder: Of the store.
      shape: [L, P, N, D].
      block_rows: Rows of a row block.
      dtype: Of the values.
      create: Whether to make it.
      anew: Whether what is made is empty; False to keep the shards that are there.
    """
    raw: list[dict[str, Any]] = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "crc32c"},
    ]
    inner = {"chunk_shape": [1, 1, block_rows, shape[3]], "codecs": raw, "index_codecs": raw}
    spec = {
        "driver": "zarr3",
        "kvstore": (folder / "h").kvstore_spec,
        # Stored even where equal to the fill value: absence then always means loss.
        "store_data_equal_to_fill_value": True,
        "metadata": {
            "shape": list(shape),
            "data_type": dtype,
            "fill_value": 0 if dtype == "int8" else "NaN",
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [shape[0], shape[1], block_rows, shape[3]]},
            },
            "codecs": [{"name": "sharding_indexed", "configuration": inner}],
        },
    }
    options = {"create": True, "delete_existing": anew, "open": not anew} if create else {}
    try:
        return ts.open(spec | options, context=CONTEXT).result()
    except Exception as error:
        verb = "create" if create else "open"
        then = (
            "" if create else ". The same extract command restores h/zarr.json where it is damaged"
        )
        raise OSError(f"cannot {verb} the activations in {folder.path}: {error}{then}") from error


class Narrowed(NamedTuple):
    """A row block that was encoded where it was captured; arrays on devices.

    Attributes:
      h_LPRD: [L, P, R, D] float32 as captured.
      stored: As the function `encode` returns it.
      exponents_LP: [L, P] int32; as `encode` returns it.
      small: [] bool, whether some of `h_LPRD` are so small that the devices may have flushed them
        to 0: then only `h_LPRD` counts.
      finite: [] bool, whether all of `stored` are finite, so that the host need not check them.
    """

    h_LPRD: Any
    stored: Any
    exponents_LP: Any
    small: Any
    finite: Any

    def fetch(self) -> tuple[np.ndarray, np.ndarray, bool]:
        """What the function `encode` returns, and whether it is finite; waits for the devices."""
        if self.small:
            dtype = "int8" if self.stored.dtype == np.int8 else "float16"
            stored, exponents_LP = encode(np.asarray(self.h_LPRD), dtype)
            return stored, exponents_LP, all_finite(stored)
        return np.asarray(self.stored), np.asarray(self.exponents_LP), bool(self.finite)

    def release(self) -> None:
        """Frees the captured values, which nothing needs once the stored ones are checked."""
        if self.h_LPRD is not self.stored:
            self.h_LPRD.delete()


def encode(h_LPRD: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Values as stored, and the exponents that undo the scaling: h = stored * 2^exponent.

    For float16 each (layer, pooling) is scaled by the power of two that brings its largest
    magnitude into [2^14, 2^15): states beyond 65504 fit, and few small ones turn subnormal. Each
    value h comes back within max(2^-11 |h|, 2^-39 max|h|), the maximum over its (layer, pooling).

    For int8 each row of a (layer, pooling) has a scale of its own, a 127th of its largest
    magnitude: each value comes back within max|h| / 254, the maximum over its row. A few values
    that are far larger than the rest of a row leave the rest few steps.

    Args:
      h_LPRD: [L, P, R, D] float32; what is not finite stays so, for int8 in the scale.
      dtype: Out of STORE_DTYPES.

    Returns:
      The stored values [L, P, R, D], of int8 [L, P, R, D + 4] with the bytes of the scale, and
      exponents_LP [L, P] int32.
    """
    if dtype == "int8":
        return _encode_int8(h_LPRD), np.zeros(h_LPRD.shape[:2], np.int32)
    if dtype == "float32":
        return h_LPRD.astype(dtype), np.zeros(h_LPRD.shape[:2], np.int32)
    largest_LP = _on_host(_largest, h_LPRD)
    small = bool((largest_LP < SMALLEST).any())  # Or flushed to zero.
    if small:
        largest_LP = _largest(np, h_LPRD)
    known_LP = np.where(np.isfinite(largest_LP), largest_LP, 0)
    exponents_LP = np.frexp(known_LP)[1].astype(np.int32) - 15
    if small:
        return np.ldexp(h_LPRD, -exponents_LP[:, :, None, None]).astype(dtype), exponents_LP
    scale_LP = np.ldexp(np.float32(1), -exponents_LP)
    return _on_host(_narrowed, h_LPRD, scale_LP), exponents_LP


def decode(stored: np.ndarray, exponents_LP: np.ndarray) -> np.ndarray:
    """The float32 values h_LPRD of what `encode` returned; they may be read-only."""
    if stored.dtype == np.int8:
        scale_LPR = _scales(stored)
        if scale_LPR.min(initial=np.inf) < 2.0**_LOWEST_EXPONENT:
            return stored[..., :-_SCALE_BYTES] * scale_LPR[..., None]
        return _on_host(_from_steps, stored, scale_LPR)
    if stored.dtype == np.float32 or int(exponents_LP.min(initial=0)) < _LOWEST_EXPONENT:
        return np.ldexp(stored.astype(np.float32), exponents_LP[:, :, None, None])
    return _on_host(_widened, stored, np.ldexp(np.float32(1), exponents_LP))


def to_steps(xp: Any, h_LPRD: Any) -> tuple[Any, Any, Any]:
    """int8 values [L, P, R, D], their scales and the largest magnitudes [L, P, R] float32.

    Args:
      xp: numpy or jax.numpy.
      h_LPRD: Of rows whose largest magnitude is SMALLEST at least.
    """
    largest_LPR = xp.abs(h_LPRD).max(axis=3)
    # Of a row with a NaN, XLA's largest magnitude may be that of another value.
    finite_LPR = xp.isfinite(h_LPRD).all(axis=3)
    # A product: XLA makes one of a division by a constant, and the host should agree.
    scale_LPR = xp.where(finite_LPR, largest_LPR * np.float32(1 / _STEPS), np.float32(np.nan))
    steps_LPRD = xp.rint(h_LPRD * (np.float32(1) / scale_LPR)[..., None])
    return xp.clip(steps_LPRD, -_STEPS, _STEPS).astype(xp.int8), scale_LPR, largest_LPR


def _steps_and_scales(xp: Any, h_LPRD: Any) -> Any:
    return to_steps(xp, h_LPRD)[:2]


def _encode_int8(h_LPRD: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # Of what is not finite only the scale is looked at.
        largest_LPR = np.abs(h_LPRD).max(axis=3, keepdims=True)
        if (largest_LPR < SMALLEST).any():
            exact = h_LPRD.astype(np.float64)
            scale_LPR1 = (largest_LPR.astype(np.float64) / _STEPS).astype(np.float32)
            # Rounded down, the largest would need more steps than there are; 0 is kept for what
            # was never written.
            least = np.nextafter(np.float32(0), np.float32(1))
            low = scale_LPR1.astype(np.float64) * _STEPS < largest_LPR
            scale_LPR1 = np.where(low, np.nextafter(scale_LPR1, np.float32(np.inf)), scale_LPR1)
            scale_LPR1 = np.maximum(scale_LPR1, least)
            steps_LPRD = np.rint(exact / scale_LPR1).astype(np.int8)
        else:
            steps_LPRD, scale_LPR = _on_host(_steps_and_scales, h_LPRD)
            scale_LPR1 = np.ascontiguousarray(scale_LPR)[..., None]
    return np.concatenate([steps_LPRD, scale_LPR1.view(np.int8)], axis=3)


def _scales(stored: np.ndarray) -> np.ndarray:
    """[L, P, R] float32 scales of stored int8; 0 where nothing was written."""
    return np.ascontiguousarray(stored[..., -_SCALE_BYTES:]).view(np.float32)[..., 0]


def _from_steps(xp: Any, stored: Any, scale_LPR: Any) -> Any:
    return stored[..., :-_SCALE_BYTES].astype(xp.float32) * scale_LPR[..., None]


def _largest(xp: Any, h_LPRD: Any) -> Any:
    return xp.abs(h_LPRD).max(axis=(2, 3))


def _narrowed(xp: Any, h_LPRD: Any, scale_LP: Any) -> Any:
    return (h_LPRD * scale_LP[:, :, None, None]).astype(xp.float16)


def _widened(xp: Any, stored: Any, scale_LP: Any) -> Any:
    return stored.astype(xp.float32) * scale_LP[:, :, None, None]


def _on_host(function: Any, x_LPRD: np.ndarray, *more: np.ndarray) -> Any:
    """A function of (numpy or jax.numpy, arrays), compiled for the host where that is worth it.

    A compiled function passes once over the values, on all cores: an accelerator fills row blocks
    faster than one core can scale them. The result is XLA's own memory, which a CPU device uses
    without a copy.
    """
    cpu = None if x_LPRD.size < _WORTH_COMPILING else _cpu()
    if cpu is None:
        with np.errstate(over="ignore"):  # Only values that are not finite overflow.
            return function(np, x_LPRD, *more)
    import jax

    with jax.default_device(cpu):
        return jax.tree.map(np.asarray, _compiled(function)(x_LPRD, *more))


@functools.cache
def _cpu() -> Any:
    """The host as a device of JAX; None where JAX_PLATFORMS leaves it out."""
    import jax

    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


@functools.cache
def _compiled(function: Any) -> Any:
    import jax

    return jax.jit(functools.partial(function, jax.numpy))


def checksums(stored: np.ndarray) -> np.ndarray:
    """[L, P] CRC-32 of the values of each (layer, pooling): five times as fast as a digest."""
    n_layers, n_poolings = stored.shape[:2]
    chunks = np.ascontiguousarray(stored).reshape(n_layers * n_poolings, -1)
    return np.array([zlib.crc32(chunk.data) for chunk in chunks]).reshape(n_layers, n_poolings)


def has_nan(stored: np.ndarray) -> bool:
    """Whether a value is NaN, or its scale is missing, as in a chunk that is not there.

    Ten times as fast as np.isnan for float16, which it converts.
    """
    if stored.dtype == np.int8:
        return not (_scales(stored) > 0).all()
    if stored.dtype != np.float16:
        return bool(np.isnan(stored).any())
    # Without its sign a NaN's bits are beyond those of infinity.
    return bool((stored.view(np.uint16) << 1).max(initial=0) > INFINITY_BITS)


def all_finite(stored: np.ndarray) -> bool:
    """Whether no value is infinite or NaN."""
    if stored.dtype == np.int8:
        stored = _scales(stored)
    if stored.dtype != np.float16:
        return bool(np.isfinite(stored).all())
    return bool((stored.view(np.uint16) << 1).max(initial=0) < INFINITY_BITS)
