"""The TPU's fused attention: interpreted on a CPU, against the attention of every other device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax.encoder.capture import Graph, capture
from routerjax.encoder.families.config import FULL_ATTENTION
from routerjax.encoder.models import attention
from routerjax.encoder.models.attention import attend
from routerjax.encoder.models.splash import attend_splash, padded_lengths, splash_kernel
from routerjax.encoder.selection import Selection
from routerjax.encoder.weights.loading import abstract_model
from routerjax.runtime.tuning import Tuning
from tests.encoder import tiny_models as models
from tests.encoder.models.test_attention import SINKS_H, heads
from tests.lowering_cases import encoder_case

SMALL = dataclasses.replace(models.CPU, attention_tile=128, splash_from=1)


def flags_of(name):
    """What a golden model asks of attention: both ways, windows, soft cap, sinks, wider keys."""
    c = models.golden_config(name)
    return (
        c.bidirectional,
        len(set(c.windows)) if min(c.windows) < FULL_ATTENTION else 0,
        bool(c.soft_cap),
        c.sinks,
        c.latent is not None,
    )


GOLDEN = sorted(path.parent.name for path in models.GOLDEN.glob("*/config.json"))
FLAGS = sorted({flags_of(name) for name in GOLDEN})


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_the_kernel_attends_as_we_do(flags):
    bidirectional, n_windows, capped, sinks, wider = flags
    B, T, H, G, E = 2, 150, 6, 2, 8  # Two tiles, the second not full.
    n_before = 0 if bidirectional else 20
    q = heads(0, B, T, H, E)
    k, v = (heads(i, B, n_before + T, G, E - 2 * (wider and i == 2)) for i in (1, 2))
    lengths_B = np.array([T, 37], np.int32)  # The second row's last tile is padding alone.
    windows = (30, FULL_ATTENTION)[:n_windows]
    options = {
        "bidirectional": bidirectional, "scale": 0.5, "soft_cap": 2.0 * capped,
        "sinks_H": jnp.asarray(SINKS_H) if sinks else None,
    }  # fmt: skip

    @jax.jit
    def both(window, *heads):
        window = window if windows else None
        return (
            attend(*heads, models.HIGHEST, models.CPU, window=window, **options),
            attend_splash(
                *heads, SMALL, window=window, windows=windows, interpret=True, **options
            ),
        )  # fmt: skip

    for window in windows or (0,):
        expected, got = map(np.asarray, both(window, q, k, v, lengths_B))
        assert np.isfinite(got).all()
        real_BT = np.arange(T)[None] < lengths_B[:, None]
        np.testing.assert_allclose(got[real_BT], expected[real_BT], atol=1e-5)


@pytest.mark.parametrize(("T", "S", "padded"), [
    (256, 256, (256, 256)), (300, 300, (384, 384)), (640, 640, (768, 768)),
    (2048, 2048, (2048, 2048)), (512, 576, (512, 768)), (300, 310, (384, 512)),
])  # fmt: skip
def test_tiles_are_few_and_every_query_has_its_key(T, S, padded):
    tuning = Tuning.tpu()
    assert padded_lengths(T, S, tuning) == padded
    assert padded[1] >= S - T + padded[0]
    kernel = splash_kernel(2, T, S, tuning, False, 128)
    sizes = kernel.kwargs["block_sizes"]
    assert padded[0] % sizes.block_q == 0 and padded[1] % sizes.block_kv == 0
    assert max(sizes.block_q, sizes.block_kv) <= tuning.attention_tile


def test_tiles_that_nobody_sees_are_not_computed():
    causal = splash_kernel(1, 2048, 2048, Tuning.tpu(), False, 2048).fwd_mask_info.block_mask
    assert np.count_nonzero(causal) == 4 + 3 + 2 + 1
    window = splash_kernel(1, 2048, 2048, Tuning.tpu(), False, 128).fwd_mask_info.block_mask
    assert np.count_nonzero(window) == 4 + 3


def text_of(name, tuning, dtype, n_tokens=256):
    config = models.golden_config(name)
    graphdef, params = abstract_model(config, dtype, jax.lax.Precision.DEFAULT, tuning)
    batch = [jax.ShapeDtypeStruct(s, jnp.int32) for s in ((1, n_tokens), (1,), (1, 2))]
    selection = Selection((config.n_states - 1,), ("last",))
    return str(capture.trace(Graph(graphdef), params, *batch, selection=selection).jaxpr)


@pytest.mark.parametrize(("name", "tuning", "dtype", "n_tokens", "fused"), [
    ("qwen3", Tuning.tpu(), jnp.bfloat16, 256, True),
    ("qwen3", Tuning.tpu(), jnp.bfloat16, 255, False),
    ("qwen3", Tuning.tpu(), jnp.float32, 256, False),
    ("qwen3", Tuning.cpu(), jnp.bfloat16, 256, False),
    ("mpnet", Tuning.tpu(), jnp.bfloat16, 256, False),  # A bias by distance.
    ("gpt_oss", Tuning.tpu(), jnp.bfloat16, 256, True),
])  # fmt: skip
def test_the_kernel_is_taken_where_it_is_legal(name, tuning, dtype, n_tokens, fused):
    assert ("pallas_call" in text_of(name, tuning, dtype, n_tokens)) == fused


def test_the_kernel_lowers_for_a_tpu():
    case = encoder_case("gpt_oss", jnp.bfloat16, Tuning.tpu(), 256)
    lowered = case.function.trace(*case.args, **case.options).lower(lowering_platforms=("tpu",))
    assert "splash_mha_fwd" in lowered.as_text()


def test_a_window_that_is_not_known_is_left_to_others():
    q, k, v = (jnp.asarray(heads(i, 1, 256, 1, 8), jnp.bfloat16) for i in range(3))

    def traced(**options):
        def f(window):
            return attend(q, k, v, jnp.array([256]), None, Tuning.tpu(), window=window, **options)

        return str(jax.make_jaxpr(f)(5))

    assert "pallas_call" not in traced()
    assert traced(windows=(5, 300)).count("pallas_call") == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v3_plain", "modernbert", "gemma4"])
def test_a_whole_model_reads_as_in_hugging_face(name, monkeypatch):
    calls = []

    def interpreted(*heads, **options):
        calls.append(options["windows"])
        return attend_splash(*heads, interpret=True, **options)

    monkeypatch.setattr(attention, "attend_splash", interpreted)
    # In float32, to see more digits than the kernel's bfloat16 has.
    monkeypatch.setattr(attention, "splash_is_legal", lambda dtype, bias, *window: bias is None)
    encoder = models.load(models.GOLDEN / name, tuning=SMALL)
    tokens_BT, lengths_B, states_LBTD = models.golden_states(name)
    got = models.our_states(encoder, tokens_BT, lengths_B)
    assert calls and set(calls) == {encoder.config.windows}
    assert models.worst_error(got, states_LBTD, lengths_B) < 1e-4
