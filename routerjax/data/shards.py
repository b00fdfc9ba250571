"""The bytes of an ActivationStore: the zarr3 array, its float16 encoding, the digest of a block."""

import functools
import hashlib
from typing import Any

import numpy as np
import tensorstore as ts

from routerjax.files import CONTEXT, Folder

BLOCK_ROWS = 1024
BLOCK_BYTES = 128 * 2**20
STORE_DTYPES = ("float16", "float32")

# Below it a product could be subnormal, which XLA's CPU code flushes to zero.
_LOWEST_EXPONENT = -100
_WORTH_COMPILING = 2**16


def rows_per_block(n_layers: int, n_poolings: int, width: int, store_dtype: str) -> int:
    """Rows of a block: 1024, or as many as keep a block within 128 MiB, at least one."""
    row_bytes = n_layers * n_poolings * width * np.dtype(store_dtype).itemsize
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // row_bytes))


def open_array(
    folder: Folder, shape: tuple[int, ...], block_rows: int, dtype: str, create: bool
) -> ts.TensorStore:
    """Opens, or makes empty, the array h_LPND in `h/` of the folder; a shard is a block of rows."""
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
            "fill_value": "NaN",
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [shape[0], shape[1], block_rows, shape[3]]},
            },
            "codecs": [{"name": "sharding_indexed", "configuration": inner}],
        },
    }
    options = {"create": True, "delete_existing": True} if create else {}
    try:
        return ts.open(spec | options, context=CONTEXT).result()
    except Exception as error:
        verb = "create" if create else "open"
        raise OSError(f"cannot {verb} the activations in {folder.path}: {error}") from error


def encode(h_LPRD: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Values as stored, and the exponents that undo the scaling: h = stored * 2^exponent.

    For float16 each (layer, pooling) is scaled by the power of two that brings its largest
    magnitude into [2^14, 2^15): states beyond 65504 fit, and few small ones turn subnormal. Each
    value h comes back within max(2^-11 |h|, 2^-39 max|h|), the maximum over its (layer, pooling).

    Args:
      h_LPRD: [L, P, R, D] float32, finite.
      dtype: "float16" or "float32".

    Returns:
      The stored values [L, P, R, D] and exponents_LP [L, P] int32.
    """
    exponents_LP = np.zeros(h_LPRD.shape[:2], np.int32)
    if dtype == "float16":
        exponents_LP = np.frexp(np.abs(h_LPRD).max(axis=(2, 3)))[1].astype(np.int32) - 15
    return np.ldexp(h_LPRD, -exponents_LP[:, :, None, None]).astype(dtype), exponents_LP


def decode(stored: np.ndarray, exponents_LP: np.ndarray) -> np.ndarray:
    """The float32 values h_LPRD of what `encode` returned; they may be read-only."""
    lowest = int(exponents_LP.min(initial=0))
    small = stored.size < _WORTH_COMPILING or lowest < _LOWEST_EXPONENT
    cpu = None if stored.dtype == np.float32 or small else _cpu()
    if cpu is None:
        return np.ldexp(stored.astype(np.float32), exponents_LP[:, :, None, None])
    import jax

    # On all cores and in one pass; the result is XLA's own memory, which is not copied on its way
    # to a CPU device.
    with jax.default_device(cpu):
        return np.asarray(_scaled()(stored, np.ldexp(np.float32(1), exponents_LP)))


@functools.cache
def _cpu() -> Any:
    """The host as a device of JAX; None where JAX_PLATFORMS leaves it out."""
    import jax

    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


@functools.cache
def _scaled() -> Any:
    import jax

    return jax.jit(lambda stored, scale_LP: stored.astype(np.float32) * scale_LP[:, :, None, None])


def has_nan(stored: np.ndarray) -> bool:
    """Whether a value is NaN; ten times as fast as np.isnan for float16, which it converts."""
    if stored.dtype != np.float16:
        return bool(np.isnan(stored).any())
    # Without its sign a NaN's bits are beyond those of infinity.
    return bool((stored.view(np.uint16) << 1).max(initial=0) > 0xF800)


def digest(stored: np.ndarray) -> str:
    """BLAKE2b (128 bits) of the stored values in C order."""
    return hashlib.blake2b(np.ascontiguousarray(stored).data, digest_size=16).hexdigest()
