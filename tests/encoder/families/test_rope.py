"""Rotary frequencies at the sizes of real models, against transformers' own and closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from routerjax.encoder.families.registry import read_config
from routerjax.encoder.families.rope import (
    DynamicRope,
    LinearRope,
    Llama3Rope,
    LongRope,
    Rope,
    YarnRope,
    rotary_frequencies,
    row_frequencies,
    yarn_attention_factor,
)

REAL = {
    "linear": {"rope_theta": 1e6, "factor": 8.0},
    "dynamic": {"rope_theta": 1e4, "factor": 2.0},
    # Qwen3 and DeepSeek as their cards advise; gpt-oss does not round the ramp.
    "yarn": {"rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn mscale": {
        "rope_theta": 1e4,
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 0.707,
    },
    "yarn exact": {
        "rope_theta": 150000.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    },
    "yarn given": {
        "rope_theta": 5e5,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "attention_factor": 1.3,
        "beta_fast": 16,
        "beta_slow": 2,
    },
    "llama3": {
        "rope_theta": 5e5,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "longrope": {
        "rope_theta": 1e4,
        "short_factor": list(np.linspace(1, 2, 64)),
        "long_factor": list(np.linspace(1, 60, 64)),
        "original_max_position_embeddings": 4096,
    },
}


@pytest.mark.parametrize("name", REAL)
def test_frequencies_and_attention_factor_equal_those_of_transformers(name):
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = name.split()[0]
    config = LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        max_position_embeddings=131072 if kind == "longrope" else 4096,
        rope_parameters={"rope_type": kind, **REAL[name]},
    )
    (rope,) = read_config(config.to_dict()).ropes
    assert rope.width == 128
    lengths = np.array([1, 4095, 4096, 4097, 20000], np.int32)
    ours = np.asarray(row_frequencies(rope, jnp.asarray(lengths)))
    ours = np.broadcast_to(ours, (5, 64))
    for length, row in zip(lengths, ours, strict=True):
        theirs, factor = ROPE_INIT_FUNCTIONS[kind](config, seq_len=torch.tensor(int(length)))
        np.testing.assert_allclose(row, theirs.numpy(), rtol=2e-6)
        assert rope.attention_factor == pytest.approx(factor, rel=1e-9)


def test_stretches_of_a_small_table_by_hand():
    def frequencies(scaling, theta=100.0):
        return rotary_frequencies(Rope(theta, 4, scaling))

    np.testing.assert_allclose(frequencies(None), [1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(frequencies(LinearRope(5.0)), [0.2, 0.02], rtol=1e-6)
    # Pair e turns 100^(-e/2) * 62.8 / 2 pi times: 10 times and once, both ends of the ramp.
    yarn = YarnRope(4.0, 62.8318, beta_fast=10.0, beta_slow=1.0, truncate=False)
    np.testing.assert_allclose(frequencies(yarn), [1, 0.025], rtol=1e-4)
    long = LongRope((1.0, 2.0), (4.0, 5.0), 10, 1.5)
    np.testing.assert_allclose(frequencies(long), [1, 0.05], rtol=1e-6)
    rows = row_frequencies(Rope(100.0, 4, long), jnp.array([10, 11]))
    np.testing.assert_allclose(rows, [[1, 0.05], [0.25, 0.02]], rtol=1e-6)
    # Twice the length at factor 3: theta grows (3 * 2 - 2)^(4 / 2) = 16 fold, its root fourfold.
    rows = row_frequencies(Rope(100.0, 4, DynamicRope(3.0, 10)), jnp.array([3, 10, 20]))
    np.testing.assert_allclose(rows, [[1, 0.1], [1, 0.1], [1, 0.025]], rtol=1e-6)


def test_attention_factors():
    assert yarn_attention_factor(1.0) == yarn_attention_factor(0.5, 2.0) == 1.0
    assert yarn_attention_factor(np.e, 2.0) == pytest.approx(1.2)
    for scaling in (None, LinearRope(2.0), Llama3Rope(2.0, 1.0, 4.0, 8), DynamicRope(2.0, 8)):
        assert Rope(100.0, 4, scaling).attention_factor == 1.0
    assert Rope(100.0, 4, YarnRope(2.0, 8, attention_factor=1.5)).attention_factor == 1.5
