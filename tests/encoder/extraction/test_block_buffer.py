"""Blocks on the devices: put together batch by batch, and encoded as the host encodes them."""

import jax
import numpy as np
import pytest

from routerjax.encoder.extraction import block_buffer
from routerjax.runtime.devices import by_rows, make_mesh
from routerjax.store.shards import encode


def captured(h_LPRD: np.ndarray, sizes: list[int], spec: str) -> jax.Array:
    """The room of a block after batches of these many rows; the first one is in part filler."""
    mesh, n_rows = make_mesh(spec), h_LPRD.shape[2]
    room_LPRD = block_buffer.empty((*h_LPRD.shape[:2], max(n_rows, *sizes), h_LPRD.shape[3]), mesh)
    first = n_rows - sum(sizes[1:])
    ends = first + np.cumsum([0, *sizes[1:]])
    for size, end in zip(sizes, ends, strict=True):
        batch = np.full((*h_LPRD.shape[:2], size, h_LPRD.shape[3]), np.nan, np.float32)
        start = max(0, end - size)
        batch[:, :, : end - start] = h_LPRD[:, :, start:end]
        split = jax.device_put(batch.transpose(2, 0, 1, 3), by_rows(mesh)).transpose(1, 2, 0, 3)
        room_LPRD = block_buffer.put(room_LPRD, split, start)
    assert end == n_rows
    return room_LPRD


@pytest.mark.parametrize("spec", ["data:1", "data:4,model:2", "data:3"])
@pytest.mark.parametrize("exponent", [-139, -90, -60, 0, 60, 110])
def test_a_block_is_encoded_as_on_the_host(spec, exponent):
    """Whatever its scale, split by 16 columns or whole, with filler that is not finite."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(3, 2, 20, 16)) * 2.0 ** rng.integers(-45, 1, (3, 2, 20, 16))
    drawn[..., :3] = [1, 0.0, -0.0]
    h_LPRD = np.ldexp(drawn, exponent).astype(np.float32)
    room_LPRD = captured(h_LPRD, [12, 6, 6] if spec == "data:3" else [8, 8, 8], spec)
    held = block_buffer.narrowed(room_LPRD, 20, "float16")
    stored, exponents_LP = encode(h_LPRD, "float16")
    ours, scales_LP, finite = held.fetch()
    assert finite
    np.testing.assert_array_equal(ours.view(np.uint16), stored.view(np.uint16))
    np.testing.assert_array_equal(scales_LP, exponents_LP)
    np.testing.assert_array_equal(np.asarray(held.h_LPRD), h_LPRD)
    eighth, zeros_LP, finite = block_buffer.narrowed(room_LPRD, 20, "int8").fetch()
    assert finite and not zeros_LP.any()
    np.testing.assert_array_equal(eighth, encode(h_LPRD, "int8")[0])
    exact, zeros_LP, finite = block_buffer.narrowed(room_LPRD, 20, "float32").fetch()
    assert finite
    np.testing.assert_array_equal(exact, h_LPRD)
    assert exact.dtype == np.float32 and not zeros_LP.any()


def test_a_state_of_zeros_comes_back_as_zeros():
    h_LPRD = np.random.default_rng(0).normal(size=(2, 1, 4, 8)).astype(np.float32)
    h_LPRD[1] = 0
    stored, exponents_LP, finite = block_buffer.narrowed(
        captured(h_LPRD, [4], "data:1"), 4, "float16"
    ).fetch()
    assert finite
    np.testing.assert_array_equal(stored, encode(h_LPRD, "float16")[0])
    np.testing.assert_array_equal(exponents_LP, encode(h_LPRD, "float16")[1])


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("exponent", [-120, 0])
def test_what_is_not_finite_stays_so_and_is_told_of(dtype, bad, exponent):
    """Also where the host encodes, as the other site is too small for the devices."""
    h_LPRD = np.random.default_rng(0).normal(size=(2, 1, 4, 8)).astype(np.float32)
    h_LPRD[0] = np.ldexp(h_LPRD[0], exponent)
    h_LPRD[1, 0, 2, 3] = bad
    stored, _, finite = block_buffer.narrowed(captured(h_LPRD, [4], "data:1"), 4, dtype).fetch()
    assert not finite
    if dtype == "int8":
        stored = np.ascontiguousarray(stored[..., -4:]).view(np.float32)
    assert not np.isfinite(stored[1]).all() and np.isfinite(stored[0]).all()
