"""Attention and rotary positions: against NumPy, against torch, and by their invariances."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax.encoder.families.registry import read_config
from routerjax.encoder.families.rope import rotary_frequencies
from routerjax.encoder.models import partition
from routerjax.encoder.models.attention import attend, rotate
from routerjax.runtime.devices import make_mesh
from tests.encoder import tiny_models as models


def heads(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def attended(q, k, v, lengths_B, tuning=models.CPU, **options):
    """`attend` as one program, which takes less to compile than its operations one by one."""
    program = jax.jit(lambda *heads: attend(*heads, models.HIGHEST, tuning, **options))
    return program(q, k, v, jnp.asarray(lengths_B))


turned = jax.jit(rotate, static_argnames=("interleaved", "by_product"))


def naive(q, k, v, lengths_B, bidirectional, window, soft_cap, sinks_H, bias_HR):
    """Attention of every real query, one after the other, in float64; padding's rows are NaN."""
    B, T, H, E = q.shape
    S, G = k.shape[1:3]
    out = np.full((B, T, H, v.shape[-1]), np.nan)
    for b, h in np.ndindex(B, H):
        for t in range(lengths_B[b]):
            back = t + S - T - np.arange(S)
            near = np.abs(back) if bidirectional else np.where(back >= 0, back, 2**30)
            seen = (near < (2**30 if window is None else window)) & (back > t - lengths_B[b])
            scores = k[b, seen, h // (H // G)].astype(float) @ q[b, t, h] / np.sqrt(E)
            scores = soft_cap * np.tanh(scores / soft_cap) if soft_cap else scores
            if bias_HR is not None:
                scores = scores + bias_HR[h, S - 1 - back[seen]]
            weights = np.exp(scores)
            total = weights.sum() + (0 if sinks_H is None else np.exp(float(sinks_H[h])))
            out[b, t, h] = weights / total @ v[b, seen, h // (H // G)]
    return out


SINKS_H = np.linspace(-1, 2, 6).astype(np.float32)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 6])
@pytest.mark.parametrize(
    "bidirectional, n_before, window, soft_cap, sinks_H, biased",
    [
        (False, 0, None, 0.0, None, False),
        (False, 0, 3, 0.0, SINKS_H, False),
        (False, 4, None, 1.5, SINKS_H, True),
        (False, 4, 3, 0.0, None, False),
        (True, 0, None, 0.0, None, True),
        (True, 0, 2, 0.0, None, False),
    ],
)
def test_attention_equals_numpy(
    n_kv_heads, bidirectional, n_before, window, soft_cap, sinks_H, biased
):
    B, T, H, E = 3, 7, 6, 4
    q = heads(0, B, T, H, E)
    # Values wider than keys.
    k, v = (heads(i, B, n_before + T, n_kv_heads, E + (i == 2)) for i in (1, 2))
    lengths_B = np.array([7, 1, 5], np.int32)
    options = {"bidirectional": bidirectional, "window": window, "soft_cap": soft_cap}
    options |= {"sinks_H": sinks_H}
    options |= {"bias_HR": heads(3, H, n_before + 2 * T - 1) if biased else None}
    out = attended(q, k, v, lengths_B, **options)
    expected = naive(q, k, v, lengths_B, **options)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(np.where(np.isnan(expected), np.nan, out), expected, atol=1e-5)


@pytest.mark.parametrize("n_chunks", [2, 3, 6])
def test_head_chunks_unrolled_and_in_a_loop_equal_one(n_chunks):
    B, T, H, G, E = 3, 7, 6, 2, 4
    q, k, v = (heads(i, B, T, n, E) for i, n in enumerate((H, G, G)))

    def by(tuning):
        return attended(q, k, v, [7, 1, 5], tuning, sinks_H=SINKS_H)

    few = dataclasses.replace(models.CPU, attention_scores=B * H * T * T // n_chunks)
    loops = n_chunks > models.CPU.unrolled_head_chunks
    assert ("scan[" in str(jax.make_jaxpr(by, static_argnums=0)(few))) == loops
    np.testing.assert_allclose(by(few), by(models.CPU), atol=1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_scores_are_hidden_without_a_select_which_would_part_the_products_on_a_cpu(bidirectional):
    B, T, H, E = 2, 16, 3, 4
    q, k, v = (jnp.asarray(heads(i, B, T, H, E)) for i in range(3))
    program = jax.jit(
        lambda: attend(
            q, k, v, jnp.array([16, 9]), models.HIGHEST, models.CPU, bidirectional=bidirectional
        )
    )
    lines = program.lower().as_text().splitlines()
    of_scores = [line for line in lines if f"tensor<{B * H}x{T}x{T}xf32>" in line]
    assert any("stablehlo.add" in line for line in of_scores)
    assert not any("stablehlo.select" in line for line in of_scores)


def test_scores_too_large_for_exp_stay_finite():
    q, k, v = (1e4 * heads(i, 1, 3, 1, 4) for i in range(3))
    assert np.isfinite(attended(q, k, v, [3])).all()


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
    half = rotate(x, angles_1TE)
    assert half.dtype == jax.dtypes.bfloat16
    exact = rotate(x.astype(jnp.float32), angles_1TE)
    np.testing.assert_array_equal(half, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("n_kept", [0, 4])
def test_a_rotation_by_product_is_the_rotation(interleaved, n_kept):
    x = jnp.asarray(heads(0, 2, 5, 3, 8 + n_kept))
    angles_BTW = jnp.asarray(heads(1, 2, 5, 4))
    plain = np.array(turned(x, angles_BTW, 1.3, interleaved))
    if interleaved:  # Its pairs lie apart; by product every channel stays in its place.
        plain[..., :8] = np.stack([plain[..., :4], plain[..., 4:8]], axis=-1).reshape(2, 5, 3, 8)
    options = {"interleaved": interleaved, "by_product": True}
    np.testing.assert_allclose(turned(x, angles_BTW, 1.3, **options), plain, atol=1e-6)
    half = turned(x.astype(jnp.bfloat16), angles_BTW, 1.3, **options)
    assert half.dtype == jnp.bfloat16
    scale_E = jnp.asarray(heads(2, 8 + n_kept))
    scaled = turned(x, angles_BTW, 1.3, scale_E=scale_E, **options)
    first = turned(x * scale_E[None, None, None], angles_BTW, 1.3, **options)
    np.testing.assert_allclose(scaled, first, atol=1e-5)


def test_a_softmax_divided_before_the_product_is_the_same():
    B, T, H, G, E = 3, 7, 6, 2, 4
    q, k, v = (heads(i, B, T, n, E) for i, n in enumerate((H, G, G)))
    first, then = (
        attended(
            q, k, v, [7, 1, 5], dataclasses.replace(models.CPU, divides_first=divides_first),
            sinks_H=SINKS_H, window=3,
        )
        for divides_first in (True, False)
    )  # fmt: skip
    np.testing.assert_allclose(first, then, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "qwen3",
        pytest.param("gemma3", marks=pytest.mark.slow),
        pytest.param("qwen3_next", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("longest", [256, 1])
def test_a_query_norm_that_is_folded_is_the_norm(name, longest):
    tuning = dataclasses.replace(
        models.CPU, rotates_by_product=True, folds_query_norm=True, products_apart=True,
        longest_causal=longest,
    )  # fmt: skip
    encoder = models.load(models.GOLDEN / name, tuning=tuning)
    tokens_BT, lengths_B, states_LBTD = models.golden_states(name)
    states = models.our_states(encoder, tokens_BT, lengths_B)
    assert models.worst_error(states, states_LBTD, lengths_B) < 1e-4


def test_factors_of_queries_follow_their_heads_over_devices():
    B, T, H, G, E = 2, 5, 4, 2, 8
    q, k, v = (jnp.asarray(heads(i, B, T, n, E)) for i, n in enumerate((H, G, G)))
    factor_BTH, lengths_B = jnp.asarray(heads(3, B, T, H)) ** 2, jnp.array([5, 3])
    expected = attended(q * factor_BTH[..., None], k, v, lengths_B, soft_cap=2.0)
    with jax.set_mesh(make_mesh("data:2,model:2")):
        split = jax.jit(
            lambda *heads: partition.attend(
                *heads, precision=models.HIGHEST, tuning=models.CPU, soft_cap=2.0,
                factor_BTH=factor_BTH,
            )
        )(q, k, v, lengths_B)  # fmt: skip
    real_BT = np.arange(T)[None] < np.asarray(lengths_B)[:, None]
    np.testing.assert_allclose(split[real_BT], expected[real_BT], atol=1e-5)


def test_llama3_scaling_keeps_fast_turns_slows_slow_ones_and_blends_between():
    family, settings = models.VARIANTS["llama_rope"]
    raw = {"model_type": family} | settings
    (scaled,) = read_config(raw).ropes
    (plain,) = read_config(raw | {"rope_parameters": None}).ropes
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
        read_config(config.to_dict()).ropes[0]
    )
    # One unit in the last place of a frequency, times 131000, is up to 0.008 radians.
    np.testing.assert_allclose(jnp.cos(angles_TE), cos[0, :, :64].numpy(), atol=1e-2)
