"""Attention and rotary positions: against NumPy, against torch, and by their invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax.encoder.attention import attend, rotate
from routerjax.encoder.config import EncoderConfig
from routerjax.encoder.rope import rotary_frequencies
from tests.encoder import models


def heads(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 6])
def test_attention_equals_numpy_with_grouped_heads(n_kv_heads):
    B, T, H, E = 2, 5, 6, 4
    q, k, v = (heads(i, B, T, n, E) for i, n in enumerate((H, n_kv_heads, n_kv_heads)))
    visible_BTT = np.tril(np.ones((T, T), bool))[None] & (np.arange(T) != 1)
    visible_BTT = visible_BTT | np.eye(T, dtype=bool)
    expected = np.zeros((B, T, H, E))
    for b, t, h in np.ndindex(B, T, H):
        group = h // (H // n_kv_heads)
        seen = np.flatnonzero(visible_BTT[0, t])
        scores = np.exp(k[b, seen, group].astype(float) @ q[b, t, h] / np.sqrt(E))
        expected[b, t, h] = scores / scores.sum() @ v[b, seen, group]
    out = attend(*map(jnp.asarray, (q, k, v, visible_BTT)), models.HIGHEST)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_scores_too_large_for_exp_and_rows_that_see_nothing_stay_finite():
    q, k, v = (jnp.asarray(1e4 * heads(i, 1, 3, 1, 4)) for i in range(3))
    sees_all = attend(q, k, v, jnp.ones((1, 3, 3), bool), models.HIGHEST)
    sees_none = attend(q, k, v, jnp.zeros((1, 3, 3), bool), models.HIGHEST)
    assert np.isfinite(sees_all).all()
    np.testing.assert_allclose(sees_none, np.broadcast_to(v.mean(1)[:, None], v.shape), rtol=1e-5)


def test_rotated_products_depend_on_the_distance_alone():
    frequencies = np.array([1.0, 0.3, 0.02], np.float32)
    q, k = (np.broadcast_to(heads(i, 1, 1, 1, 6), (1, 40, 1, 6)) for i in range(2))
    angles_TE = np.arange(40, dtype=np.float32)[:, None] * frequencies
    q, k = (
        np.asarray(rotate(jnp.asarray(x), jnp.asarray(angles_TE)[None]))[0, :, 0] for x in (q, k)
    )
    products = q @ k.T
    for distance in (-7, 0, 3, 20):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(q, axis=1), np.linalg.norm(q[0]), rtol=1e-5)


def test_rotation_keeps_the_dtype_and_works_in_float32():
    x = jnp.asarray(heads(0, 1, 3, 2, 8), jnp.bfloat16)
    angles_1TE = jnp.asarray(heads(1, 1, 3, 4))
    turned = rotate(x, angles_1TE)
    assert turned.dtype == jax.dtypes.bfloat16
    exact = rotate(x.astype(jnp.float32), angles_1TE)
    np.testing.assert_array_equal(turned, exact.astype(jnp.bfloat16))


def test_llama3_scaling_keeps_fast_turns_slows_slow_ones_and_blends_between():
    family, settings = models.VARIANTS["llama_rope"]
    raw = {"model_type": family} | settings
    (scaled,) = EncoderConfig.from_hf(raw).ropes
    (plain,) = EncoderConfig.from_hf(raw | {"rope_parameters": None}).ropes
    ratio = rotary_frequencies(plain) / rotary_frequencies(scaled)
    # Wavelengths 6.3, 63, 628, 6283 tokens of the 12 first trained on: 1.9 turns lie between.
    assert 1 < ratio[0] < 8
    np.testing.assert_allclose(ratio[1:], 8, rtol=1e-6)


@pytest.mark.parametrize("theta", [1e4, 1e6])
@pytest.mark.parametrize("scaled", [False, True])
def test_angles_equal_those_of_torch_at_the_far_end_of_a_long_context(theta, scaled):
    torch = pytest.importorskip("torch")
    from transformers.models.llama import configuration_llama, modeling_llama

    rope = {"rope_type": "default", "rope_theta": theta}
    if scaled:
        rope |= models.VARIANTS["llama_rope"][1]["rope_parameters"] | {"rope_theta": theta}
        rope |= {"original_max_position_embeddings": 8192}
    config = configuration_llama.LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        max_position_embeddings=131072,
        rope_parameters=rope,
    )
    far = np.arange(131000, 131072)
    cos, _ = modeling_llama.LlamaRotaryEmbedding(config)(torch.zeros(1), torch.tensor(far)[None])
    angles_TE = far.astype(np.float32)[:, None] * rotary_frequencies(
        EncoderConfig.from_hf(config.to_dict()).ropes[0]
    )
    # One unit in the last place of a frequency, times 131000, is up to 0.008 radians.
    np.testing.assert_allclose(jnp.cos(angles_TE), cos[0, :, :64].numpy(), atol=1e-2)
