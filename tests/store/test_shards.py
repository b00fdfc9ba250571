"""The bytes of a store: exact scaling, the error of float16, digests, sizes of blocks."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from routerjax.store.shards import all_finite, decode, encode, has_nan, rows_per_block

# Up to 2^127: rounding up the largest float32 would overflow. Subnormal values are among them.
FLOATS = st.floats(-(2.0**127), 2.0**127, width=32)
STATES = hnp.arrays(np.float32, st.tuples(*[st.integers(1, 3)] * 4), elements=FLOATS)


@hypothesis.given(STATES)
def test_float16_is_within_its_stated_error(h_LPRD):
    stored, exponents_LP = encode(h_LPRD, "float16")
    assert stored.dtype == np.float16 and np.isfinite(stored).all()
    error = np.abs(decode(stored, exponents_LP).astype(np.float64) - h_LPRD)
    largest = np.abs(h_LPRD.astype(np.float64)).max(axis=(2, 3), keepdims=True)
    # 11 bits of significand, and below the smallest normal number half a step of 2^-24; then half
    # a step of float32's own subnormals.
    allowed = np.maximum(2.0**-11 * np.abs(h_LPRD), 2.0**-39 * largest) + 2.0**-150
    assert (error <= allowed).all()


@hypothesis.given(STATES)
def test_the_scale_is_a_power_of_two_that_uses_the_range(h_LPRD):
    stored, exponents_LP = encode(h_LPRD, "float16")
    largest = np.abs(stored.astype(np.float64)).max(axis=(2, 3))
    some = np.abs(h_LPRD).max(axis=(2, 3)) > 0
    assert (largest[some] >= 2**14).all() and (largest <= 2**15).all()
    assert exponents_LP.dtype == np.int32


@hypothesis.given(
    hnp.arrays(np.int16, (2, 2, 3, 4), elements=st.integers(-2047, 2047)), st.integers(-60, 60)
)
def test_what_float16_can_hold_comes_back_exactly_at_any_scale(whole, exponent):
    h_LPRD = np.ldexp(whole.astype(np.float32), exponent)
    np.testing.assert_array_equal(decode(*encode(h_LPRD, "float16")), h_LPRD)


@pytest.mark.parametrize("exponent", [-110, -100, 0, 60])
def test_large_blocks_are_decoded_as_small_ones(exponent):
    """Compiled or not: every finite float16, subnormal ones too, comes back bit for bit."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    stored = np.where(np.isfinite(every), every, np.float16(0)).reshape(1, 2, 128, 256)
    exponents_LP = np.array([[exponent, exponent + 3]], np.int32)
    small = decode(stored[:, :, :100], exponents_LP)
    large = decode(stored, exponents_LP)
    assert large.dtype == np.float32
    np.testing.assert_array_equal(large[:, :, :100].view(np.int32), small.view(np.int32))
    expected = np.ldexp(stored.astype(np.float64), exponents_LP[:, :, None, None])
    np.testing.assert_array_equal(large, expected.astype(np.float32))


@pytest.mark.parametrize("exponent", [-139, -110, -86, -60, 0, 60, 110])
def test_large_blocks_are_encoded_as_small_ones(exponent):
    """Compiled or not: rounding, subnormal values and signs of zeros come out alike."""
    drawn = np.random.default_rng(0).normal(size=(1, 2, 128, 300))
    drawn *= 2.0 ** np.random.default_rng(1).integers(-45, 1, drawn.shape)
    drawn[..., :3] = [1, 0.0, -0.0]
    h_LPRD = np.ldexp(drawn, exponent).astype(np.float32)
    # Each row has the largest magnitude of its block, so that the scale is the same without others.
    h_LPRD[..., 0] = np.abs(h_LPRD).max()
    large, exponents_LP = encode(h_LPRD, "float16")
    parts = [encode(part, "float16") for part in np.split(h_LPRD, 8, axis=2)]
    small = np.concatenate([stored for stored, _ in parts], axis=2)
    assert large.size > 2**16 > parts[0][0].size
    np.testing.assert_array_equal(large.view(np.uint16), small.view(np.uint16))
    np.testing.assert_array_equal(exponents_LP, parts[0][1])
    expected = np.ldexp(h_LPRD.astype(np.float64), -exponents_LP[:, :, None, None])
    np.testing.assert_array_equal(large, expected.astype(np.float16))


@pytest.mark.parametrize("rows", [3, 300])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_what_is_not_finite_is_seen_after_encoding(rows, bad, dtype):
    h_LPRD = np.random.default_rng(0).normal(size=(2, 2, rows, 64)).astype(np.float32)
    h_LPRD *= np.float32(1e30)
    assert all_finite(encode(h_LPRD, dtype)[0])
    h_LPRD[1, 0, 2, 5] = bad
    assert not all_finite(encode(h_LPRD, dtype)[0])


def test_has_nan_looks_at_every_kind_of_nan():
    whole = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = whole[~np.isnan(whole)]
    assert not has_nan(finite) and np.isinf(finite).any()
    for bad in whole[np.isnan(whole)][::97]:
        assert has_nan(np.append(finite[:5], bad))
    assert has_nan(np.array([1, np.nan], np.float32)) and not has_nan(np.ones(3, np.float32))


def test_one_state_does_not_touch_the_precision_of_another():
    """Gemma 3's states pass float16's range; those beside them must not pay for it."""
    h_LPRD = np.random.default_rng(0).normal(size=(2, 2, 5, 7)).astype(np.float32)
    alone = decode(*encode(h_LPRD, "float16"))
    h_LPRD[1, 1] *= 1e9
    np.testing.assert_array_equal(decode(*encode(h_LPRD, "float16"))[0], alone[0])


@hypothesis.given(STATES)
def test_int8_is_within_its_stated_error(h_LPRD):
    stored, exponents_LP = encode(h_LPRD, "int8")
    assert stored.dtype == np.int8 and stored.shape == (*h_LPRD.shape[:3], h_LPRD.shape[3] + 4)
    assert all_finite(stored) and not has_nan(stored) and not exponents_LP.any()
    error = np.abs(decode(stored, exponents_LP).astype(np.float64) - h_LPRD)
    largest = np.abs(h_LPRD.astype(np.float64)).max(axis=3, keepdims=True)
    # Half a step, with the scale's own rounding; then a step of float32's subnormals.
    assert (error <= largest / 254 * (1 + 2.0**-15) + 2.0**-149).all()


@pytest.mark.parametrize("exponent", [-139, -60, 0, 110])
def test_large_blocks_of_int8_are_as_small_ones(exponent):
    h_LPRD = np.ldexp(np.random.default_rng(0).normal(size=(1, 2, 128, 300)), exponent)
    h_LPRD = h_LPRD.astype(np.float32)
    large = encode(h_LPRD, "int8")[0]
    parts = [encode(part, "int8")[0] for part in np.split(h_LPRD, 8, axis=2)]
    np.testing.assert_array_equal(large, np.concatenate(parts, axis=2))
    zeros_LP = np.zeros((1, 2), np.int32)
    whole = decode(large, zeros_LP)
    split = [decode(part, zeros_LP) for part in parts]
    np.testing.assert_array_equal(whole, np.concatenate(split, axis=2))


def test_int8_of_what_was_never_written_is_seen():
    stored, zeros_LP = encode(np.zeros((1, 1, 3, 5), np.float32), "int8")
    assert not has_nan(stored)
    np.testing.assert_array_equal(decode(stored, zeros_LP), np.zeros((1, 1, 3, 5)))
    stored[0, 0, 1] = 0  # The fill value of a chunk that is missing.
    assert has_nan(stored)


@hypothesis.given(STATES)
def test_float32_is_exact(h_LPRD):
    stored, exponents_LP = encode(h_LPRD, "float32")
    assert not exponents_LP.any()
    np.testing.assert_array_equal(decode(stored, exponents_LP), h_LPRD)


@pytest.mark.parametrize(
    ("shape", "dtype", "rows"),
    [
        ((7, 2, 384), "float16", 1024),
        ((29, 8, 2048), "float16", 141),
        ((29, 8, 2048), "float32", 70),
        ((29, 8, 2048), "int8", 281),
        ((100, 8, 10**6), "float32", 1),
    ],
)
def test_blocks_have_1024_rows_or_fit_128_mib(shape, dtype, rows):
    assert rows_per_block(*shape, dtype) == rows
    row_bytes = np.prod(shape) * np.dtype(dtype).itemsize
    assert rows == 1 or rows * row_bytes <= 128 * 2**20
