"""Attention over long prompts: the numbers of whole attention, without its memory."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from routerjax.encoder.capture import Graph, capture
from routerjax.encoder.families.registry import read_config
from routerjax.encoder.families.shapes import LatentShape
from routerjax.encoder.models.attention import attend, attend_cudnn, cudnn_is_legal
from routerjax.encoder.selection import Selection
from routerjax.encoder.weights.loading import make_model
from routerjax.runtime.tuning import Tuning
from tests.encoder import tiny_models as models
from tests.encoder.models.test_attention import SINKS_H, heads


def whole_and_blockwise(q, k, v, lengths_B, tile, **options):
    @jax.jit
    def both(*arrays):
        tunings = (
            dataclasses.replace(
                models.CPU, longest_causal=most, longest_bidirectional=most, attention_tile=tile
            )
            for most in (10**6, 1)
        )
        return [attend(*arrays, models.HIGHEST, tuning, **options) for tuning in tunings]

    found = [np.asarray(x) for x in both(q, k, v, lengths_B)]
    assert np.isfinite(found).all()
    real_BT = np.arange(q.shape[1])[None] < lengths_B[:, None]
    return [x[real_BT] for x in found]


@pytest.mark.parametrize(
    "bidirectional, n_before, window, soft_cap, sinks_H, biased",
    [
        (False, 0, 5, 0.0, SINKS_H, False),
        (False, 11, None, 2.0, None, True),
        (False, 11, 5, 0.0, None, False),
        (True, 0, None, 0.0, None, True),
        (True, 0, 4, 0.0, None, False),
    ],
)
def test_block_by_block_equals_whole(bidirectional, n_before, window, soft_cap, sinks_H, biased):
    B, T, H, G, E = 3, 29, 6, 2, 8  # Neither the tokens nor the keys fill their last block.
    q = heads(0, B, T, H, E)
    # Values narrower than keys.
    k, v = (heads(i, B, n_before + T, G, E - 2 * (i == 2)) for i in (1, 2))
    lengths_B = np.array([29, 3, 17], np.int32)  # The second row has blocks of padding alone.
    whole, blocks = whole_and_blockwise(
        q, k, v, lengths_B, 8, bidirectional=bidirectional,
        window=None if window is None else jnp.int32(window), soft_cap=soft_cap, sinks_H=sinks_H,
        bias_HR=jnp.asarray(heads(3, H, n_before + 2 * T - 1)) if biased else None,
    )  # fmt: skip
    np.testing.assert_allclose(blocks, whole, atol=1e-5)


@pytest.mark.parametrize("tuning", [Tuning.cpu(), Tuning.tpu()], ids=["cpu", "tpu"])
def test_a_long_prompt_goes_block_by_block(tuning):
    T = tuning.longest_causal + 200
    q, k, v = (heads(i, 1, T, 1, 8) for i in range(3))
    lengths_B = np.array([T - 5], np.int32)
    whole, blocks = whole_and_blockwise(q, k, v, lengths_B, tuning.attention_tile)
    np.testing.assert_allclose(blocks, whole, atol=1e-5)
    text = str(jax.make_jaxpr(lambda: attend(q, k, v, lengths_B, models.HIGHEST, tuning))())
    assert "while[" in text and f"{T},{T}" not in text


def temporary_bytes(name, T):
    """Of a whole prefill of one prompt, compiled and not run."""
    family, raw = models.VARIANTS[name]
    config = read_config({"model_type": family, **raw, "max_position_embeddings": 2**16})
    graphdef, params = nnx.split(
        nnx.eval_shape(
            lambda: make_model(config, jnp.float32, models.HIGHEST, models.CPU, nnx.Rngs(0))
        )
    )
    shapes = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1, T), (1,), (1, 2))]
    program = capture.trace(
        Graph(graphdef), params, *shapes, selection=Selection((0, 1, 2), ("last", "mean"))
    )
    return program.lower().compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "gemma3",
        pytest.param("gpt_oss", marks=pytest.mark.slow),
        pytest.param("qwen3_next", marks=pytest.mark.slow),
        "qwen3_5",
        pytest.param("deepseek_v3", marks=pytest.mark.slow),
        pytest.param("lfm2", marks=pytest.mark.slow),
        "bert",
        "mpnet",
        pytest.param("modernbert", marks=pytest.mark.slow),
    ],
)
def test_memory_grows_as_the_prompt_does(name):
    shorter, longer = (temporary_bytes(name, T) for T in (2**14, 2**15))
    assert longer < 2.1 * shorter
    assert longer < 2**15 * 2**15 * 4 / 30, "T x T scores of one head are 4 GiB"


@pytest.mark.parametrize("n_before", [0, 4])
def test_what_cudnn_is_asked_for_is_causal_attention(n_before):
    q, (k, v) = heads(0, 3, 7, 6, 8), (heads(i, 3, n_before + 7, 2, 8) for i in (1, 2))
    lengths_B = jnp.array([7, 1, 5])

    @jax.jit
    def both(*heads):
        expected = attend(*heads, lengths_B, models.HIGHEST, models.CPU, scale=0.3)
        return expected, attend_cudnn(*heads, lengths_B, 0.3, "xla")

    with jax.default_matmul_precision("highest"):
        expected, found = map(np.asarray, both(q, k, v))
    real_BT = np.arange(7)[None] < lengths_B[:, None]
    np.testing.assert_allclose(found[real_BT], expected[real_BT], atol=1e-5)


def test_what_cudnn_leaves_in_padding_stays_there(monkeypatch):
    """NaN in a row of padding would reach the next block's keys: 0 x NaN is NaN."""
    raw = {"model_type": "qwen3", **models.VARIANTS["qwen3"][1]}
    tokens_BT, lengths_B = models.random_batch((7, 2, 5))
    real_BT11 = (np.arange(7)[None] < lengths_B[:, None])[:, :, None, None]
    batch = tokens_BT, lengths_B, np.stack([0 * lengths_B, lengths_B], axis=1)

    def states(tuning):
        config = dataclasses.replace(read_config(raw), qkv_bias=True, out_bias=True)
        graphdef, params = models.drawn(config, tuning=tuning)
        selection = Selection(tuple(range(config.n_states)), ("last", "mean", "max"))
        return np.asarray(capture(Graph(graphdef), params, *batch, selection=selection))

    def as_cudnn(q, k, v, lengths_B, scale):
        mixed = attend(q, k, v, lengths_B, models.HIGHEST, models.CPU, scale=scale)
        return jnp.where(real_BT11, mixed, jnp.nan)

    expected = states(models.CPU)
    monkeypatch.setattr("routerjax.encoder.models.mixers.self_attention.attend_cudnn", as_cudnn)
    np.testing.assert_allclose(
        states(dataclasses.replace(models.CPU, cudnn=True)), expected, rtol=1e-5, atol=1e-5
    )


def test_cudnn_is_taken_where_it_is_legal():
    raw = {"model_type": "qwen3", **models.VARIANTS["qwen3"][1]}
    config = dataclasses.replace(read_config(raw), head_dim=128)
    hopper = Tuning.gpu()
    assert cudnn_is_legal(config, "bfloat16", 2048, hopper)
    assert not cudnn_is_legal(config, "float32", 2048, hopper)
    for tuning in (Tuning.tpu(), Tuning.cpu()):
        assert not cudnn_is_legal(config, "bfloat16", 2048, tuning)
    windows = (4096, 2**30, 2**30)
    assert cudnn_is_legal(dataclasses.replace(config, windows=windows), "float16", 4096, hopper)
    for change in (
        {"windows": windows}, {"head_dim": 264}, {"head_dim": 12}, {"soft_cap": 50.0},
        {"sinks": True}, {"bidirectional": True}, {"latent": LatentShape(0, 8, 8, 8, 16)},
    ):  # fmt: skip
        assert not cudnn_is_legal(dataclasses.replace(config, **change), "float16", 4097, hopper)


@pytest.mark.parametrize(("capability", "widest"), [("8.9", 128), ("9.0", 256), ("12.0", 256)])
def test_cudnn_takes_wider_heads_from_hopper_on(capability, widest):
    tuning = Tuning.of([types.SimpleNamespace(platform="gpu", compute_capability=capability)])
    raw = {"model_type": "qwen3", **models.VARIANTS["qwen3"][1]}
    for head_dim, legal in ((widest, True), (widest + 8, False)):
        config = dataclasses.replace(read_config(raw), head_dim=head_dim)
        assert cudnn_is_legal(config, "bfloat16", 2048, tuning) == legal
